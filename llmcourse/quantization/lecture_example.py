"""The lecture's worked example, to the last digit: six numbers in int8, and which way Z points.

One slide defines X_q = R(X / S) − Z and X̃ = S (X_q + Z). The next one solves for S and Z, with −128 and 127
as the codes of the ends: S (−128 + Z) = 1.2 and S (127 + Z) = 13.6. So

    S = (13.6 − 1.2) / 255 = 0.0486…,   Z = 13.6 / S − 127 = 152.68

The slide writes S · 127 + Z = 13.6 instead, whose solution is Z = 7.42, and prints Z = −152. That is the sign
of the field, x̃ = S (q − Z) (see `grid`), and 152.68 cut off. The codes that it prints follow from its own
definitions with Z = +152: there, 13.6 becomes 280 − 152 = 128, which int8 does not have, and is clamped to
127. Rounded to Z = 153, nothing is clamped, all codes but the last differ by one, and the worst error is half
as large. The last number printed, 13.58, is 279 S = 13.567…, that is 13.57.

In practice the range would reach to 0, so that 0 has a code and Z is one, too: `quantize` gives S = 13.6 /
255 and, in the sign of the field, Z = −128. Here all numbers are far from 0, and steps are longer for it.

Computed in fractions: no digit depends on floating-point rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llmcourse.quantization.grid import code_range

NUMBERS = tuple(Fraction(text) for text in ("1.2", "2.4", "3.6", "11.2", "12.4", "13.6"))
SLIDE_ZERO_POINT, ROUNDED_ZERO_POINT = 152, 153
SLIDE_CODES = (-127, -103, -78, 78, 103, 127)
SLIDE_RESTORED = ("1.22", "2.38", "3.60", "11.18", "12.40", "13.58")  # as printed
BITS = 8


@dataclass(frozen=True)
class WorkedExample:
    """The six numbers for one Z; signs are the lecture's: X_q = R(X / S) − Z, X̃ = S (X_q + Z).

    Attributes:
        scale: S.
        zero_point: Z.
        unclamped: R(X / S) − Z.
        codes: X_q, in [−128, 127].
        restored: X̃.
        numbers: X.
    """

    scale: Fraction
    zero_point: int
    unclamped: tuple[int, ...]
    codes: tuple[int, ...]
    restored: tuple[Fraction, ...]
    numbers: tuple[Fraction, ...] = NUMBERS

    @property
    def field_zero_point(self) -> int:
        """Z in x̃ = S (q − Z), as everywhere else in this package: the other sign."""
        return -self.zero_point

    @property
    def errors(self) -> tuple[Fraction, ...]:
        """X̃ − X, number by number."""
        return tuple(back - x for back, x in zip(self.restored, self.numbers, strict=True))

    @property
    def worst_error(self) -> float:
        """The largest |X̃ − X|."""
        return float(max(map(abs, self.errors)))

    @property
    def squared_error(self) -> float:
        """Δ = ‖X − X̃‖²."""
        return float(sum(error**2 for error in self.errors))


def exact_parameters(numbers: Sequence[Fraction | float] = NUMBERS) -> tuple[Fraction, Fraction]:
    """S and the Z that is not rounded yet, from S (−128 + Z) = min X and S (127 + Z) = max X.

    Args:
        numbers: X; those of the slide, or others. A float is taken as it prints: 1.2 is 12/10.

    Raises:
        ValueError: not two different numbers, which have no scale.
    """
    exact, (least, most) = _fractions(numbers), code_range(BITS)
    if len(set(exact)) < 2:
        raise ValueError(f"numbers must hold two different ones at least, got {list(numbers)}; spread them")
    scale = (max(exact) - min(exact)) / (most - least)
    return scale, max(exact) / scale - most


def misread_zero_point() -> Fraction:
    """What the slide's equations say as they are printed: S · 127 + Z = max X, with Z in the units of X."""
    return max(NUMBERS) - exact_parameters()[0] * code_range(BITS)[1]


def worked_example(
    zero_point: int = SLIDE_ZERO_POINT, numbers: Sequence[Fraction | float] = NUMBERS
) -> WorkedExample:
    """The six numbers quantized and restored with this Z: 152 is the slide's, 153 the nearest.

    Args:
        numbers: others than the slide's, which have a Z of their own, see `exact_parameters`.

    Raises:
        ValueError: not two different numbers.
    """
    exact, (least, most) = _fractions(numbers), code_range(BITS)
    scale, _ = exact_parameters(exact)
    unclamped = tuple(round(x / scale) - zero_point for x in exact)
    codes = tuple(min(max(code, least), most) for code in unclamped)
    restored = tuple(scale * (code + zero_point) for code in codes)
    return WorkedExample(scale, zero_point, unclamped, codes, restored, exact)


def _fractions(numbers: Sequence[Fraction | float]) -> tuple[Fraction, ...]:
    return tuple(Fraction(str(x)) for x in numbers)


def side_by_side(zero_points: Sequence[int] = (SLIDE_ZERO_POINT, ROUNDED_ZERO_POINT)) -> str:
    """A table in Markdown: each number with its code and what comes back, for each Z."""
    examples = [worked_example(zero_point) for zero_point in zero_points]
    columns = [column for z in zero_points for column in (f"X_q, Z = {z}", f"X̃, Z = {z}")]
    lines = [["X", *columns], ["---:"] * (1 + len(columns))]
    for place, x in enumerate(NUMBERS):
        cells = [f"{float(x):.1f}"]
        for example in examples:
            clamped = example.codes[place] != example.unclamped[place]
            came_from = f" (from {example.unclamped[place]})" if clamped else ""
            cells += [f"{example.codes[place]}{came_from}", f"{float(example.restored[place]):.2f}"]
        lines.append(cells)
    for name, key, digits in (("worst error", "worst_error", 4), ("Δ", "squared_error", 6)):
        found = [f"{getattr(example, key):.{digits}f}" for example in examples]
        lines.append([name, *(cell for value in found for cell in ("", value))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
