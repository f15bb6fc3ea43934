"""05.clip_range: the range of each row with the least squared error."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A range that ends at the largest magnitude keeps that one number exactly, and pays with longer steps for all
others. With few bits it is better to **clip**: the range ends earlier, at a share $r$ of the largest
magnitude, and what lies beyond gets the last code. Too early, and the clipped numbers cost more than the
short steps save. So try some shares, and take for each row the one whose squared error is the least:

$$S_n(r) = \frac{r \max_c |w_{nc}|}{2^{b-1} - 1}, \qquad
q_{nc} = \mathrm{clamp}\Big(\mathrm{round}\Big(\frac{w_{nc}}{S_n(r)}\Big), \pm(2^{b-1} - 1)\Big), \qquad
e_n(r) = \sum_c \big(w_{nc} - S_n(r)\, q_{nc}\big)^2$$

Write `clip_range(w, bits, shares)`.

- `w`: `float32` tensor of shape `(N, C)`; in each row some number is not 0.
- `bits`: 2 to 8.
- `shares`: a list of floats in (0, 1], at least one, in **any order**.
- returns `(scales, errors)`, two `float32` tensors of shape `(N,)`: for each row the scale of its best share,
  and the error that it leaves. No two shares are equally good for a row.

```python
>>> w = torch.tensor([[2.2, -2.4, 0.3, 3.0], [1.0, -1.1, 0.1, 1.1]])
>>> scales, errors = clip_range(w, bits=2, shares=[1.0, 0.8, 0.4])
>>> scales                          # the first row is cut at 2.4 of 3.0, the second is not
tensor([2.4000, 1.1000])
>>> errors
tensor([0.4900, 0.0200])
```
"""

HINTS = (
    "One share first: scales of all rows, codes, what they stand for, and the sum of the squared "
    "differences of each row. Then a loop over the shares.",
    "Keep all errors, torch.stack(…) of shape (shares, N), and argmin(dim=0) says which share is the best of "
    "each row. Or keep the best so far: torch.where(errors < best, …) row by row.",
    "top = 2 ** (bits - 1) - 1; scales = share * w.abs().amax(1) / top; codes = (w / scales[:, "
    "None]).round().clamp(-top, top); errors = (w - scales[:, None] * codes).square().sum(1).",
)

TOGETHER = "The same share for all rows, the best for their sum. Each row has a best share of its own."
NEVER = "That is the whole range of each row: some share below 1 leaves a smaller error."
SMALLEST = "The smallest share is not the best of every row: clipped numbers cost something, too."
NO_CLAMP = (
    "The codes are not clamped. Then a number beyond the range costs nothing, and shorter steps always win; "
    "but its code does not fit into the bits."
)
CLAMPED_FIRST = "What clipping costs is missing: compare with w itself, not with w clamped to the range."
IN_STEPS = (
    "These errors are in steps, not in numbers: a step has another length for each share. Multiply by S."
)
MAGNITUDES = "The best share is that of the least squared error, not of the least sum of magnitudes."
TENSOR = "These ranges are shares of the largest magnitude of the whole matrix. Take that of each row."
ENDS = "The scales are where the ranges end. A scale is that, divided by 2^(b−1) − 1."
LOWER = "The lowest code is -(2^(b−1) − 1) here: the range is the same to both sides."
MEANS = "The error of a row is the sum of its squares, not their mean."
HINTS_AT = {
    "shares in any order": (
        "A loop that ends at the first share that is no better has not seen all of them: errors may fall "
        "again."
    ),
    "eight bits": "With more bits the steps are short anyway, and less is clipped. Take the bits that are "
    "given.",
    "large numbers": "Numbers may be of any size, and so may errors: begin with infinity.",
    "a single row": "One row is a matrix, too: the scales and the errors have shape (1,).",
    "a single share": "Where there is one share, it is the best; nothing else is tried, not 1 either.",
}


