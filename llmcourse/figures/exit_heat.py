"""A text's map of layers and tokens: how unsure each exit is, and the line where a rule leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llmcourse.early_exit.heat_map import Heat
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

SHADES = LinearSegmentedColormap.from_list("entropy", [look.PAPER, "#9fc0dc", look.SERIES[0]])
MOST_LABELS = 60
LETTERS = 9  # of a token that are shown


class HeatPlot:
    """The map of one text, made once and then redrawn for other rules: its line follows a slider.

    Args:
        data: of any rule; what every exit said is drawn once.
        labels: how each token is written below its column.
        room: inches to leave free below the map.

    Raises:
        ValueError: not one label for each token.
    """

    def __init__(self, data: Heat, labels: Sequence[str], room: float = 0.0):
        width = len(data.tokens)
        if len(labels) != width:
            raise ValueError(f"labels must be {width}, one a token, got {len(labels)}; label every token")
        self.layers, height = data.layers, 2.5 + 0.22 * len(data.layers)
        with look.style():
            self.figure = look.Picture(look.WIDTH, height + room)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            bottom, high = (room + 0.30 * height) / (height + room), 0.48 * height / (height + room)
            self.map = self.figure.add_axes((0.06, bottom, 0.86, high))
            bar = self.figure.add_axes((0.935, bottom, 0.015, high))
            self._draw_cells(data, labels, bar)
            self._make_line(width)
        self.figure.moving = [self._line, self._not_run, self._wrong, self.title, self.subtitle]
        self.figure.still_key = "cells"

    def _draw_cells(self, data: Heat, labels: Sequence[str], bar) -> None:
        cells, width = data.entropy.double().numpy(), len(data.tokens)
        options = {"vmin": 0, "aspect": "auto", "origin": "lower", "interpolation": "nearest"}
        image = self.map.imshow(cells, cmap=SHADES, **options)
        self.map.set_yticks(range(len(data.layers)), [str(layer) for layer in data.layers])
        self.map.set_ylabel("layers")
        shown = range(width) if width <= MOST_LABELS else ()
        names = [look.token(labels[at], LETTERS) for at in shown]
        self.map.set_xticks(shown, names, rotation=90)
        self.figure.colorbar(image, cax=bar).set_label("entropy, nats")

    def _make_line(self, width: int) -> None:
        """The top of the last cell that ran, token by token, and hatching over those that did not."""
        none, edges = np.zeros(width), np.arange(width + 1) - 0.5
        self._line = self.map.stairs(none, edges, color=look.ACCENT, linewidth=2.0, baseline=None)
        hatch = {"facecolor": "none", "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH, "linewidth": 0}
        self._not_run = self.map.stairs(none, edges, baseline=none, fill=True, **hatch)
        mark = {"marker": "X", "markersize": 8, "markeredgewidth": 1.1, "linestyle": "none"}
        mark |= {"color": look.PAPER, "markeredgecolor": look.INK}  # seen on pale cells and on dark ones
        self._wrong = self.map.plot([], [], **mark)[0]
        self.map.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, len(self.layers) - 0.5))
        keys = [
            Line2D([], [], color=look.ACCENT, linewidth=2.0, label="leaves"),
            Patch(facecolor=look.PAPER, edgecolor=look.CUT_EDGE, hatch=look.CUT_HATCH, label="not run"),
            Line2D([], [], **mark, label="not what the whole model says"),
        ]
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "borderaxespad": 0.3}
        self.map.legend(handles=keys, fontsize=9.5, handlelength=1.6, **place)

    def update(self, data: Heat, title: str = "Entropy of every exit") -> look.Picture:
        """Shows where another rule leaves, in the same text."""
        rows = np.array([data.layers.index(layer) for layer in data.exit_layers])
        said = data.favourites.numpy()
        wrong = np.flatnonzero(said[rows, np.arange(len(rows))] != said[-1])
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(_told(data))
            self._line.set_data(rows + 0.5)
            self._not_run.set_data(np.full(len(rows), len(data.layers) - 0.5), baseline=rows + 0.5)
            self._wrong.set_data(wrong, rows[wrong])
        counts = f"{len(data.tokens)} tokens, {len(data.layers)} exits"
        self.figure.alt = f"{title}: {counts}; {_told(data)}."
        return self.figure


def plot_heat(data: Heat, labels: Sequence[str], title: str = "Entropy of every exit") -> look.Picture:
    """Layers upwards, tokens to the right; white is sure, dark is unsure, hatched is not run.

    Args:
        labels: how each token is written below its column.

    Raises:
        ValueError: not one label for each token.
    """
    return HeatPlot(data, labels).update(data, title)


def _told(data: Heat) -> str:
    return (
        f"leaves after {data.mean_layers:.2f} of {data.layers[-1]} layers on average; there it says what "
        f"the whole model says at {look.percent(data.agreement)} of the tokens"
    )
