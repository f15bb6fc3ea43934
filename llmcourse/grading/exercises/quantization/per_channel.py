"""05.per_channel: a scale for each row of a weight, and the error that is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.quantization import drawn
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
Weights lie around 0, so their range can be **symmetric**: the same to both sides, and no zero point. And they
are known before anything is computed, so each **channel**, a row of the matrix, can have a scale of its own:
a row of large numbers then takes nothing from a row of small ones. For row $n$

$$S_n = \frac{\max_c |w_{nc}|}{2^{b-1} - 1}, \qquad
q_{nc} = \mathrm{round}\Big(\frac{w_{nc}}{S_n}\Big), \qquad \tilde w_{nc} = S_n\, q_{nc}, \qquad \text{error}
= \lVert W - \tilde W \rVert^2 = \sum_{n,c} (w_{nc} - \tilde w_{nc})^2$$

so the codes lie between $-(2^{b-1} - 1)$ and $2^{b-1} - 1$: of 8 bits, between -127 and 127. (The code
$-2^{b-1}$ is left out, so that both sides are alike. With few bits one code more is worth having, and other
schemes use it.)

Write `per_channel(w, bits)`.

- `w`: `float32` tensor of shape `(N, C)`, at least one row and one column. A linear layer computes
  $y = x W^\top$: row $n$ makes output $n$.
- `bits`: 2 to 8.
- returns `(codes, scales, error)`: `codes`, an `int8` tensor of shape `(N, C)`; `scales`, a `float32` tensor
  of shape `(N,)`; and `error`, the sum of the squared differences, a float.

A row may be all zeros. Its codes are 0, and its scale is to be 1, since nothing can be divided by 0. A row of
tiny numbers is no such row: it keeps the scale of the formula, and so do all others.

```python
>>> w = torch.tensor([[1.2, -2.0, 0.5], [0.03, 0.02, -0.01], [0.0, 0.0, 0.0]])
>>> codes, scales, error = per_channel(w, bits=4)
>>> codes
tensor([[ 4, -7,  2],
        [ 7,  5, -2],
        [ 0,  0,  0]], dtype=torch.int8)
>>> scales, round(error, 4)
(tensor([0.2857, 0.0043, 1.0000]), 0.0084)
```
"""

HINTS = (
    "The largest magnitude of each row first: w.abs(), then amax along the columns. Everything else follows "
    "row by row.",
    "scales = w.abs().amax(dim=1) / (2 ** (bits - 1) - 1). For the division each scale belongs to a row: "
    "w / scales[:, None].",
    "scales = torch.where(scales == 0, 1.0, scales) before anything is divided. Then codes = (w / scales[:, "
    "None]).round(), and the error is (w - scales[:, None] * codes).square().sum().item().",
)

ONE_FOR_ALL = "One scale for the whole matrix: that is a scale per tensor. Here each row has its own."
WRONG_AXIS = "These are the scales of columns. A channel is a row: the largest magnitude along dim=1."
SIGNED = "The largest number of a row, not of its magnitudes: a row may reach further below 0 than above it."
HALF = (
    "Here the largest number is code 2^(b−1), which does not fit: 8 bits end at 127. Divide by 2^(b−1) − 1."
)
WHOLE_RANGE = "That is the step of 2^b codes from -max to max. Symmetric: max over 2^(b−1) − 1."
CUT = "The codes are cut off, not rounded: .to(torch.int8) drops what is behind the point. round() first."
MEAN = "The error is a sum over all numbers, not their mean."
ROOT = "The error is the sum of the squares itself; no root is taken."
MAGNITUDES = "The error is the sum of the squared differences, not of their magnitudes."
SHIFTED = "These ranges are not symmetric: the largest code stands for the largest magnitude, and 0 for 0."
HINTS_AT = {
    "more columns than rows": "There are as many scales as rows: shape (N,), one for each output.",
    "a row of zeros": (
        "0 / 0 is NaN, and as int8 it is any code. Replace a scale of 0 by 1, before anything is divided."
    ),
    "a row of tiny numbers": (
        "What is added to every scale, or is the least that it can be, swallows rows whose numbers are "
        "smaller. Replace a scale where it is 0, and only there."
    ),
    "four bits": "The largest code is 2^(b−1) − 1 of the bits that are asked for.",
    "an odd number of bits": "Any number of bits from 2 to 8 may be asked for.",
    "two bits": "Two bits leave the codes -1, 0 and 1.",
}


