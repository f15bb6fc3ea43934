"""How a cost grows: measured and predicted curves on log-log axes, where a power is a straight line.

y ∝ xᵏ   ⇔   log y = k log x + constant
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

KINDS = ("measured", "predicted")


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        kind: "measured", marks joined by a line, or "predicted", a dashed line without marks.
        group: curves of one group share a colour, a measurement and its prediction for instance.

    Raises:
        ValueError: lengths that differ, fewer than two points, one that has no logarithm, or another kind.
    """

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float]
    kind: str = "measured"
    group: str = ""

    def __post_init__(self):
        object.__setattr__(self, "x", tuple(map(float, self.x)))
        object.__setattr__(self, "y", tuple(map(float, self.y)))
        object.__setattr__(self, "group", self.group or self.name)
        if len(self.x) != len(self.y) or len(self.x) < 2:
            raise ValueError(
                f"x and y must have the same 2 or more points, got {len(self.x)} and {len(self.y)}"
            )
        if not all(0 < value < math.inf for value in (*self.x, *self.y)):
            raise ValueError(f"x and y must be above 0 and finite for log axes, got them for {self.name!r}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def exponent(self, start: int | float = 0) -> float:
        """The k of y ∝ xᵏ that fits the points from `start` on best, by least squares of the logarithms.

        Raises:
            ValueError: fewer than two points are left.
        """
        points = [(math.log(x), math.log(y)) for x, y in zip(self.x, self.y, strict=True) if x >= start]
        if len(points) < 2:
            raise ValueError(
                f"start must leave 2 points of {self.name!r}, got {start} of {self.x[-1]:g} at most"
            )
        mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
        return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def groups_of(curves: Sequence[Curve]) -> tuple[str, ...]:
    """The groups in the order of their curves, each of which has a colour.

    Raises:
        ValueError: no curves, or more groups than can be told apart.
    """
    groups = tuple(dict.fromkeys(curve.group for curve in curves))
    if not 1 <= len(groups) <= len(look.SERIES):
        raise ValueError(f"curves must be of 1 to {len(look.SERIES)} groups, got {len(groups)}")
    return groups


def plot_growth(
    curves: Sequence[Curve], title: str, subtitle: str = "", *, x_label: str, y_label: str
) -> look.Picture:
    """Curves with their names at the right, in the colour of their group.

    Raises:
        ValueError: no curves, or more groups than can be told apart.
    """
    groups = groups_of(curves)
    with look.style():
        picture = look.Picture(look.WIDTH, 4.3)
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((0.10, 0.115, 0.62, 0.70))
        axes.set(xscale="log", yscale="log", xlabel=x_label)
        axes.text(0, 1.025, readable(y_label), transform=axes.transAxes, size=10, color=look.MUTED)
        for curve in curves:
            _draw(axes, curve, groups.index(curve.group))
        _scale(axes, curves)
        _name(axes, curves, groups)
        look.fix_label(axes)
        picture.alt = f"{title}. " + " ".join(_sentence(curve, x_label, y_label) for curve in curves)
    return picture


def _draw(axes, curve: Curve, index: int) -> None:
    color, marker = look.SERIES[index], look.MARKERS[index]
    if curve.kind == "predicted":
        axes.plot(curve.x, curve.y, color=color, linewidth=1.4, linestyle=(0, (4, 2)), zorder=2)
    else:
        axes.plot(curve.x, curve.y, color=color, marker=marker, markersize=5, linewidth=1.5, zorder=3)


def _scale(axes, curves: Sequence[Curve]) -> None:
    """Ticks where the points are, if they are few; else at 1, 2 and 5 of each decade."""
    for axis, few in ((axes.xaxis, sorted({x for curve in curves for x in curve.x})), (axes.yaxis, None)):
        if few and len(few) <= 10:
            axis.set_ticks(few)
        else:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)


def _name(axes, curves: Sequence[Curve], groups: Sequence[str]) -> None:
    """Names beside the ends of curves, pushed apart from top to bottom where ends are close."""
    height = axes.get_window_extent().height
    ends = [
        (axes.transAxes.inverted().transform(axes.transData.transform((c.x[-1], c.y[-1])))[1], c)
        for c in curves
    ]
    last = math.inf
    least = 17 / height  # of the axes, for one line of text
    for y, curve in sorted(ends, key=lambda end: -end[0]):
        last = min(y, last - least)
        color = look.SERIES[groups.index(curve.group)]
        sign = "╌ " if curve.kind == "predicted" else f"{'●■▲◆'[groups.index(curve.group)]} "
        axes.text(
            1.03,
            last,
            readable(sign + curve.name),
            transform=axes.transAxes,
            color=color,
            size=10,
            va="center",
        )


def _sentence(curve: Curve, x_label: str, y_label: str) -> str:
    first, last = f"{curve.y[0]:.3g} at {curve.x[0]:g}", f"{curve.y[-1]:.3g} at {curve.x[-1]:g}"
    return f"{curve.name} ({curve.kind}): {y_label} from {first} to {last} {x_label}."
