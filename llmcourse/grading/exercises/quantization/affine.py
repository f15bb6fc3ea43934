"""05.affine: a range of numbers onto codes, with a zero point, and back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Exact, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.quantization import drawn
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NewTensor, NoMutation

ASKS = r"""
A code of $b$ bits is one of $2^b$ integers, from $q_{min} = -2^{b-1}$ to $q_{max} = 2^{b-1} - 1$. To store
numbers that lie between `low` and `high`, let the lowest code stand for `low` and the highest for `high`,
with equal steps in between (Jacob et al. 2018, section 2.1):

$$S = \frac{\text{high} - \text{low}}{2^b - 1}, \qquad
Z = \mathrm{round}\Big(q_{min} - \frac{\text{low}}{S}\Big), \qquad
q = \mathrm{clamp}\Big(\mathrm{round}\Big(\frac{x}{S}\Big) + Z,\ q_{min},\ q_{max}\Big), \qquad
\tilde x = S\,(q - Z)$$

$S$ is the **scale**, the length of a step. $Z$ is the **zero point**, the integer that stands for the number
0; it is not a code itself where the range does not hold 0. A number outside of the range gets the code at
that end.

Write `affine(x, low, high, bits)`.

- `x`: `float32` tensor of shape `(N,)`.
- `low`, `high`: two floats, `low < high`.
- `bits`: 2 to 8.
- returns `(codes, scale, zero_point, restored)`: $q$, an `int8` tensor of shape `(N,)`; $S$, a float; $Z$, an
  int; and $\tilde x$, a `float32` tensor of shape `(N,)`, in new memory.

No number lies in the middle between two codes, nor does $Z$, so it does not matter how such a tie is rounded.

The lecture's example, whose slide writes $\tilde X = S\,(X_q + Z)$, so that its zero point is ours with the
other sign. (It has 152 where rounding gives 153, cut off and not rounded: that is one code more throughout,
and the top is clamped.)