def per_channel(w: Float[Tensor, "N C"], bits: int) -> tuple[Int[Tensor, "N C"], Float[Tensor, " N"], float]:
    """A scale for each row."""
    return Rows()(w, bits)


def of_rows(w):
    return w.abs().amax(1, keepdim=True)


@dataclass(frozen=True)
class Rows:
    """Symmetric codes; the fields are what mutants get wrong.

    Args:
        peaks: what the largest code stands for, of the weight, with a dimension for the columns.
        levels: the largest code, of the bits.
        guarded: scales that can be divided by.
        rounded: codes.
        error: of the differences.
        returned: scales, of those with a dimension for the columns.
    """

    peaks: Callable = of_rows
    levels: Callable = lambda bits: 2 ** (bits - 1) - 1
    guarded: Callable = lambda scales: torch.where(scales == 0, 1.0, scales)
    rounded: Callable = lambda x: x.round()
    error: Callable = lambda differences: differences.square().sum()
    returned: Callable = lambda scales: scales[:, 0]

    def __call__(self, w, bits):
        scales = self.guarded(self.peaks(w) / self.levels(bits))
        codes = self.rounded(w / scales)
        error = self.error(w - scales * codes).item()
        return codes.to(torch.int8), self.returned(scales).clone(), error


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, columns, bits, changed=lambda w: w, wrong=(), apart=()):
        def draw():
            return {"w": changed(drawn.rows_of(rng, rows, columns, bits)), "bits": bits}

        return Case(dict(telling(draw, per_channel, wrong, apart)), label)

    def with_zeros(w):
        w[rng.randrange(len(w))] = 0.0
        return w

    def with_tiny(w):
        w[rng.randrange(len(w))] *= 2.0**-80
        return w

    size = rng.randint(4, 6)
    return [
        case(FIRST, size, size, 8, apart=TOLD),
        case("more columns than rows", 3, rng.randint(5, 8), 8),
        case("a row of zeros", 3, 5, 8, with_zeros),
        case("a row of tiny numbers", 3, 5, 8, with_tiny),
        case("four bits", 4, 6, 4, wrong=(_always_8,)),
        case("two bits", 3, 6, 2),
        case("an odd number of bits", 4, 6, rng.choice((3, 5, 7)), wrong=(_even_bits,)),
        case("a single row", 1, 6, 8),
    ]


FIRST = "as many rows as columns"
_one_for_all = Rows(
    lambda w: w.abs().amax().expand(len(w), 1),
)
_columns = Rows(lambda w: w.abs().amax(0, keepdim=True), returned=lambda scales: scales[0])
_signed = Rows(lambda w: w.amax(1, keepdim=True))
_half = Rows(levels=lambda bits: 2 ** (bits - 1), rounded=lambda x: x.round().clamp(max=127))
_whole_range = Rows(lambda w: 2 * of_rows(w), levels=lambda bits: 2**bits - 1)
_cut = Rows(rounded=lambda x: x.trunc())
_mean = Rows(error=lambda differences: differences.square().mean())
_root = Rows(error=lambda differences: differences.norm())
_magnitudes = Rows(error=lambda differences: differences.abs().sum())
_shifted = Rows(lambda w: w.amax(1, keepdim=True) - w.amin(1, keepdim=True), levels=lambda bits: 2**bits - 1)
_mean_peak = Rows(lambda w: w.abs().mean(1, keepdim=True))
_zeros = Rows(rounded=torch.zeros_like)
_no_guard = Rows(guarded=lambda scales: scales)
_least = Rows(guarded=lambda scales: scales.clamp(min=1e-8))
_added = Rows(guarded=lambda scales: scales + 1e-12)
_tiny_as_zeros = Rows(guarded=lambda scales: torch.where(scales < 1e-8, 1.0, scales))
_least_is_zero = Rows(guarded=lambda scales: torch.where(scales < 1e-20, 1.0, scales))
_always_8 = Rows(levels=lambda bits: 127)


