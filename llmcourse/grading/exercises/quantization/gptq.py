"""05.gptq: all columns of a weight, one after another, with one Cholesky factor."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.quantization import drawn
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
Step by step as in 05.gptq_column, each column would need an inverse of its own, and small errors of each
would grow from step to step. All that is ever used of them is row $j$ of the inverse as it is when column
$j$'s turn comes, from $j$ on. Those rows, each divided by the root of its first element, are the rows of one
triangular matrix: the **Cholesky factor** $U$ of $H^{-1}$, upper triangular with $U^\top U = H^{-1}$ (Frantar
et al. 2022, section 3.3, step 3). So GPTQ is one factor, and then one loop. For $j = 0, 1, \ldots, C - 1$:

$$q_j = \mathrm{clamp}\Big(\mathrm{round}\Big(\frac{w_j}{S}\Big), \pm(2^{b-1} - 1)\Big), \qquad
e = \frac{w_j - S\, q_j}{U_{jj}}, \qquad w_k \leftarrow w_k - e\, U_{jk} \quad \text{for all } k > j$$

where $w_j$ is column $j$ as the steps before have left it, and each row has a scale $S$ of its own, which
stays as it is.

Write `gptq(w, hessian, scales, bits)`.

- `w`: `float64` tensor of shape `(N, C)`.
- `hessian`: `float64` tensor of shape `(C, C)`: $H = 2 X^\top X$ on some inputs of the layer, with enough
  added to its diagonal that it has an inverse.
- `scales`: `float64` tensor of shape `(N,)`.
- `bits`: 2 to 8.
- returns the codes, an `int8` tensor of shape `(N, C)`.

```python
>>> w, scales = torch.tensor([[0.6, 0.6, 0.6], [0.3, 0.4, 0.4]]).double(), torch.ones(2).double()
>>> hessian = torch.tensor([[2.0, 1.8, 1.6], [1.8, 2.0, 1.8], [1.6, 1.8, 2.0]]).double()
>>> gptq(w, hessian, scales, bits=4)    # rounded alone: 1, 1, 1 and 0, 0, 0
tensor([[1, 0, 1],
        [0, 1, 0]], dtype=torch.int8)
```
"""

HINTS = (
    "torch.linalg.inv for the inverse, torch.linalg.cholesky(…, upper=True) for U. Then a loop over the "
    "columns of a copy of w, in order.",
    "In the loop: codes of w[:, j], the error (w[:, j] - scales * codes) / U[j, j], of shape (N,), and then "
    "w[:, j + 1 :] -= torch.outer(error, U[j, j + 1 :]).",
    "Before the loop w = w.clone() and columns = []; in it columns.append(codes); behind it "
    "torch.stack(columns, dim=1).to(torch.int8). clamp(-top, top) comes before the error.",
)

ALONE = (
    "These are the codes of rounding alone. What column j loses has to be taken up by the columns behind it, "
    "before they are rounded. If your loop does that, look at the factor: row j of a lower triangular one "
    "is 0 behind column j. U is upper triangular: cholesky(…, upper=True)."
)
ADDED = (
    "The columns behind move the wrong way: an error that is too little in w_j is w_j − S q_j > 0, and "
    "subtracted."
)
OF_H = "That is row j of H, or its factor. How columns make up for each other is a matter of the inverse."
OTHER_FACTOR = (
    "That is the factor of another order, with U Uᵀ = H⁻¹: it leaves columns out from the last one on. "
    "cholesky(…, upper=True) gives UᵀU."
)
ROOT = "The error is to be divided by U_jj; and U_jk is not divided again."
IN_STEPS = "The error is in steps here. It is a difference of weights: w_j − S q_j."
LAST_FIRST = "The columns are taken from the last to the first. Column 0 is rounded first, as it is."
NEW_SCALES = "The scales are those that are given, whatever becomes of the columns."
CUT = "The codes are cut off, not rounded: .to(torch.int8) drops what is behind the point. round() first."
HINTS_AT = {
    "several columns": (
        "Each column is rounded as the columns before have left it, its error is that of the column so "
        "moved, and all columns behind it take it up: not only the next, and by row j of U, not by row j of "
        "the inverse that was there at the beginning."
    ),
    "a code past the end": (
        "Columns that take up errors may leave the range. Clamp the code first: the error is what is "
        "missing to the code that is really stored, and the next columns take that up too."
    ),
    "two bits": "The largest code is 2^(b−1) − 1 of the bits that are asked for.",
    "many columns": (
        "What a column loses is taken up by all columns behind it, however many there are. Blocks are a "
        "matter of speed: what a block leaves has to reach the columns of the next ones."
    ),
    "six bits": "There are 2^b codes of b bits, not b²; for 2 and 4 bits both are the same.",
    "more columns than a block": (
        "This is a single row of more than 128 columns: it is a matrix all the same, and a block of columns, "
        "if you have any, hands on what it leaves."
    ),
    "a single column": "Where there is one column, it is rounded, and nothing takes up the error.",
}


