"""One asymmetric quantization on a line of multiples of the scale, for zero points that are rounded two ways.

    q = clamp(R(x / S) − Z, q_min, q_max),   x̃ = S (q + Z)

A zero point only chooses which neighbouring multiples of S have a code: a window that it slides along the
line. The exact Z, 13.6 / S − 127 in the lecture's example, is no integer, so one end of the range must stick
out: which one is what rounding Z decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.patches import Rectangle

from llmcourse.figures import style as look

MOST = 3  # zero points that are compared
NEAR = 2  # multiples that are shown on each side of what lies at an end
INSIDE = {"facecolor": "#dce9f4", "edgecolor": look.SERIES[0], "linewidth": 0.9}
CHOSEN = {**INSIDE, "facecolor": look.SERIES[0]}
OUTSIDE = {"facecolor": look.CUT, "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH, "linewidth": 0.7}


@dataclass(frozen=True)
class Window:
    """What one zero point comes to.

    Attributes:
        zero_point: Z, an integer.
        codes: q of every value.
        values: x̃ of every value.
        clamped: whether a value's multiple lies outside the window, by value.
    """

    zero_point: int
    codes: tuple[int, ...]
    values: tuple[float, ...]
    clamped: tuple[bool, ...]

    def errors(self, x: Sequence[int | float]) -> tuple[float, ...]:
        """x̃ − x."""
        return tuple(value - exact for value, exact in zip(self.values, x, strict=True))


def window(
    x: Sequence[int | float], scale: float, zero_point: int, codes: tuple[int, int] = (-128, 127)
) -> Window:
    """Quantizes x by the equations above.

    Args:
        scale: S, positive.
        codes: the smallest and the largest.
    """
    multiples = [round(one / scale) for one in x]
    low, high = codes
    chosen = tuple(min(max(n - zero_point, low), high) for n in multiples)
    values = tuple(scale * (q + zero_point) for q in chosen)
    clamped = tuple(q + zero_point != n for q, n in zip(chosen, multiples, strict=True))
    return Window(zero_point, chosen, values, clamped)


def plot_number_lines(
    x: Sequence[int | float],
    scale: float,
    zero_points: Sequence[int],
    title: str = "One scale, two zero points",
    *,
    exact: float | None = None,
    codes: tuple[int, int] = (-128, 127),
) -> look.Picture:
    """The whole line, both ends of it seen closely, and the error of every value.

    Args:
        x: at most 8 values, positive here, from the smallest to the largest.
        scale: S.
        zero_points: integers to compare.
        exact: the Z that was rounded, to be told.
        codes: the smallest and the largest.

    Raises:
        ValueError: a scale that is not positive, values not in rising order, or more of anything than fits.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if not 2 <= len(x) <= 8 or list(x) != sorted(x):
        raise ValueError(f"x must be 2 to 8 values in rising order, got {list(x)}")
    if not 1 <= len(zero_points) <= MOST:
        raise ValueError(f"zero_points must be 1 to {MOST}, got {len(zero_points)}")
    windows = [window(x, scale, zero_point, codes) for zero_point in zero_points]
    with look.style():
        picture = look.Picture(look.WIDTH, 4.25 + 0.36 * len(windows))
        told = "" if exact is None else f" · exact Z = {exact:.2f}, which is no integer"
        look.heading(picture, title, f"S = {scale:.5f}{told} · q = clamp(R(x / S) − Z), x̃ = S (q + Z)")
        _draw_line(picture, x, scale, windows, codes)
        for left, end in ((0.115, 0), (0.575, -1)):
            _draw_end(picture, left, end, x, scale, windows, codes)
        _draw_errors(picture, x, scale, windows)
        picture.alt = f"{title}, S = {scale:.5f}. " + " ".join(_sentence(x, one) for one in windows)
    return picture


def _place(picture: look.Picture, left: float, top: float, width: float, height: float):
    """Axes by inches from the top; left and width in shares of the whole."""
    whole = picture.get_figheight()
    return picture.add_axes((left, 1 - (top + height) / whole, width, height / whole))


