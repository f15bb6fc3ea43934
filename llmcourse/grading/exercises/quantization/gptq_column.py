"""05.gptq_column: a column is rounded, and the columns behind it take up what that changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.quantization import drawn
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
What counts of a weight is what the layer gives: $\lVert X W^\top - X \tilde W^\top \rVert^2$ on inputs $X$,
which is a matter of $H = 2 X^\top X$, the **Hessian**. If two columns of $X$ resemble each other, an error in
the one can be made up for in the other. GPTQ rounds column after column, and each time moves the columns that
are not rounded yet so that the layer's output changes least (Frantar et al. 2022, equations 2 and 3). For
column $j$, with the row's scale $S$ and $\tilde w_j = S q_j$:

$$q_j = \mathrm{clamp}\Big(\mathrm{round}\Big(\frac{w_j}{S}\Big), \pm(2^{b-1} - 1)\Big), \qquad
w' = w - \frac{w_j - \tilde w_j}{[H^{-1}]_{jj}}\, [H^{-1}]_{j,:}, \qquad
{H^{-1}}' = H^{-1} - \frac{[H^{-1}]_{:,j}\, [H^{-1}]_{j,:}}{[H^{-1}]_{jj}}$$

In $w'$ column $j$ is $\tilde w_j$ itself. In ${H^{-1}}'$ row and column $j$ are 0, and the rest is the
inverse for the columns that are left: so no later step moves column $j$ again.

Write `gptq_column(w, inverse, column, scales, bits)`, one such step for all rows of a weight.

- `w`: `float64` tensor of shape `(N, C)`, as the steps before have left it.
- `inverse`: `float64` tensor of shape `(C, C)`: $H^{-1}$, likewise. It is symmetric; rows and columns that
  belong to columns rounded before are 0.
- `column`: $j$, which is not rounded yet.
- `scales`: `float64` tensor of shape `(N,)`, the scale of each row.
- `bits`: 2 to 8.
- returns `(codes, w, inverse)`: the codes of column $j$, an `int8` tensor of shape `(N,)`; and $w'$ and
  ${H^{-1}}'$, new tensors.

```python
>>> w, scales = torch.tensor([[0.8, 1.2]]).double(), torch.tensor([1.0]).double()
>>> inverse = torch.linalg.inv(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double())
>>> codes, w, inverse = gptq_column(w, inverse, 0, scales, bits=4)
>>> codes, w                    # 0.8 becomes 1, which is 0.2 too much; half of that is taken off 1.2
(tensor([1], dtype=torch.int8), tensor([[1.0000, 1.1000]], dtype=torch.float64))
>>> inverse
tensor([[0.0000, 0.0000],
        [0.0000, 0.5000]], dtype=torch.float64)
```
"""

HINTS = (
    "First the codes of w[:, column], and what they stand for, scales * codes. The difference is the error "
    "of each row, of shape (N,).",
    "Each row moves by its own error times the same row of the inverse: torch.outer(error / inverse[column, "
    "column], inverse[column]) has the shape of w.",
    "new_w = w - torch.outer(error, inverse[column]) / inverse[column, column], and new_inverse = inverse - "
    "torch.outer(inverse[:, column], inverse[column]) / inverse[column, column].",
)

ALONE = "The other columns stay as they were: that is rounding alone. They are to take up the error."
ADDED = (
    "The other columns move the wrong way. The error is w_j − w̃_j, and w' is w less its share: column j "
    "then comes out as w̃_j."
)
UNDIVIDED = "The error is to be divided by [H⁻¹]_jj: only then does column j come out as w̃_j."
ROOT = "That is divided by the root of [H⁻¹]_jj. The root belongs to the way by Cholesky, 05.gptq."
NEIGHBOUR = (
    "Only one column takes up the error here. All that are not rounded do, each by its entry of [H⁻¹]_j."
)
WRONG_COLUMNS = "The right amounts, one column off: entry k of [H⁻¹]_j belongs to column k."
IN_STEPS = "The error is in steps here. It is a difference of weights: w_j − S q_j."
DIAGONAL = "The other columns move by the diagonal of the inverse. It is row j of it that counts."
NOT_UPDATED = "The codes and weights are right, but the inverse is the one before: column j is to go from it."
ONLY_ZEROED = (
    "Row and column j are 0, but the rest of the inverse is as it was. Leaving a column out of H changes "
    "all of its inverse: that is what is subtracted."
)
INVERSE_UNDIVIDED = "What is taken off the inverse is to be divided by [H⁻¹]_jj: row j then comes out as 0."
CUT = "The codes are cut off, not rounded: .to(torch.int8) drops what is behind the point. round() first."
UNROUNDED = "Column j of w' is not w̃_j: it has not been moved by its own error."
HINTS_AT = {
    "a code past the end": (
        "Clamp before anything else: the error is what is missing to the code that is really stored, and "
        "may be more than half a step."
    ),
    "columns rounded before": (
        "The columns before are fixed. Their entries of the inverse are 0, so the formula leaves them alone: "
        "nothing is to be done about them."
    ),
    "the last column": "Where no column is left to take it up, the error stays; and the inverse becomes 0.",
    "six bits": "There are 2^b codes of b bits, not b²; for 2 and 4 bits both are the same.",
    "another order": (
        "Columns need not be rounded from left to right. Row j of the inverse says what each takes up, "
        "those before column j too; of a column that was rounded it is 0."
    ),
    "a single row": "One row is a matrix, too: w' keeps the shape (1, C).",
    "two bits": "The largest code is 2^(b−1) − 1 of the bits that are asked for.",
}