def clip_range(
    w: Float[Tensor, "N C"], bits: int, shares: list[float]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Every share for every row, and the best of each."""
    return Clip()(w, bits, shares)


def of_rows(w):
    return w.abs().amax(1, keepdim=True)


@dataclass(frozen=True)
class Clip:
    """The search; the fields are what mutants get wrong.

    Args:
        peaks: of the weight, with a dimension for the columns.
        tries: shares of those given.
        lowest: code, of the largest.
        clamps: whether codes are kept in the range.
        judged: what the best share has least of, of the weight, the scales, the codes and the largest.
        best: place of each row's share, of what was judged, (shares, N).
        told: errors, of the weight, the scales, the codes and the largest.
    """

    peaks: Callable = of_rows
    tries: Callable = lambda shares: shares
    lowest: Callable = lambda top: -top
    clamps: bool = True
    judged: Callable = lambda w, scales, codes, top: (w - scales * codes).square().sum(1)
    best: Callable = lambda errors: errors.argmin(0)
    told: Callable = lambda w, scales, codes, top: (w - scales * codes).square().sum(1)

    def __call__(self, w, bits, shares):
        top, rows = 2 ** (bits - 1) - 1, torch.arange(len(w))
        scales, judged, told = [], [], []
        for share in self.tries(shares):
            scale = share * self.peaks(w) / top
            codes = (w / scale).round()
            codes = codes.clamp(self.lowest(top), top) if self.clamps else codes
            scales.append(scale[:, 0].expand(len(w)))
            judged.append(self.judged(w, scale, codes, top))
            told.append(self.told(w, scale, codes, top))
        best = self.best(torch.stack(judged))
        return torch.stack(scales)[best, rows], torch.stack(told)[best, rows]


def _margin(w: Tensor, bits: int, shares: list[float]) -> float:
    """How much larger the second least error of a row is than its least, at least, as a share."""
    _, errors = _every_share(w, bits, shares)
    least, second = errors.topk(2, dim=0, largest=False).values
    return (second / least - 1).min().item()


def _takes_the_best(answer: Callable, arguments: dict) -> bool:
    """Whether an answer that is wrong elsewhere is right here."""
    return torch.equal(answer(**arguments)[0], clip_range(**arguments)[0])


FIRST = "falling shares"
LEAST_MARGIN = 0.01  # far more than rounding


def cases(rng: random.Random) -> list[Case]:
    def case(label, shares, bits=3, rows=4, columns=40, unit=1.0, wrong=(), apart=(), right=()):
        def draw():
            return {"w": unit * _tailed(rng, rows, columns), "bits": bits, "shares": shares}

        def clear():
            for _ in range(1000):
                arguments = draw()
                if len(shares) > 1 and _margin(**arguments) <= LEAST_MARGIN:
                    continue
                if all(_takes_the_best(answer, arguments) for answer in right):
                    return arguments
            raise ValueError("shares must be told apart by their errors; draw other weights")

        return Case(dict(telling(clear, clip_range, wrong, apart)), label)

    falling = [1.0, 0.8, 0.6, 0.4]
    return [
        case(FIRST, falling, apart=TOLD),
        case(
            "shares in any order",
            [1.0, 0.3, 0.9, *rng.sample([0.7, 0.55], 2)],
            wrong=(_first_no_better, _all_but_the_last),
            right=(_falling, _rising),  # they are told of by the next case
        ),
        case("two bits", [1.0, 0.7, 0.5, 0.3], bits=2, wrong=(_always_3, _falling, _rising)),
        case("eight bits", [1.0, 0.9, 0.7, 0.5], bits=8, rows=5, columns=rng.randint(20, 30)),
        case("large numbers", falling, columns=rng.randint(50, 60), unit=2.0**20, wrong=(_from_1e9,)),
        case("a single row", falling, rows=1, wrong=(_squeezed,)),
        case("a single share", [rng.choice((0.5, 0.6, 0.7))], wrong=(_tries_1_too,)),
    ]


def _tailed(rng: random.Random, rows: int, columns: int) -> Tensor:
    """Normal numbers, a row's scale of its own, and in each row one that is far out, more or less far."""
    w = normal(rng, rows, columns)
    for row, far in enumerate(rng.sample([2.5, 3.0, 5.5, 7.0, 9.0], rows)):
        w[row, rng.randrange(columns)] = rng.choice((-1, 1)) * far
        w[row] *= rng.uniform(0.05, 1.0)
    return w


_together = Clip(best=lambda errors: errors.sum(1).argmin().expand(errors.shape[1]))
_never = Clip(best=lambda errors: torch.zeros(errors.shape[1], dtype=torch.long))
_smallest = Clip(best=lambda errors: torch.full((errors.shape[1],), len(errors) - 1))
_no_clamp = Clip(clamps=False)
_clamped_first = Clip(
    judged=lambda w, scales, codes, top: (
        (w.clamp(-top * scales, top * scales) - scales * codes).square().sum(1)
    ),
    told=lambda w, scales, codes, top: (
        (w.clamp(-top * scales, top * scales) - scales * codes).square().sum(1)
    ),
)
_in_steps = Clip(
    judged=lambda w, scales, codes, top: (w / scales - codes).square().sum(1),
    told=lambda w, scales, codes, top: (w / scales - codes).square().sum(1),
)
_magnitudes = Clip(judged=lambda w, scales, codes, top: (w - scales * codes).abs().sum(1))
_tensor = Clip(peaks=lambda w: w.abs().amax().expand(len(w), 1))
_lower = Clip(lowest=lambda top: -top - 1)
_means = Clip(told=lambda w, scales, codes, top: (w - scales * codes).square().mean(1))
_every_share = Clip(best=lambda errors: torch.arange(len(errors))[:, None])  # not the best alone: (shares, N)
_all_but_the_last = Clip(tries=lambda shares: shares[:-1])
_tries_1_too = Clip(tries=lambda shares: [*shares, 1.0])


def _first_no_better(w, bits, shares):
    """Each row goes on as long as its error falls."""
    (scales, *others), (errors, *other_errors) = _every_share(w, bits, shares)
    going = torch.ones(len(w), dtype=torch.bool)
    for scale, error in zip(others, other_errors, strict=True):
        going = going & (error < errors)
        scales, errors = torch.where(going, scale, scales), torch.where(going, error, errors)
    return scales, errors


def _falling(w, bits, shares):
    """The same for shares in order, the largest first."""
    return _first_no_better(w, bits, sorted(shares, reverse=True))


def _rising(w, bits, shares):
    return _first_no_better(w, bits, sorted(shares))


def _from_1e9(w, bits, shares):
    """Looks for an error below a number that was thought to be large."""
    scales, errors = clip_range(w, bits, shares)
    found = errors < 1e9
    return torch.where(found, scales, 0.0), torch.where(found, errors, 1e9)


def _squeezed(w, bits, shares):
    """Without dimensions of one element."""
    scales, errors = clip_range(w, bits, shares)
    return scales.squeeze(), errors.squeeze()


def _sorts_shares(w, bits, shares):
    shares.sort()
    return clip_range(w, bits, shares)


def _ends(w, bits, shares):
    scales, errors = clip_range(w, bits, shares)
    return scales * (2 ** (bits - 1) - 1), errors


def _always_3(w, bits, shares):
    return clip_range(w, 3, shares)


def _zeros(w, bits, shares):
    return torch.zeros(len(w)), torch.zeros(len(w))


def _in_place(w, bits, shares):
    scales, errors = clip_range(w, bits, shares)
    end = scales[:, None] * (2 ** (bits - 1) - 1)
    w.copy_(w.clamp(-end, end))
    return scales, errors


TOLD = (
    *(_together, _never, _smallest, _no_clamp, _clamped_first, _in_steps, _magnitudes),
    *(_tensor, _lower, _means, _ends),
)

EXERCISE = Exercise(
    name="05.clip_range",
    function="clip_range",
    title="Where a range should end",
    points=10,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="clip_range(w, bits, shares)",
    cases=cases,
    reference=clip_range,
    comparison=Parts(
        {
            "scales": Close(atol=0.0, rtol=1e-5, axes=("row",)),
            "errors": Close(atol=1e-7, rtol=1e-3, axes=("row",)),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes one share for all rows", _together, FIRST, TOGETHER),
        Mutant("never clips", _never, FIRST, NEVER),
        Mutant("takes the smallest share", _smallest, FIRST, SMALLEST),
        Mutant("does not clamp the codes", _no_clamp, FIRST, NO_CLAMP),
        Mutant("compares with clamped numbers", _clamped_first, FIRST, CLAMPED_FIRST),
        Mutant("counts errors in steps", _in_steps, FIRST, IN_STEPS),
        Mutant("compares sums of magnitudes", _magnitudes, FIRST, MAGNITUDES),
        Mutant("takes shares of the whole matrix", _tensor, FIRST, TENSOR),
        Mutant("has one code more below 0", _lower, FIRST, LOWER),
        Mutant("gives mean errors", _means, FIRST, MEANS),
        Mutant("gives the ends of the ranges", _ends, FIRST, ENDS),
        Mutant("stops where the error grows", _first_no_better, "shares in any order"),
        Mutant("leaves out the last share", _all_but_the_last, "shares in any order"),
        Mutant("always takes 3 bits", _always_3, "two bits"),
        Mutant("tries the whole range too", _tries_1_too, "a single share"),
        Mutant("stops where the error grows, from the largest share", _falling, "two bits"),
        Mutant("stops where the error grows, from the smallest share", _rising, "two bits"),
        Mutant("begins with an error of 1e9", _from_1e9, "large numbers"),
        Mutant("loses the only row", _squeezed, "a single row"),
        Mutant("returns zeros", _zeros, FIRST),
        Mutant("clips its input", _in_place, NoMutation().name),
        Mutant("sorts the shares in place", _sorts_shares, NoMutation().name),
    ),
)
