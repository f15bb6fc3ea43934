"""Memory and time against the length of a text, until the memory is full.

A power is a straight line here: y ∝ Sᵏ  ⇔  log y = k log S + constant. Where attention keeps its scores, its
memory has k = 2, and one more doubling of the length no longer fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.growth import Curve
from llmcourse.figures.memory_bars import gigabytes

PANELS = {"peak_bytes": "peak memory", "time_s": "time"}


@dataclass(frozen=True)
class LengthRow:
    """One measurement.

    Attributes:
        name: of what was measured, such as "naive".
        length: tokens.
        time_s, peak_bytes: None where the memory was full; of either, None too if it was not measured.

    Raises:
        ValueError: a number that has no logarithm.
    """

    name: str
    length: int
    time_s: int | float | None = None
    peak_bytes: int | float | None = None

    def __post_init__(self):
        for name in ("length", "time_s", "peak_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}; None says out of memory")

    @property
    def out_of_memory(self) -> bool:
        return self.time_s is None and self.peak_bytes is None


def curve_of(rows: Iterable[LengthRow], name: str, measure: str) -> Curve | None:
    """What was measured of one name, from the shortest text on; None of fewer than two points.

    Args:
        measure: "peak_bytes" or "time_s".
    """
    found = sorted((r.length, getattr(r, measure)) for r in rows if r.name == name and getattr(r, measure))
    return Curve(name, *zip(*found, strict=True)) if len(found) > 1 else None


def full_at(rows: Iterable[LengthRow], name: str) -> int | None:
    """The shortest length at which the memory was full; None if it never was."""
    return min((row.length for row in rows if row.name == name and row.out_of_memory), default=None)


def would_be(rows: Sequence[LengthRow], name: str, measure: str) -> tuple[int, float] | None:
    """Where the memory was full, (length, value) on the power law of the last points; None if it was not."""
    full, curve = full_at(rows, name), curve_of(rows, name, measure)
    if full is None or curve is None:
        return None
    return full, curve.y[-1] * (full / curve.x[-1]) ** _exponent(curve)


def _exponent(curve: Curve) -> float:
    """Of the last three points, or of the two that there are."""
    return curve.exponent(start=curve.x[max(0, len(curve.x) - 3)])


def plot_against_length(
    rows: Sequence[LengthRow], title: str, subtitle: str = "", *, memory_bytes: int | None = None
) -> look.Picture:
    """Memory to the left and time to the right; × where the memory was full, on the curve if it went on.

    Args:
        memory_bytes: of the device, drawn as a line.

    Raises:
        ValueError: no rows, or more names than can be told apart.
    """
    names = tuple(dict.fromkeys(row.name for row in rows))
    if not 1 <= len(names) <= len(look.SERIES):
        raise ValueError(f"rows must be of 1 to {len(look.SERIES)} names, got {len(names)}")
    with look.style():
        picture = look.Picture(look.WIDTH, 4.2)
        look.heading(picture, title, subtitle)
        _draw_key(picture, names, any(row.out_of_memory for row in rows))
        for place, measure in enumerate(PANELS):
            axes = picture.add_axes((0.085 + 0.5 * place, 0.115, 0.40, 0.60))
            _draw_panel(axes, rows, names, measure, memory_bytes if measure == "peak_bytes" else None)
        picture.alt = f"{title}. " + " ".join(_sentence(rows, name) for name in names)
    return picture


def _draw_panel(
    axes, rows: Sequence[LengthRow], names: Sequence[str], measure: str, limit: int | None
) -> None:
    axes.set(xscale="log", yscale="log", xlabel="length in tokens")
    lengths = sorted({row.length for row in rows})
    axes.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    values = [value for row in rows if (value := getattr(row, measure))]
    values += [point[1] for name in names if (point := would_be(rows, name, measure))]
    if values:
        axes.set_ylim(min(values) / 2, max(*values, limit or 0) * 3)
    if limit:
        axes.axhline(limit, color=look.INK, linewidth=1.2, zorder=1)
        style = {"transform": axes.get_yaxis_transform(), "size": 9, "va": "bottom"}
        axes.text(0.01, limit * 1.08, f"memory of the device: {gigabytes(limit)}", **style)
    axes.text(0, 1.03, PANELS[measure], transform=axes.transAxes, weight="bold", size=10.5)
    slopes = [_draw_curve(axes, rows, name, measure, index) for index, name in enumerate(names)]
    x = 1.0
    for index, slope in reversed([*enumerate(slopes)]):  # from the right, in the colours of the curves
        style = {"transform": axes.transAxes, "ha": "right", "size": 9, "color": look.SERIES[index]}
        axes.text(x, 1.03, slope, **style)
        x -= 0.165 if slope else 0.0
    _scale(axes, lengths, measure)


def _draw_curve(axes, rows: Sequence[LengthRow], name: str, measure: str, index: int) -> str:
    """Draws one, and says how it grows at its end."""
    color, marker = look.SERIES[index], look.MARKERS[index]
    points = sorted((r.length, getattr(r, measure)) for r in rows if r.name == name and getattr(r, measure))
    if points:
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5.5, linewidth=1.6)
    if full := would_be(rows, name, measure):
        axes.plot(*zip(points[-1], full, strict=True), color=color, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.plot(*full, "x", color=look.ACCENT, markersize=10, markeredgewidth=2.6, zorder=5)
    curve = curve_of(rows, name, measure)
    return f"{'●■▲◆'[index]} S^{_exponent(curve):.1f}" if curve else ""


def _scale(axes, lengths: Sequence[int], measure: str) -> None:
    few = lengths if len(lengths) <= 6 else lengths[:: -(-len(lengths) // 6)]
    axes.xaxis.set_major_locator(FixedLocator(few))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    told = gigabytes if measure == "peak_bytes" else look.seconds
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: told(y)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.grid(color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_key(picture: look.Picture, names: Sequence[str], any_full: bool) -> None:
    x, y = 0.085, 0.815
    for index, name in enumerate(names):
        picture.text(x, y, f"{'●■▲◆'[index]} {readable(name)}", color=look.SERIES[index], size=10.5)
        x += 0.045 + 0.012 * len(name)
    if any_full:
        picture.text(x, y, "× out of memory", color=look.ACCENT, size=10.5)


def _sentence(rows: Sequence[LengthRow], name: str) -> str:
    parts = []
    for measure, told in (("peak_bytes", gigabytes), ("time_s", look.seconds)):
        found = sorted(
            (r.length, getattr(r, measure)) for r in rows if r.name == name and getattr(r, measure)
        )
        if found:
            (x, first), (y, last) = found[0], found[-1]
            parts.append(f"{PANELS[measure]} from {told(first)} at {x:,} to {told(last)} at {y:,} tokens")
    full = full_at(rows, name)
    parts += [f"out of memory at {full:,} tokens"] if full else []
    return f"{name}: {'; '.join(parts) or 'not measured'}."