def gptq_column(
    w: Float[Tensor, "N C"],
    inverse: Float[Tensor, "C C"],
    column: int,
    scales: Float[Tensor, " N"],
    bits: int,
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N C"], Float[Tensor, "C C"]]:
    """One step of equations 2 and 3."""
    return Step()(w, inverse, column, scales, bits)


def eliminated(inverse, column):
    return inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]


@dataclass(frozen=True)
class Step:
    """A step; the fields are what mutants get wrong.

    Args:
        rounded: codes of numbers in steps.
        top: the largest code, of the bits.
        lowest: code, of the largest.
        error: of each row, of the numbers, the scales and the codes.
        factor: what the error is multiplied by, of [H⁻¹]_jj.
        shares: of the columns, of the inverse and the column.
        left: inverse, of the one before and the column.
    """

    rounded: Callable = lambda steps: steps.round()
    top: Callable = lambda bits: 2 ** (bits - 1) - 1
    lowest: Callable = lambda top: -top
    error: Callable = lambda numbers, scales, codes: numbers - scales * codes
    factor: Callable = lambda corner: 1 / corner
    shares: Callable = lambda inverse, column: inverse[column]
    left: Callable = eliminated

    def __call__(self, w, inverse, column, scales, bits):
        top = self.top(bits)
        codes = self.rounded(w[:, column] / scales).clamp(self.lowest(top), top)
        error = self.error(w[:, column], scales, codes) * self.factor(inverse[column, column])
        moved = w - torch.outer(error, self.shares(inverse, column))
        return codes.to(torch.int8), moved, self.left(inverse, column)


def cases(rng: random.Random) -> list[Case]:
    def case(label, columns, column, bits=4, narrow=1.0, rows=3, rounded=None, wrong=(), apart=()):
        def draw():
            inverse, w = torch.linalg.inv(drawn.hessian(rng, columns)), normal(rng, rows, columns).double()
            for before in range(column) if rounded is None else rounded:
                inverse = eliminated(inverse, before)
                inverse[before] = inverse[:, before] = 0.0
            top = drawn.largest(bits)
            scales = narrow * w.abs().amax(1) / top * torch.tensor([1.0, 1.1, 1.2][:rows]).double()
            arguments = {"w": w, "inverse": inverse, "column": column, "scales": scales, "bits": bits}
            steps = w[:, column] / scales
            far = narrow == 1 or steps.abs().max() > top + 0.7
            return arguments if far and drawn.clear(steps) else draw()

        return Case(dict(telling(draw, gptq_column, wrong, apart)), label)

    columns = rng.randint(4, 6)
    return [
        case(FIRST, columns, 0, apart=TOLD),
        case("a code past the end", columns, 0, narrow=0.4, wrong=(_wraps, _error_unclamped, _one_more)),
        case("columns rounded before", columns + 2, rng.randint(2, 3), wrong=(_all_before,)),
        case("the last column", 4, 3),
        case("two bits", 4, 1, bits=2, narrow=0.5, wrong=(_always_4,)),
        case("six bits", columns, 1, bits=6, narrow=0.4, wrong=(_squared_bits,)),
        case("another order", columns, 2, rounded=(columns - 1, 1), wrong=(_behind_only, _left_behind_only)),
        case("a single row", columns, 0, rows=1, wrong=(_squeezed,)),
        case("a single column", 1, 0),
    ]


FIRST = "the first column"
_alone = Step(
    shares=lambda inverse, column: torch.eye(len(inverse)).double()[column] * inverse[column, column]
)
_added = Step(factor=lambda corner: -1 / corner)
_undivided = Step(factor=lambda corner: 1.0)
_root = Step(factor=lambda corner: corner**-0.5)
_root_of_both = Step(
    factor=lambda corner: corner**-0.5,
    left=lambda inverse, j: inverse - torch.outer(inverse[:, j], inverse[j]) * inverse[j, j] ** -0.5,
)
_neighbour = Step(shares=lambda inverse, column: inverse[column] * (torch.arange(len(inverse)) <= column + 1))
_wrong_columns = Step(shares=lambda inverse, column: inverse[column].roll(1))
_in_steps = Step(error=lambda numbers, scales, codes: numbers / scales - codes)
_diagonal = Step(shares=lambda inverse, column: inverse.diagonal())
_not_updated = Step(left=lambda inverse, column: inverse.clone())
_inverse_undivided = Step(
    left=lambda inverse, column: inverse - torch.outer(inverse[:, column], inverse[column])
)
_cut = Step(rounded=lambda steps: steps.trunc())
_unrounded = Step(shares=lambda inverse, column: inverse[column] * (torch.arange(len(inverse)) != column))
_zeros = Step(rounded=torch.zeros_like)
_always_4 = Step(top=lambda bits: 7)


