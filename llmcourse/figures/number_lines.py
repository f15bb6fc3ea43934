"""The lecture's worked example on a line of multiples of its scale, for zero points rounded two ways.

    X_q = clamp(R(X / S) − Z, −128, 127),   X̃ = S (X_q + Z)

A zero point only chooses which 256 neighbouring multiples of S have a code: a window that it slides along the
line. The exact Z is no integer, so the window does not end where the range does; what sticks out is clamped.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from llmcourse.figures import style as look
from llmcourse.quantization.grid import code_range
from llmcourse.quantization.lecture_example import BITS, NUMBERS, WorkedExample, exact_parameters

MOST = 3  # zero points that are compared
NEAR = 2  # multiples that are shown on each side of what lies at an end
INSIDE = {"facecolor": "#dce9f4", "edgecolor": look.SERIES[0], "linewidth": 0.9}
CHOSEN = {**INSIDE, "facecolor": look.SERIES[0]}
OUTSIDE = {"facecolor": look.CUT, "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH, "linewidth": 0.7}


def plot_number_lines(
    examples: Sequence[WorkedExample], title: str = "One scale, two zero points"
) -> look.Picture:
    """The whole line, both ends of it seen closely, and the error of every number.

    Args:
        examples: one for each zero point, at most three.

    Raises:
        ValueError: none, or more than can be told apart.
    """
    if not 1 <= len(examples) <= MOST:
        raise ValueError(f"examples must be 1 to {MOST}, got {len(examples)}; make one with worked_example")
    scale, exact = exact_parameters()
    with look.style():
        picture = look.Picture(look.WIDTH, 4.25 + 0.36 * len(examples))
        told = f"S = {float(scale):.5f} · exact Z = {float(exact):.2f}, which is no integer"
        look.heading(picture, title, f"{told} · X_q = clamp(R(X / S) − Z), X̃ = S (X_q + Z)")
        _draw_line(picture, examples[0])
        for left, end in ((0.115, 0), (0.575, -1)):
            _draw_end(picture, left, end, examples)
        _draw_errors(picture, examples)
        picture.alt = f"{title}, S = {float(scale):.5f}. " + " ".join(map(_sentence, examples))
    return picture


def _place(picture: look.Picture, left: float, top: float, width: float, height: float):
    """Axes by inches from the top; left and width in shares of the whole."""
    whole = picture.get_figheight()
    return picture.add_axes((left, 1 - (top + height) / whole, width, height / whole))


def _draw_line(picture: look.Picture, example: WorkedExample) -> None:
    """All numbers, and the window of one zero point: at this size all windows look the same."""
    axes = _place(picture, 0.115, 0.80, 0.865, 0.42)
    low, high = (code + example.zero_point for code in code_range(BITS))
    axes.set(xlim=(min(0, low - 5), high + 5), ylim=(0, 1), yticks=[])
    axes.add_patch(Rectangle((low - 0.5, 0), high - low + 1, 0.34, **INSIDE))
    places = [float(x / example.scale) for x in NUMBERS]
    axes.plot(places, [0.36] * len(places), linestyle="none", marker=7, markersize=7, color=look.ACCENT)
    for place, x in zip(places, NUMBERS, strict=True):
        axes.text(place, 0.72, f"{float(x):g}", ha="center", va="bottom", size=9.5, color=look.ACCENT)
    axes.text(-0.012, 0.17, "codes", transform=axes.transAxes, ha="right", va="center", size=9.5)
    axes.text(-0.012, 0.86, "X", transform=axes.transAxes, ha="right", va="center", color=look.ACCENT)
    axes.tick_params(bottom=True, labelsize=8.5, pad=1)
    axes.set_xlabel("multiples of S", labelpad=0)
    look.bare(axes, "left")


def _draw_end(picture: look.Picture, left: float, end: int, examples: Sequence[WorkedExample]) -> None:
    """A few multiples around the number at this end, and the code that each zero point gives them."""
    axes = _place(picture, left, 1.80, 0.405, 0.62 + 0.36 * len(examples))
    least, most = code_range(BITS)
    at = NUMBERS[end] / examples[0].scale
    shown = range(round(at) - NEAR, round(at) + NEAR + 1)
    axes.set(xlim=(shown[0] - 0.5, shown[-1] + 0.5), ylim=(len(examples), -1.7), yticks=[])
    for row, one in enumerate(examples):
        for n in shown:
            q = n - one.zero_point
            has, taken = least <= q <= most, q == one.codes[end]
            cell = CHOSEN if taken else INSIDE if has else OUTSIDE
            axes.add_patch(Rectangle((n - 0.5, row + 0.06), 1, 0.88, **cell))
            ink = {"color": look.PAPER, "weight": "bold"} if taken else {}
            if has:
                axes.text(n, row + 0.5, _signed(q), ha="center", va="center", size=9.5, **ink)
        if end == 0:
            beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "size": 9.5}
            axes.text(-0.03, row + 0.5, f"Z = {one.zero_point}", **beside)
    axes.plot(float(at), -0.1, marker=7, markersize=9, color=look.ACCENT, clip_on=False)
    words = f"{float(NUMBERS[end]):g} is {float(at):.2f} S: nearest multiple {round(at)}"
    axes.text(0, 1.0, words, transform=axes.transAxes, va="top", size=9.5, color=look.ACCENT)
    axes.set_xticks(shown)
    axes.tick_params(labelsize=8.5, pad=1)
    axes.set_xlabel("multiples of S", labelpad=0)
    look.bare(axes, "left", "bottom")


def _draw_errors(picture: look.Picture, examples: Sequence[WorkedExample]) -> None:
    axes = _place(picture, 0.115, 3.0 + 0.36 * len(examples), 0.865, 0.88)
    width = 0.8 / len(examples)
    for row, one in enumerate(examples):
        places = [at + (row - (len(examples) - 1) / 2) * width for at in range(len(NUMBERS))]
        errors = [float(error / one.scale) for error in one.errors]
        axes.bar(places, errors, 0.92 * width, color=look.SERIES[row], label=f"Z = {one.zero_point}")
    for edge in (-0.5, 0.5):
        axes.axhline(edge, color=look.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axhline(0, color=look.LINE, linewidth=0.8)
    most = 1.15 * max(0.55, *(float(abs(e) / one.scale) for one in examples for e in one.errors))
    axes.set(xlim=(-0.6, len(NUMBERS) - 0.4), ylim=(-most, most))
    axes.set_xticks(range(len(NUMBERS)), [f"{float(x):g}" for x in NUMBERS])
    axes.set_yticks([-0.5, 0, 0.5], ["−S/2", "0", "S/2"])
    axes.tick_params(labelsize=9, pad=2)
    axes.text(0, 1.06, "error X̃ − X", transform=axes.transAxes, weight="bold", size=10.5)
    look.bare(axes, "bottom")
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "ncols": len(examples)}
    axes.legend(fontsize=9, handlelength=1.2, borderaxespad=0.2, **place)


def _signed(code: int) -> str:
    return str(code).replace("-", "−")


def _sentence(one: WorkedExample) -> str:
    codes = ", ".join(map(_signed, one.codes))
    values = ", ".join(f"{float(value):.2f}" for value in one.restored)
    clamped = sum(q != wanted for q, wanted in zip(one.codes, one.unclamped, strict=True))
    ends = f"{clamped or 'none'} clamped"
    return f"Z = {one.zero_point}: codes {codes}; back {values}; worst error {one.worst_error:.3f}, {ends}."