```python
>>> x = torch.tensor([1.2, 2.4, 3.6, 11.2, 12.4, 13.6])
>>> codes, scale, zero_point, restored = affine(x, low=1.2, high=13.6, bits=8)
>>> codes, round(scale, 4), zero_point
(tensor([-128, -104,  -79,   77,  102,  127], dtype=torch.int8), 0.0486, -153)
>>> restored
tensor([ 1.2157,  2.3827,  3.5984, 11.1843, 12.4000, 13.6157])
```
"""

HINTS = (
    "Write the four lines of the box in their order. low, high, S and Z are plain Python numbers, and "
    "Python's round(…) gives an int.",
    "lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1. There are highest - lowest steps between "
    "them, one less than there are codes.",
    "codes = ((x / scale).round() + zero_point).clamp(lowest, highest).to(torch.int8); the numbers come "
    "back as scale * (codes.float() - zero_point).",
)

SIGN = (
    "The zero point has the other sign. x̃ = S (q − Z) here, as in the field; the lecture writes S (X_q + "
    "Z). Then q is round(x / S) + Z."
)
MIXED = (
    "The codes are right, but the numbers come back with the zero point's other sign: what was added to get "
    "the code is subtracted on the way back."
)
THERE = "The codes are those of round(x / S) − Z. Z is the code of the number 0: it is added to get the code."
FROM_127 = (
    "The lowest code is -2^(b−1), one further from 0 than the highest: here every one of the 2^b is used."
)
UNSIGNED = "These codes begin at 0. Signed ones begin at -2^(b−1), and the zero point moves with them."
NO_LOWEST = (
    "Z is −low / S here, as it is for codes from 0 on. The lowest code belongs to it: low gets q_min, so Z "
    "is round(q_min − low / S)."
)
CLAMPED_FIRST = "round(x / S) is clamped here, and Z added behind it. Only their sum is a code: clamp that."
STEPS = "The scale is that of 2^b steps. Between 2^b codes there are 2^b − 1 of them."
CUT = "The codes are cut off, not rounded: .to(torch.int8) drops what is behind the point. round() first."
FLOOR = "The codes are rounded down. The nearest one is at most half a step away: round()."
OWN_RANGE = "The range here is that of x. It is given: low and high, which need not be the ends of x."
AS_THEY_WERE = (
    "These are the numbers as they were, not what their codes stand for: restored has only 2^b different "
    "values."
)
BACK_IN_INT8 = (
    "codes - zero_point is int8, as the codes are, and wraps around beyond 127. Make floats of them first: "
    "codes.float() - zero_point."
)
ZEROS = "Everything comes back as 0: restored is S (q − Z) with the codes of x."
HINTS_AT = {
    "a zero point between two integers": (
        "The zero point is rounded first, and then added to round(x / S). round(x / S + an unrounded Z) "
        "gives another code now and then, and 0 would have no code that stands for it exactly."
    ),
    "a range above 0": (
        "Where the range does not hold 0, Z is an integer beyond the codes. It is kept as it is; only the "
        "codes are clamped."
    ),
    "numbers outside of the range": (
        "A code past the end does not fit into int8 and wraps around, or needs more bits than there are: "
        "clamp the codes to the lowest and the highest."
    ),
    "four bits": "The lowest and the highest code, and the number of steps, are those of `bits` bits.",
    "two bits": "Two bits have four codes, -2 to 1, and three steps between them.",
    "an odd number of bits": "Any number of bits from 2 to 8 may be asked for: 3 have codes from -4 to 3.",
    "a new tensor": "restored is made of the codes; x itself stays as it is.",
}


def affine(
    x: Float[Tensor, " N"], low: float, high: float, bits: int
) -> tuple[Int[Tensor, " N"], float, int, Float[Tensor, " N"]]:
    """A range of numbers on all codes."""
    return Affine()(x, low, high, bits)


def to_codes(x, scale, zero_point, exact):
    return (x / scale).round() + zero_point


@dataclass(frozen=True)
class Affine:
    """The four lines; the fields are what mutants get wrong.

    Args:
        steps: of so many bits.
        lowest: code of so many bits.
        range: of the numbers and the two ends.
        zero: point of the exact one and the ends.
        codes: unclamped, of numbers, scale, zero point and the exact one.
        clamps: whether they are kept between the ends.
        ends: of the codes, of so many bits.
        restores: numbers of codes, scale, zero point and the exact one, and of what they were.
        sign: of the zero point that is returned.
    """

    steps: Callable = lambda bits: 2**bits - 1
    lowest: Callable = lambda bits: -(2 ** (bits - 1))
    range: Callable = lambda x, low, high: (low, high)
    zero: Callable = lambda exact, lowest, highest: round(exact)
    codes: Callable = to_codes
    clamps: bool = True
    ends: Callable = lambda bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    restores: Callable = lambda q, scale, zero_point, exact, x: scale * (q.float() - zero_point)
    sign: int = 1

    def __call__(self, x, low, high, bits):
        low, high = self.range(x, low, high)
        scale = (high - low) / self.steps(bits)
        exact = self.lowest(bits) - low / scale
        zero_point = self.zero(exact, *self.ends(bits))
        codes = self.codes(x, scale, zero_point, exact)
        codes = codes.clamp(*self.ends(bits)) if self.clamps else codes.long()  # which wraps around in int8
        codes = codes.to(torch.int8)
        restored = self.restores(codes, scale, zero_point, exact, x)
        return codes, scale, self.sign * zero_point, restored


@dataclass(frozen=True)
class Plan:
    """What a case is drawn from.

    Args:
        zero_point: the integer that stands for 0.
        between: how far the exact one is from it, in steps.
        bits: of a code.
        outside: how many numbers lie outside of the range, at either end.
        count: of numbers inside.
    """

    zero_point: int
    between: float
    bits: int = 8
    outside: int = 0
    count: int = 8

    def arguments(self, rng: random.Random) -> dict:
        lowest, codes = -(2 ** (self.bits - 1)), 2**self.bits
        scale = rng.uniform(0.03, 0.3)
        low = (lowest - self.zero_point - self.between) * scale
        inside = [rng.randrange(lowest + 1, lowest + codes - 1) for _ in range(self.count)]
        steps = [code - self.zero_point + drawn.offset(rng) for code in inside]
        for end, way in ((lowest, -1), (lowest + codes - 1, 1)):
            steps += [end - self.zero_point + way * rng.uniform(3, 2 * codes) for _ in range(self.outside)]
        rng.shuffle(steps)
        x = torch.tensor([scale * step for step in steps], dtype=torch.float64).float()
        return {"x": x, "low": low, "high": low + scale * (codes - 1), "bits": self.bits}


NEARLY = 1e-6  # how far an exact zero point is from an integer, where it does not matter
FIRST, BETWEEN = "a range around 0", "a zero point between two integers"


def cases(rng: random.Random) -> list[Case]:
    def case(label, plan, wrong=(), apart=()):
        return Case(dict(telling(lambda: plan.arguments(rng), affine, wrong, apart)), label)

    side = rng.choice((-1, 1))
    around = Plan(side * rng.randint(20, 60), side * NEARLY)
    between = replace(around, between=-side * rng.uniform(0.3, 0.4), count=16)  # Z cut off is another
    above = replace(around, zero_point=-rng.randint(140, 250))
    below = replace(around, zero_point=rng.randint(140, 250))
    lecture = {"x": torch.tensor([1.2, 2.4, 3.6, 11.2, 12.4, 13.6]), "low": 1.2, "high": 13.6, "bits": 8}
    return [
        case(FIRST, around, apart=TOLD),
        case(BETWEEN, between, (_unrounded, _unrounded_back, _zero_cut)),
        case("a range above 0", above, (_zero_clamped,)),
        case("a range below 0", below, (_zero_clamped,)),
        case("numbers outside of the range", replace(around, outside=3), (_wraps,)),
        case("four bits", Plan(rng.randint(-5, 4), 0.05, 4, 2), (_always_8, _clamped_to_8)),
        case("two bits", Plan(rng.randint(-1, 0), -0.05, 2, 2)),
        case(
            "an odd number of bits", Plan(rng.randint(-3, 2), 0.05, rng.choice((3, 5, 7)), 2), (_even_bits,)
        ),
        Case(lecture, "the lecture's example"),
    ]


_lectures_sign = Affine(sign=-1)
_other_sign_back = Affine(restores=lambda q, scale, zero_point, exact, x: scale * (q.float() + zero_point))
_other_sign_there = Affine(codes=lambda x, scale, zero_point, exact: (x / scale).round() - zero_point)
_unsigned = Affine(lowest=lambda bits: 0, clamps=False)
_no_lowest = Affine(zero=lambda exact, lowest, highest: round(exact - lowest))
_clamped_first = Affine(
    codes=lambda x, scale, zero_point, exact: (x / scale).round().clamp(-128, 127) + zero_point, clamps=False
)
_from_127 = Affine(lowest=lambda bits: 1 - 2 ** (bits - 1))
_2_to_the_b = Affine(steps=lambda bits: 2**bits)
_cut = Affine(codes=lambda x, scale, zero_point, exact: (x / scale).trunc() + zero_point)
_floor = Affine(codes=lambda x, scale, zero_point, exact: (x / scale).floor() + zero_point)
_own_range = Affine(range=lambda x, low, high: (x.min().item(), x.max().item()))
_as_they_were = Affine(restores=lambda q, scale, zero_point, exact, x: x.clone())
_zeros = Affine(restores=lambda q, scale, zero_point, exact, x: torch.zeros_like(x))
_back_in_int8 = Affine(
    restores=lambda q, scale, zero_point, exact, x: scale * (q - zero_point)  # an int8 tensor less a number
)
_unrounded = Affine(codes=lambda x, scale, zero_point, exact: (x / scale + exact).round())
_unrounded_back = Affine(restores=lambda q, scale, zero_point, exact, x: scale * (q.float() - exact))
_zero_cut = Affine(zero=lambda exact, lowest, highest: int(exact))
_zero_clamped = Affine(zero=lambda exact, lowest, highest: min(max(round(exact), lowest), highest))
_wraps = Affine(clamps=False)
_always_8 = Affine(steps=lambda bits: 255, lowest=lambda bits: -128, ends=lambda bits: (-128, 127))
_clamped_to_8 = Affine(ends=lambda bits: (-128, 127))


def _even_bits(x, low, high, bits):
    return affine(x, low, high, drawn.power_of_two(bits))


def _in_place(x, low, high, bits):
    codes, scale, zero_point, restored = affine(x, low, high, bits)
    return codes, scale, zero_point, x.copy_(restored)


TOLD = (
    *(
        _lectures_sign,
        _other_sign_back,
        _other_sign_there,
        _unsigned,
        _no_lowest,
        _clamped_first,
        _from_127,
        _2_to_the_b,
        _cut,
        _floor,
    ),
    *(_own_range, _as_they_were, _back_in_int8, _zeros),
)
EXERCISE = Exercise(
    name="05.affine",
    function="affine",
    title="A range, and back",
    points=10,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="affine(x, low, high, bits)",
    cases=cases,
    reference=affine,
    comparison=Parts(
        {
            "codes": Close(axes=("number",)),
            "scale": Near(),
            "zero_point": Exact(),
            "restored": Close(atol=1e-6, rtol=1e-5, axes=("number",)),
        }
    ),
    rules=(NoMutation(), NewTensor(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has the lecture's sign of the zero point", _lectures_sign, FIRST, SIGN),
        Mutant("adds the zero point on the way back", _other_sign_back, FIRST, MIXED),
        Mutant("subtracts the zero point on the way there", _other_sign_there, FIRST, THERE),
        Mutant("begins at code 0", _unsigned, FIRST, UNSIGNED),
        Mutant("leaves the lowest code out of the zero point", _no_lowest, FIRST, NO_LOWEST),
        Mutant("clamps before the zero point is added", _clamped_first, FIRST, CLAMPED_FIRST),
        Mutant("begins at code -127", _from_127, FIRST, FROM_127),
        Mutant("counts codes for steps", _2_to_the_b, FIRST, STEPS),
        Mutant("cuts off", _cut, FIRST, CUT),
        Mutant("rounds down", _floor, FIRST, FLOOR),
        Mutant("takes the ends of x", _own_range, FIRST, OWN_RANGE),
        Mutant("gives the numbers back as they were", _as_they_were, FIRST, AS_THEY_WERE),
        Mutant("subtracts in int8", _back_in_int8, FIRST, BACK_IN_INT8),
        Mutant("restores zeros", _zeros, FIRST, ZEROS),
        Mutant("does not round the zero point for the codes", _unrounded, BETWEEN),
        Mutant("does not round the zero point on the way back", _unrounded_back, BETWEEN),
        Mutant("cuts the zero point off", _zero_cut, BETWEEN),
        Mutant("clamps the zero point", _zero_clamped, "a range above 0"),
        Mutant("does not clamp", _wraps, "numbers outside of the range"),
        Mutant("always takes 8 bits", _always_8, "four bits"),
        Mutant("clamps to 8 bits", _clamped_to_8, "four bits"),
        Mutant("knows 2, 4 and 8 bits alone", _even_bits, "an odd number of bits"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