def gptq(
    w: Float[Tensor, "N C"], hessian: Float[Tensor, "C C"], scales: Float[Tensor, " N"], bits: int
) -> Int[Tensor, "N C"]:
    """A factor, and a loop."""
    return Loop()(w, hessian, scales, bits)


def upper(hessian):
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


@dataclass(frozen=True)
class Loop:
    """Column by column; the fields are what mutants get wrong.

    Args:
        factor: whose row j says what the columns take up, of the Hessian.
        rounded: codes of numbers in steps.
        top: the largest code, of the bits.
        error: of the column, the scales, the codes and the column as it was.
        divided: by what the error is, of the factor's U_jj.
        sign: of what the columns behind take up.
        reach: how many columns behind take it up.
        order: of so many columns.
    """

    factor: Callable = upper
    rounded: Callable = lambda steps: steps.round()
    top: Callable = lambda bits: 2 ** (bits - 1) - 1
    error: Callable = lambda column, scales, codes, before: column - scales * codes
    divided: Callable = lambda corner: corner
    sign: int = -1
    reach: int = 10**6

    def __call__(self, w, hessian, scales, bits):
        row_of, top, original = self.factor(hessian), self.top(bits), w
        w, columns = w.clone(), []
        for j in range(w.shape[1]):
            codes = self.rounded(w[:, j] / scales).clamp(-top, top)
            error = self.error(w[:, j], scales, codes, original[:, j]) / self.divided(row_of[j, j])
            behind = slice(j + 1, j + 1 + self.reach)
            w[:, behind] += self.sign * torch.outer(error, row_of[j, behind])
            columns.append(codes)
        return torch.stack(columns, 1).to(torch.int8)


def _steps(w, hessian, scales, bits):
    """What each column is, in steps, when its turn comes."""
    seen = []

    def noted(steps):
        seen.append(steps)
        return steps.round()

    Loop(rounded=noted)(w, hessian, scales, bits)
    return torch.stack(seen)


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, columns, bits=4, narrow=1.0, wrong=(), apart=()):
        def draw():
            w, hessian = normal(rng, rows, columns).double(), drawn.hessian(rng, columns, related=2.0)
            scales = narrow * w.abs().amax(1) / drawn.largest(bits) * 1.1
            arguments = {"w": w, "hessian": hessian, "scales": scales, "bits": bits}
            return arguments if drawn.clear(_steps(**arguments)) else draw()

        return Case(dict(telling(draw, gptq, wrong, apart)), label)

    return [
        case(FIRST, 20, 2, apart=TOLD),
        case("several columns", 4, rng.randint(5, 6), wrong=LATER),
        case("a code past the end", 4, 5, narrow=0.5, wrong=(_wraps, _error_unclamped)),
        case("two bits", 3, 5, bits=2, narrow=0.6, wrong=(_always_4,)),
        case("six bits", 4, 5, bits=6, narrow=0.5, wrong=(_squared_bits,)),
        case("many columns", 2, rng.randint(12, 16), wrong=(_in_blocks,)),
        case("more columns than a block", 1, rng.randint(135, 140), wrong=(_in_blocks_of_128, _reach_16)),
        case("a single column", 3, 1),
    ]