def _zeroed(inverse, column):
    inverse = inverse.clone()
    inverse[column] = inverse[:, column] = 0.0
    return inverse


_only_zeroed = Step(left=_zeroed)


def _behind(inverse, column):
    return torch.arange(len(inverse)) >= column


_one_more = Step(lowest=lambda top: -top - 1)
_squared_bits = Step(top=lambda bits: bits**2 // 2 - 1)
_behind_only = Step(shares=lambda inverse, column: inverse[column] * _behind(inverse, column))
_left_behind_only = Step(
    left=lambda inverse, column: torch.where(
        _behind(inverse, column + 1) & _behind(inverse, column + 1)[:, None], eliminated(inverse, column), 0.0
    )
)


def _squeezed(w, inverse, column, scales, bits):
    """Without the dimension of the only row."""
    codes, moved, left = gptq_column(w, inverse, column, scales, bits)
    return codes, moved.squeeze(0), left


def _wraps(w, inverse, column, scales, bits):
    return Step(top=lambda bits: 10**6)(w, inverse, column, scales, bits)


def _error_unclamped(w, inverse, column, scales, bits):
    """The codes are clamped, the error is that of those that are not."""
    codes, *_ = gptq_column(w, inverse, column, scales, bits)
    return codes, *_wraps(w, inverse, column, scales, bits)[1:]


def _all_before(w, inverse, column, scales, bits):
    """The columns before are moved as well, by what an error in them would have taken."""
    codes, moved, left = gptq_column(w, inverse, column, scales, bits)
    error = w[:, column] - moved[:, column]
    return codes, torch.cat((moved[:, :column] - error[:, None], moved[:, column:]), 1), left


def _in_place(w, inverse, column, scales, bits):
    codes, moved, left = gptq_column(w, inverse, column, scales, bits)
    return codes, w.copy_(moved), left


TOLD = (
    *(
        _alone,
        _added,
        _undivided,
        _root,
        _root_of_both,
        _neighbour,
        _wrong_columns,
        _in_steps,
        _diagonal,
        _not_updated,
    ),
    *(_only_zeroed, _inverse_undivided, _cut, _unrounded),
)

EXERCISE = Exercise(
    name="05.gptq_column",
    function="gptq_column",
    title="An error that is handed on",
    points=12,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="gptq_column(w, inverse, column, scales, bits)",
    cases=cases,
    reference=gptq_column,
    comparison=Parts(
        {
            "codes": Close(axes=("row",)),
            "w": Close(atol=1e-7, rtol=1e-6, axes=("row", "column")),
            "inverse": Close(atol=1e-7, rtol=1e-6, axes=("row", "column")),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("rounds alone", _alone, FIRST, ALONE),
        Mutant("moves the other way", _added, FIRST, ADDED),
        Mutant("does not divide the error", _undivided, FIRST, UNDIVIDED),
        Mutant("divides the error by a root", _root, FIRST, ROOT),
        Mutant("divides both by a root", _root_of_both, FIRST, ROOT),
        Mutant("moves the next column only", _neighbour, FIRST, NEIGHBOUR),
        Mutant("moves the wrong columns", _wrong_columns, FIRST, WRONG_COLUMNS),
        Mutant("hands on an error in steps", _in_steps, FIRST, IN_STEPS),
        Mutant("moves by the diagonal", _diagonal, FIRST, DIAGONAL),
        Mutant("keeps the inverse", _not_updated, FIRST, NOT_UPDATED),
        Mutant("puts zeros into the inverse", _only_zeroed, FIRST, ONLY_ZEROED),
        Mutant("does not divide for the inverse", _inverse_undivided, FIRST, INVERSE_UNDIVIDED),
        Mutant("cuts off", _cut, FIRST, CUT),
        Mutant("leaves the column as it was", _unrounded, FIRST, UNROUNDED),
        Mutant("has only zeros", _zeros, FIRST),
        Mutant("does not clamp", _wraps, "a code past the end"),
        Mutant("hands on the error of a code that is not clamped", _error_unclamped, "a code past the end"),
        Mutant("moves the columns before too", _all_before, "columns rounded before"),
        Mutant("has one code more below 0", _one_more, "a code past the end"),
        Mutant("always takes 4 bits", _always_4, "two bits"),
        Mutant("squares the bits", _squared_bits, "six bits"),
        Mutant("moves no column before", _behind_only, "another order"),
        Mutant("keeps no column before in the inverse", _left_behind_only, "another order"),
        Mutant("loses the only row", _squeezed, "a single row"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
