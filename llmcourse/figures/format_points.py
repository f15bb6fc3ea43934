"""Where the codes of number formats lie, all on one axis, and what each makes of real numbers.

Every format is drawn from −1 to 1, its largest magnitude being 1: a scale brings any group of numbers there.
Integers are spread evenly, NF4 as densely as normally distributed weights are, floating-point formats twice
as densely with every halving. A format that fixes its scales, as MXFP4 does to powers of two, reaches less
than is said here: that is of its values alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

MOST = 8  # formats that are drawn below each other
ROW, HEAD, HISTOGRAM, FOOT = 0.46, 0.66, 0.75, 0.46  # inches
LEFT, RIGHT = 0.14, 0.79  # shares of the width: of the axis, words stand on both sides
BINS = 120
NEAR = 1 / 8  # of the largest magnitude: how near to 0 small numbers are


@dataclass(frozen=True)
class CodePoints:
    """What a format can say of numbers in [−1, 1].

    Attributes:
        points: in rising order, the largest magnitude 1.
        snr_db: 10 log₁₀(Σx² / Σ(x − x̃)²) of the numbers that were rounded; NaN without any, ∞ without error.
    """

    name: str
    points: tuple[float, ...]
    snr_db: float

    @property
    def near_zero(self) -> float:
        """The share of all codes that are for magnitudes up to an eighth of the largest."""
        return sum(abs(point) <= NEAR for point in self.points) / len(self.points)


def code_points(name: str, codes: Sequence[int | float], numbers: np.ndarray | None = None) -> CodePoints:
    """A format's points, and how well numbers are rounded to the nearest of them.

    Args:
        codes: every value of the format, at any scale and in any order; what repeats counts once, and what is
            no number (NaN, infinity) not at all.
        numbers: in [−1, 1], such as weights divided by the largest magnitude of their group.

    Raises:
        ValueError: fewer than two numbers.
    """
    given = np.asarray(codes, float)
    points = np.unique(given[np.isfinite(given)])
    if len(points) < 2:
        raise ValueError(f"codes of {name} must be two or more numbers, got {points.tolist()}")
    points = points / np.abs(points).max()
    if numbers is None:
        return CodePoints(name, tuple(points.tolist()), math.nan)
    between = (points[1:] + points[:-1]) / 2
    error = np.square(numbers - points[np.searchsorted(between, numbers)]).sum()
    snr = 10 * math.log10(np.square(numbers).sum() / error) if error else math.inf
    return CodePoints(name, tuple(points.tolist()), snr)


def plot_code_points(
    formats: Mapping[str, Sequence[int | float]],
    title: str = "What formats can say",
    subtitle: str = "",
    *,
    numbers: np.ndarray | None = None,
) -> look.Picture:
    """A row for each format with a stroke for each of its values; above them how the numbers are spread.

    Args:
        formats: all values, by name.
        numbers: as for `code_points`; their histogram and their signal-to-noise ratio are left out if None.

    Raises:
        ValueError: no format, more than fit, or one that is none.
    """
    if not 1 <= len(formats) <= MOST:
        raise ValueError(f"formats must be 1 to {MOST}, got {len(formats)}; draw the others apart")
    given = None if numbers is None else np.asarray(numbers, float).ravel()
    rows = [code_points(name, codes, given) for name, codes in formats.items()]
    above = HISTOGRAM if given is not None else 0.0
    height = HEAD + above + ROW * len(rows) + FOOT
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((LEFT, FOOT / height, RIGHT - LEFT, ROW * len(rows) / height))
        _draw_rows(axes, rows)
        if given is not None:
            bottom, high = (FOOT + ROW * len(rows)) / height, above / height
            _draw_histogram(picture.add_axes((LEFT, bottom, RIGHT - LEFT, high), sharex=axes), given)
        told = [f"{row.name} {_told(row)}" for row in rows]
        picture.alt = f"{title}. {'. '.join(told)}."
    return picture


def _draw_rows(axes, rows: Sequence[CodePoints]) -> None:
    axes.set(xlim=(-1.03, 1.03), ylim=(len(rows) - 0.5, -0.5), xlabel="value, in largest magnitudes")
    for place, row in enumerate(rows):
        axes.axhline(place, color=look.LINE, linewidth=0.8, zorder=1)
        strokes = [[(x, place - 0.30), (x, place + 0.30)] for x in row.points]
        width = 1.8 if len(row.points) <= 32 else 0.7
        axes.add_collection(LineCollection(strokes, colors=look.SERIES[0], linewidths=width, zorder=2))
        beside = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 9}
        axes.text(1.02, place, _told(row, "\n"), color=look.MUTED, linespacing=1.3, **beside)
    axes.set_yticks(range(len(rows)), [readable(row.name) for row in rows])
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    look.bare(axes, "left")
    look.fix_label(axes)


def _draw_histogram(axes, numbers: np.ndarray) -> None:
    counts, edges = np.histogram(numbers, BINS, (-1, 1))
    axes.stairs(counts, edges, fill=True, color=look.LINE)
    axes.set(ylim=(0, 1.15 * max(1, counts.max())), yticks=[])
    axes.tick_params(labelbottom=False)
    look.bare(axes, "left", "bottom")
    words = {"transform": axes.transAxes, "size": 9, "color": look.MUTED, "va": "top"}
    axes.text(1.02, 0.9, "what is rounded", **words)


def _told(row: CodePoints, then: str = "; ") -> str:
    snr = "" if math.isnan(row.snr_db) else f"SNR {row.snr_db:.1f} dB{then}"
    return f"{snr}{len(row.points)} values, {row.near_zero:.0%} up to ⅛"