def _broadcast(w, bits):
    """Scales of the rows, taken for those of the columns where they are divided by."""
    scales = w.abs().amax(1) / (2 ** (bits - 1) - 1)
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (w / scales).round().clamp(-128, 127).to(torch.int8)
    return codes, scales, (w - scales * codes.float()).square().sum().item()


def _even_bits(w, bits):
    return per_channel(w, drawn.power_of_two(bits))


def _in_place(w, bits):
    codes, scales, error = per_channel(w, bits)
    w.copy_(scales[:, None] * codes)
    return codes, scales, error


TOLD = (
    *(_one_for_all, _columns, _broadcast, _signed, _half, _whole_range, _cut, _mean, _root, _magnitudes),
    *(_shifted, _mean_peak, _zeros),
)
ZEROS = "All codes are 0: nothing of the weight is left."
MEAN_PEAK = "The largest code stands for the largest magnitude of a row, not for their mean."
LEAST = (
    "A least scale, or a little added to each, keeps zeros from being divided by. But rows of tiny numbers "
    "are swallowed by it: put 1 where a scale is 0, and only there."
)
BROADCAST = "The scales are those of rows, but divide columns: w / scales[:, None] gives each row its own."

EXERCISE = Exercise(
    name="05.per_channel",
    function="per_channel",
    title="A scale for each row",
    points=10,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="per_channel(w, bits)",
    cases=cases,
    reference=per_channel,
    comparison=Parts(
        {
            "codes": Close(axes=("row", "column")),
            "scales": Close(atol=0.0, rtol=1e-5, axes=("row",)),
            "error": Near(rtol=1e-3),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has one scale for the tensor", _one_for_all, FIRST, ONE_FOR_ALL),
        Mutant("has scales of columns", _columns, FIRST, WRONG_AXIS),
        Mutant("divides columns by the scales of rows", _broadcast, FIRST, BROADCAST),
        Mutant("takes the largest number, not magnitude", _signed, FIRST, SIGNED),
        Mutant("takes the mean magnitude", _mean_peak, FIRST, MEAN_PEAK),
        Mutant("divides by 128", _half, FIRST, HALF),
        Mutant("spreads the range over all codes", _whole_range, FIRST, WHOLE_RANGE),
        Mutant("has a range that is not symmetric", _shifted, FIRST, SHIFTED),
        Mutant("cuts off", _cut, FIRST, CUT),
        Mutant("has only zeros", _zeros, FIRST, ZEROS),
        Mutant("gives the mean error", _mean, FIRST, MEAN),
        Mutant("gives the root of the error", _root, FIRST, ROOT),
        Mutant("adds magnitudes", _magnitudes, FIRST, MAGNITUDES),
        Mutant("divides by a scale of 0", _no_guard, "a row of zeros"),
        Mutant("has a least scale", _least, "a row of zeros", LEAST),
        Mutant("adds a small number to each scale", _added, "a row of zeros", LEAST),
        Mutant("takes tiny rows for zeros", _tiny_as_zeros, "a row of tiny numbers"),
        Mutant("always takes 8 bits", _always_8, "four bits"),
        Mutant("knows 2, 4 and 8 bits alone", _even_bits, "an odd number of bits"),
        Mutant("takes a small limit for zero", _least_is_zero, "a row of tiny numbers"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