FIRST = "two columns"
_alone = Loop(sign=0)
_added = Loop(sign=1)
_of_h = Loop(factor=lambda hessian: hessian)
_factor_of_h = Loop(factor=lambda hessian: torch.linalg.cholesky(hessian, upper=True))
_undivided = Loop(divided=lambda corner: 1.0)
_squared = Loop(divided=lambda corner: corner**2)
_in_steps = Loop(error=lambda column, scales, codes, before: column / scales - codes)
_cut = Loop(rounded=lambda steps: steps.trunc())
_zeros = Loop(rounded=torch.zeros_like)
_inverse = Loop(factor=torch.linalg.inv)
_next_only = Loop(reach=1)
_from_before = Loop(error=lambda column, scales, codes, before: before - scales * codes)
_reach_16 = Loop(reach=16)
_squared_bits = Loop(top=lambda bits: bits**2 // 2 - 1)
_always_4 = Loop(top=lambda bits: 7)


def _reversed(hessian):
    """Upper triangular with U Uᵀ = H⁻¹."""
    return torch.linalg.cholesky(torch.linalg.inv(hessian).flip(0, 1)).flip(0, 1)


_other_factor = Loop(factor=_reversed)


def _last_first(w, hessian, scales, bits):
    return gptq(w.flip(1), hessian.flip(0, 1), scales, bits).flip(1)


def _all_but_the_last(w, hessian, scales, bits):
    """The last column is rounded as it was, where there are more than two."""
    codes = gptq(w, hessian, scales, bits)
    if w.shape[1] > 2:
        codes[:, -1] = _alone(w, hessian, scales, bits)[:, -1]
    return codes


def _wraps(w, hessian, scales, bits):
    return Loop(top=lambda bits: 10**6)(w, hessian, scales, bits)


def _error_unclamped(w, hessian, scales, bits):
    top = drawn.largest(bits)
    return _wraps(w, hessian, scales, bits).clamp(-top, top)


def _new_scales(w, hessian, scales, bits):
    """Each column by scales of the columns that are left."""
    row_of, top, w, columns = upper(hessian), drawn.largest(bits), w.clone(), []
    for j in range(w.shape[1]):
        scale = w[:, j:].abs().amax(1) / top
        codes = (w[:, j] / scale).round()
        w[:, j + 1 :] -= torch.outer((w[:, j] - scale * codes) / row_of[j, j], row_of[j, j + 1 :])
        columns.append(codes)
    return torch.stack(columns, 1).to(torch.int8)


def _in_blocks(w, hessian, scales, bits, size=8):
    """Blocks of columns, and what one leaves is not handed on to the next."""
    blocks = [slice(start, start + size) for start in range(0, w.shape[1], size)]
    inverses = [torch.linalg.inv(hessian[b.start :, b.start :])[:size, :size] for b in blocks]
    return torch.cat(
        [gptq(w[:, b], part.inverse(), scales, bits) for b, part in zip(blocks, inverses, strict=True)], 1
    )


def _in_blocks_of_128(w, hessian, scales, bits):
    return _in_blocks(w, hessian, scales, bits, 128)


def _squeezed(w, hessian, scales, bits):
    """Without the dimension of the only row."""
    return gptq(w, hessian, scales, bits).squeeze(0)


def _in_place(w, hessian, scales, bits):
    codes = gptq(w, hessian, scales, bits)
    w.copy_(scales[:, None] * codes)
    return codes


TOLD = (
    _alone,
    _added,
    _of_h,
    _other_factor,
    _undivided,
    _squared,
    _in_steps,
    _cut,
    _last_first,
    _new_scales,
)
LATER = (_inverse, _next_only, _from_before, _all_but_the_last)

EXERCISE = Exercise(
    name="05.gptq",
    function="gptq",
    title="GPTQ",
    points=16,
    minutes=25,
    level=5,
    asks=ASKS,
    signature="gptq(w, hessian, scales, bits)",
    cases=cases,
    reference=gptq,
    comparison=Close(axes=("row", "column")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("rounds alone", _alone, FIRST, ALONE),
        Mutant("moves the other way", _added, FIRST, ADDED),
        Mutant("takes the rows of H", _of_h, FIRST, OF_H),
        Mutant("takes the factor of H", _factor_of_h, FIRST, OF_H),
        Mutant("takes the factor of another order", _other_factor, FIRST, OTHER_FACTOR),
        Mutant("does not divide the error", _undivided, FIRST, ROOT),
        Mutant("divides the error twice", _squared, FIRST, ROOT),
        Mutant("hands on an error in steps", _in_steps, FIRST, IN_STEPS),
        Mutant("cuts off", _cut, FIRST, CUT),
        Mutant("begins with the last column", _last_first, FIRST, LAST_FIRST),
        Mutant("makes the scales anew", _new_scales, FIRST, NEW_SCALES),
        Mutant("has only zeros", _zeros, FIRST),
        Mutant("takes the rows of the inverse at the beginning", _inverse, "several columns"),
        Mutant("moves the next column only", _next_only, "several columns"),
        Mutant("takes the error from the column as it was", _from_before, "several columns"),
        Mutant("rounds the last column as it was", _all_but_the_last, "several columns"),
        Mutant("does not clamp", _wraps, "a code past the end"),
        Mutant("hands on the error of a code that is not clamped", _error_unclamped, "a code past the end"),
        Mutant("always takes 4 bits", _always_4, "two bits"),
        Mutant("hands nothing on from block to block", _in_blocks, "many columns"),
        Mutant("squares the bits", _squared_bits, "six bits"),
        Mutant("hands nothing on between blocks of 128", _in_blocks_of_128, "more columns than a block"),
        Mutant("loses the only row", _squeezed, "more columns than a block"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
