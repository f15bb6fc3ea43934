"""What rounding activations costs as a few channels grow, in a model whose function stays what it is.

With one scale for a token or for all, the steps grow with the largest channels and all others drown in them.
With the outlier columns apart, the error stays where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.quantization.outliers import ErrorAtScale

WAYS = {  # attribute, what it is called, marker, colour
    "tensor": ("one scale for all", "D", look.SERIES[3]),
    "token": ("a scale for each token", "s", look.SERIES[1]),
    "mixed": ("outliers in 16 bits", "o", look.SERIES[0]),
}


def plot_outlier_growth(
    errors: Sequence[ErrorAtScale], title: str = "What outliers cost", subtitle: str = ""
) -> look.Picture:
    """A line for each way to round, over the factor of the channels that were scaled; logarithms both.

    Args:
        errors: as of `errors_by_scale`, for two factors at least.

    Raises:
        ValueError: fewer than two.
    """
    if len(errors) < 2:
        raise ValueError(f"errors must be for at least 2 factors, got {len(errors)}; a line needs two points")
    ordered = sorted(errors, key=lambda one: one.factor)
    factors = [one.factor for one in ordered]
    with look.style():
        picture = look.Picture(look.WIDTH, 3.6)
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((0.085, 0.135, 0.60, 0.60))
        for way, (_, marker, color) in WAYS.items():
            style = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.6}
            axes.plot(factors, [getattr(one, way) for one in ordered], **style)
        axes.set(xscale="log", yscale="log", xlabel="factor of the scaled channels")
        axes.xaxis.set_major_locator(FixedLocator(factors))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.7f}".rstrip("0").rstrip(".")))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="#eceff2", linewidth=0.8)
        axes.text(0, 1.05, "‖ΔY‖² / ‖Y‖² of all layers", transform=axes.transAxes, weight="bold", size=10.5)
        _name_lines(axes, ordered[-1])
        picture.alt = f"{title}. " + " ".join(_sentence(way, ordered) for way in WAYS)
    return picture


def _name_lines(axes, last: ErrorAtScale) -> None:
    """Beside their ends, apart by a line of text at least."""
    low, high = (axes.transData.transform((last.factor, y))[1] for y in axes.get_ylim())
    room, below = 0.09 * (high - low), -float("inf")
    for way in sorted(WAYS, key=lambda way: getattr(last, way)):
        name, marker, color = WAYS[way]
        y = axes.transData.transform((last.factor, getattr(last, way)))[1]
        below = max(y, below + room)
        share = f", {last.outlier_share:.1%} of all" if way == "mixed" else ""
        place = {"transform": axes.transAxes, "va": "center", "size": 9.5}
        letter = {"D": "◆", "s": "■", "o": "●"}[marker]
        height = (below - low) / (high - low)
        axes.text(1.02, height, letter, color=color, **place)
        axes.text(1.05, height, name + share, **place)


def _sentence(way: str, errors: Sequence[ErrorAtScale]) -> str:
    first, last = errors[0], errors[-1]
    return (
        f"{WAYS[way][0]}: {getattr(first, way):.2g} at {first.factor:g} times, "
        f"{getattr(last, way):.2g} at {last.factor:g} times."
    )