def _draw_line(picture, x, scale: float, windows: Sequence[Window], codes: tuple[int, int]) -> None:
    """All values, and the window of the first zero point: at this size all windows look the same."""
    axes = _place(picture, 0.115, 0.80, 0.865, 0.42)
    low, high = (code + windows[0].zero_point for code in codes)
    margin = 0.02 * (high - low)
    axes.set(xlim=(min(0, low - margin), high + margin), ylim=(0, 1), yticks=[])
    axes.add_patch(Rectangle((low - 0.5, 0), high - low + 1, 0.34, **INSIDE))
    places = [one / scale for one in x]
    axes.plot(places, [0.36] * len(x), linestyle="none", marker=7, markersize=7, color=look.ACCENT)
    for place, one in zip(places, x, strict=True):
        axes.text(place, 0.72, f"{one:g}", ha="center", va="bottom", size=9.5, color=look.ACCENT)
    axes.text(-0.012, 0.17, "codes", transform=axes.transAxes, ha="right", va="center", size=9.5)
    axes.text(-0.012, 0.86, "x", transform=axes.transAxes, ha="right", va="center", color=look.ACCENT)
    axes.tick_params(bottom=True, labelsize=8.5, pad=1)
    axes.set_xlabel("multiples of S", labelpad=0)
    look.bare(axes, "left")


def _draw_end(
    picture, left: float, end: int, x, scale: float, windows: Sequence[Window], codes: tuple[int, int]
) -> None:
    """A few multiples around the value x[end], and below them the code that each zero point gives them."""
    axes = _place(picture, left, 1.80, 0.405, 0.62 + 0.36 * len(windows))
    nearest, rows = round(x[end] / scale), len(windows)
    shown = range(nearest - NEAR, nearest + NEAR + 1)
    axes.set(xlim=(shown[0] - 0.5, shown[-1] + 0.5), ylim=(rows, -1.7), yticks=[])
    for row, one in enumerate(windows):
        for n in shown:
            q = n - one.zero_point
            has, taken = codes[0] <= q <= codes[1], q == one.codes[end]
            cell = CHOSEN if taken else INSIDE if has else OUTSIDE
            axes.add_patch(Rectangle((n - 0.5, row + 0.06), 1, 0.88, **cell))
            ink = {"color": look.PAPER, "weight": "bold"} if taken else {}
            if has:
                axes.text(n, row + 0.5, f"{q}".replace("-", "−"), ha="center", va="center", size=9.5, **ink)
        if end == 0:
            beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "size": 9.5}
            axes.text(-0.03, row + 0.5, f"Z = {one.zero_point}", **beside)
    axes.plot(x[end] / scale, -0.1, marker=7, markersize=9, color=look.ACCENT, clip_on=False)
    words = f"x = {x[end]:g} is {x[end] / scale:.2f} S: nearest multiple {nearest}"
    axes.text(0, 1.0, words, transform=axes.transAxes, va="top", size=9.5, color=look.ACCENT)
    axes.set_xticks(shown)
    axes.tick_params(labelsize=8.5, pad=1)
    axes.set_xlabel("multiples of S", labelpad=0)
    look.bare(axes, "left", "bottom")


def _draw_errors(picture, x, scale: float, windows: Sequence[Window]) -> None:
    axes = _place(picture, 0.115, 3.0 + 0.36 * len(windows), 0.865, 0.88)
    width = 0.8 / len(windows)
    for row, one in enumerate(windows):
        places = [at + (row - (len(windows) - 1) / 2) * width for at in range(len(x))]
        errors = [error / scale for error in one.errors(x)]
        axes.bar(places, errors, 0.92 * width, color=look.SERIES[row], label=f"Z = {one.zero_point}")
    for edge in (-0.5, 0.5):
        axes.axhline(edge, color=look.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axhline(0, color=look.LINE, linewidth=0.8)
    most = max(abs(error) for one in windows for error in one.errors(x)) / scale
    axes.set(xlim=(-0.6, len(x) - 0.4), ylim=(-1.15 * max(most, 0.55), 1.15 * max(most, 0.55)))
    axes.set_xticks(range(len(x)), [f"{one:g}" for one in x])
    axes.set_yticks([-0.5, 0, 0.5], ["−S/2", "0", "S/2"])
    axes.tick_params(labelsize=9, pad=2)
    axes.text(0, 1.06, "error x̃ − x", transform=axes.transAxes, weight="bold", size=10.5)
    look.bare(axes, "bottom")
    axes.tick_params(bottom=False)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "ncols": len(windows)}
    axes.legend(fontsize=9, handlelength=1.2, borderaxespad=0.2, **place)


def _sentence(x: Sequence[int | float], one: Window) -> str:
    codes = ", ".join(str(q).replace("-", "−") for q in one.codes)
    values = ", ".join(f"{value:.2f}" for value in one.values)
    worst = max(abs(error) for error in one.errors(x))
    ends = f"{sum(one.clamped)} clamped" if any(one.clamped) else "none clamped"
    return f"Z = {one.zero_point}: codes {codes}; back {values}; worst error {worst:.3f}, {ends}."
