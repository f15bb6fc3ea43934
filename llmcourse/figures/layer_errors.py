"""What each layer's output loses by rounding, and what is left of that under better methods.

Losses are ‖X ΔWᵀ‖² over a calibration text. The upper panel has those of rounding, on a log scale; the lower
one the share of it that each method leaves, layer by layer: a bar at 100 % has won nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

MOST_LAYERS = 64
COLORS = (look.SERIES[0], look.SERIES[3], look.SERIES[2])  # lightness 35, 73 and 58


@runtime_checkable
class Loss(Protocol):
    """Of one layer: what results of GPTQ and AWQ say of themselves."""

    loss: float
    rounding_loss: float


def shares(results: Mapping[str, Loss]) -> dict[str, float]:
    """What is left of each layer's loss by rounding: 1 where nothing was lost either way."""
    return {name: one.loss / one.rounding_loss if one.rounding_loss else 1.0 for name, one in results.items()}


def whole_share(results: Mapping[str, Loss]) -> float:
    """The same of all layers together."""
    total = sum(one.rounding_loss for one in results.values())
    return sum(one.loss for one in results.values()) / total if total else 1.0


def plot_layer_errors(
    methods: Mapping[str, Mapping[str, Loss]],
    title: str = "What rounding loses, layer by layer",
    subtitle: str = "",
) -> look.Picture:
    """The figure.

    Args:
        methods: one to three, by name; each has the same layers, in the order to draw.

    Raises:
        ValueError: no method, methods of different layers, or more of anything than can be told apart.
    """
    if not 1 <= len(methods) <= len(COLORS):
        raise ValueError(f"methods must be 1 to {len(COLORS)}, got {len(methods)}")
    layers, *others = (list(results) for results in methods.values())
    if any(other != layers for other in others):
        raise ValueError(f"methods must have the same layers in one order, got {layers} and {others}")
    if not 1 <= len(layers) <= MOST_LAYERS:
        raise ValueError(f"layers must be 1 to {MOST_LAYERS}, got {len(layers)}; draw some of them")
    labels = [short(name) for name in layers]
    below = 0.20 + 0.062 * max(map(len, labels))
    height = 0.98 + 0.9 + 0.42 + 1.5 + below
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, subtitle)
        top = picture.add_axes((0.075, (below + 1.92) / height, 0.915, 0.9 / height))
        bottom = picture.add_axes((0.075, below / height, 0.915, 1.5 / height), sharex=top)
        _draw_rounding(top, [one.rounding_loss for one in next(iter(methods.values())).values()])
        _draw_shares(bottom, methods, labels)
        picture.alt = f"{title}. " + " ".join(_sentence(*method) for method in methods.items())
    return picture


def short(name: str) -> str:
    """`2 down` for `model.layers.2.mlp.down_proj`; other names as they are."""
    *path, last = name.split(".")
    number = next((part for part in path if part.isdigit()), None)
    return f"{number} {last.removesuffix('_proj')}" if number is not None else name


def _draw_rounding(axes, losses: list[float]) -> None:
    axes.set_yscale("log")
    positive = [loss for loss in losses if loss > 0]
    floor = min(positive, default=0.1) / 2
    axes.bar(range(len(losses)), [max(loss, floor) - floor for loss in losses], 0.8, floor, color=look.MUTED)
    axes.set_ylim(floor, 2 * max(positive, default=1))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    axes.tick_params(labelbottom=False, labelsize=9)
    look.bare(axes, "bottom")
    axes.text(0, 1.06, "‖X ΔWᵀ‖² by rounding", transform=axes.transAxes, weight="bold", size=10.5)
    axes.text(1, 1.06, "log scale", transform=axes.transAxes, size=8.5, color=look.MUTED, ha="right")


def _draw_shares(axes, methods: Mapping[str, Mapping[str, Loss]], labels: list[str]) -> None:
    width = 0.84 / len(methods)
    for row, (name, results) in enumerate(methods.items()):
        places = [at + (row - (len(methods) - 1) / 2) * width for at in range(len(labels))]
        label = f"{readable(name)}: {whole_share(results):.0%} in all"
        axes.bar(places, list(shares(results).values()), width, color=COLORS[row], label=label)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(methods)}
    axes.legend(fontsize=9.5, handlelength=1.0, borderaxespad=0.1, **place)
    axes.axhline(1, color=look.INK, linewidth=1.1, linestyle=(0, (4, 2)))
    most = max(share for results in methods.values() for share in shares(results).values())
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(0, max(1.1, 1.05 * most)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xticks(range(len(labels)), [readable(label) for label in labels], rotation=90)
    axes.tick_params(axis="y", labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.text(0, 1.05, "what is left of it", transform=axes.transAxes, weight="bold", size=10.5)
    look.bare(axes)


def _sentence(name: str, results: Mapping[str, Loss]) -> str:
    left = shares(results)
    best, worst = min(left, key=left.get), max(left, key=left.get)
    return (
        f"{name} leaves {whole_share(results):.1%} of what rounding loses over {len(left)} layers: "
        f"{left[best]:.1%} at best ({best}), {left[worst]:.1%} at worst ({worst})."
    )
