"""A text's map of layers and tokens: how unsure each exit is, and the line where a rule leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from llmcourse.early_exit.heat_map import Heat
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

SHADES = LinearSegmentedColormap.from_list("entropy", [look.PAPER, "#9fc0dc", look.SERIES[0]])
MOST_LABELS = 60
LETTERS = 9  # of a token that are shown


def plot_heat(data: Heat, labels: Sequence[str], title: str = "Entropy of every exit") -> look.Picture:
    """Layers upwards, tokens to the right; white is sure, dark is unsure, hatched is not run.

    Args:
        labels: how each token is written below its column.

    Raises:
        ValueError: not one label for each token.
    """
    count, width = len(data.layers), len(data.tokens)
    if len(labels) != width:
        raise ValueError(f"labels must be {width}, one a token, got {len(labels)}; label every token")
    with look.style():
        picture = look.Picture(look.WIDTH, 2.5 + 0.22 * count)
        subtitle = (
            f"leaves after {data.mean_layers:.2f} of {data.layers[-1]} layers on average; there it says what "
            f"the whole model says at {look.percent(data.agreement)} of the tokens"
        )
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((0.06, 0.30, 0.86, 0.50))
        cells = data.entropy.double().numpy()
        image = axes.imshow(
            cells, cmap=SHADES, vmin=0, aspect="auto", origin="lower", interpolation="nearest"
        )
        _draw_line(axes, data)
        axes.set_yticks(range(count), [str(layer) for layer in data.layers])
        axes.set_ylabel("layers")
        shown = range(width) if width <= MOST_LABELS else ()
        axes.set_xticks(shown, [readable(look.shorten(labels[at], LETTERS)) for at in shown], rotation=90)
        bar = picture.colorbar(image, cax=picture.add_axes((0.935, 0.30, 0.015, 0.50)))
        bar.set_label("nats")
        picture.alt = f"{title}: {width} tokens, {count} exits; {subtitle}."
    return picture


def _draw_line(axes, data: Heat) -> None:
    """The top of the last cell that ran, token by token, and hatching over those that did not."""
    rows = np.array([data.layers.index(layer) for layer in data.exit_layers])
    edges = np.arange(len(rows) + 1) - 0.5
    axes.stairs(rows + 0.5, edges, color=look.ACCENT, linewidth=2.0, baseline=None)
    top = np.full(len(rows), len(data.layers) - 0.5)
    hatch = {"facecolor": "none", "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH, "linewidth": 0}
    axes.stairs(top, edges, baseline=rows + 0.5, fill=True, **hatch)
    key = Patch(facecolor=look.PAPER, edgecolor=look.CUT_EDGE, hatch=look.CUT_HATCH, label="not run")
    axes.legend(handles=[key], loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9)
