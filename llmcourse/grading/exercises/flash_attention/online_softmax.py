"""03.online_softmax: softmax over scores that come in blocks, each of which is seen once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises.flash_attention.drawn import OWN_SOFTMAX, float_bytes
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import OracleCalls, PeakMemory

ASKS = r"""
A softmax needs the largest of its scores, then the sum of the exponentials, then the weighted mean: three
walks over a row. *One* is enough if three things are kept for each row, and corrected with each block of
scores $s_j$ and values $v_j$ that comes:

$$m' = \max(m, \max_j s_j), \qquad l' = l\, e^{m - m'} + \sum_j e^{s_j - m'}, \qquad
o' = o\, e^{m - m'} + \sum_j e^{s_j - m'} v_j$$

They begin as $m = -\infty$, $l = 0$, $o = 0$. When all blocks have come, $o / l$ is the weighted mean of the
values, and $m + \ln l$ is $\ln \sum_j e^{s_j}$, the *log-sum-exp* of the row.

Write `online_softmax(read, num_blocks)`.

- `read`: a function. `read(i)` gives block `i`, two floating-point tensors: `scores` of shape `(T, S)`, and
  `values` of shape `(S, D)`. All blocks have the same `T` rows and `D` features; `S` may differ from block to
  block. A score of `-inf` weighs nothing.
- `num_blocks`: how many blocks there are, at least 1. The first is block 0.
- returns `(result, log_sum_exp)`, of shapes `(T, D)` and `(T,)`, in the dtype of the scores. A row whose
  scores are all `-inf` gets zeros, and a log-sum-exp of `-inf`: sums over nothing.

Each block is read **once**, and only a few may be in memory at a time. PyTorch's `softmax` and `logsumexp`
are what you build here.

```python
>>> blocks = [([1.0, 0.0], [10.0, 20.0]), ([3.0], [30.0])]          # one row, three scores and values
>>> def read(i):
...     scores, values = blocks[i]
...     return torch.tensor([scores]), torch.tensor(values)[:, None]
>>> online_softmax(read, 2)
(tensor([[27.2960]]), tensor([3.1698]))
```
"""

HINTS = (
    "Begin with m, l and o for all rows at once: tensors of shapes (T,), (T,) and (T, D). Their size is "
    "known when the first block is there. Then one loop over the blocks, with the three lines of the box in "
    "it.",
    "new = torch.maximum(m, scores.amax(-1)); fade = (m - new).exp(); weights = (scores - new[:, "
    "None]).exp(). fade multiplies both what l and what o were; then weights.sum(-1) and weights @ values "
    "are added.",
    "Where new is still -inf, m - new is NaN. Replace it there by 0 for the two subtractions: all "
    "exponentials are then e to the power -inf, which is 0. At the end, l is 0 in such a row: torch.where it "
    "to zeros.",
)

HINTS_AT = {
    "several blocks": (
        "What was summed up to now was summed with the old peak. When the peak grows from m to m', all of "
        "it, l and o alike, is too large by e^(m' − m)."
    ),
    "large scores": (
        "Every exponent must be at most 0: subtract the largest score seen so far, which is neither that of "
        "the first block nor that of this one alone."
    ),
    "rows far apart": (
        "m has a value for each row. Under one peak for all of them, a row whose scores are 200 lower has "
        "only exponentials that float32 rounds to 0."
    ),
    "a block without scores": (
        "The peak is still -inf after a block of nothing but -inf, and -inf - (-inf) is NaN. What should the "
        "exponential of such a score be?"
    ),
    "a row without scores": "l is 0 there, and 0 / 0 is NaN: such a row gets zeros.",
    "each block once": (
        "All that later blocks need of earlier ones is in m, l and o: read(i) for each i, once."
    ),
    "peak memory": (
        "Blocks that are in a list, or joined by torch.cat, are all in memory. Keep m, l and o, and let the "
        "block go before the next one is read."
    ),
}


@dataclass(frozen=True)
class Blocks:
    """Scores and values in blocks, a fresh copy at each reading."""

    blocks: tuple[tuple[Tensor, Tensor], ...]  # S differs from one to the next

    def __call__(self, number: object) -> tuple[Float[Tensor, "T S"], Float[Tensor, "S D"]]:
        """One block.

        Raises:
            TypeError: the number is no int.
            ValueError: there is no such block.
        """
        if type(number) is not int:
            raise TypeError("read must be given the number of a block, an int")
        if not 0 <= number < len(self.blocks):
            raise ValueError(f"read must be given a block in [0, {len(self.blocks) - 1}], got {number}")
        scores, values = self.blocks[number]
        return scores.clone(), values.clone()


@dataclass(frozen=True)
class Walk:
    """What is known of each row, and how it is corrected; the flags are what mutants get wrong.

    Args:
        peak: which peak counts: the largest so far, that of the first block or of the block alone, or none.
        shared: whether one peak is that of all rows.
        own_shift: whether weights are those of the block's own peak.
        guards: whether a peak of -inf is replaced before it is subtracted.
    """

    peak: str = "running"
    shared: bool = False
    fades_total: bool = True
    fades_mixed: bool = True
    own_shift: bool = False
    guards: bool = True
    zero_rows: bool = True
    adds_peak: bool = True

    def __call__(self, read: Callable, numbers: range | list[int]) -> tuple[Tensor, Tensor]:
        seen = None
        for number in numbers:
            seen = self._join(seen, *read(number))
        return self._result(*seen)

    def _join(self, seen, scores, values):
        block = scores.max().expand(len(scores)) if self.shared else scores.amax(-1)
        m, total, mixed = seen or (torch.full_like(block, -torch.inf), 0.0, 0.0)
        new = {
            "running": torch.maximum(m, block),
            "first": block if seen is None else m,
            "block": block,
            "none": torch.zeros_like(block),
        }[self.peak]
        shift = new.masked_fill(new == -torch.inf, 0.0) if self.guards else new
        fade = (m - shift).exp() if self.peak != "none" else torch.ones_like(block)
        weights = (scores - (block if self.own_shift else shift)[:, None]).exp()
        total = total * (fade if self.fades_total else 1.0) + weights.sum(-1)
        mixed = mixed * (fade[:, None] if self.fades_mixed else 1.0) + weights @ values
        return new, total, mixed

    def _result(self, m, total, mixed):
        result = mixed / total[:, None]
        if self.zero_rows:
            result = result.masked_fill((total == 0)[:, None], 0.0)
        return result, total.log() + (m if self.adds_peak else 0.0)


RIGHT = Walk()


def online_softmax(read: Callable, num_blocks: int) -> tuple[Float[Tensor, "T D"], Float[Tensor, " T"]]:
    """One walk over the blocks."""
    return RIGHT(read, range(num_blocks))


def cases(rng: random.Random) -> list[Case]:
    rows, features = rng.randint(3, 5), rng.randint(2, 4)

    def case(label, lengths, scale=1.5, hidden=None, dtype=torch.float32, allows=()):
        blocks = []
        for number, length in enumerate(lengths):
            scores = scale * normal(rng, rows, length, dtype=dtype)
            scores = hidden(number, scores) if hidden else scores
            blocks.append((scores, normal(rng, length, features, dtype=dtype)))
        if not hidden:  # the first row's peak rises with every block
            blocks.sort(key=lambda block: block[0][0].max().item())
        most = lengths[0] if len({*lengths}) == 1 else ", ".join(str(len(values)) for _, values in blocks)
        shown = f"a function; the scores of a block have {rows} rows and {most} columns"
        arguments = {"read": Oracle("read", shown), "num_blocks": len(lengths)}
        return Case(arguments, label, {"read": Blocks(tuple(blocks))}, allows=dict(allows))

    def apart(block, scores):
        """Peaks that rise and fall by more than float32's exponent holds, another way in each row."""
        steps = torch.tensor([0.0, 300.0, 150.0, -200.0]).roll(block)
        return scores + steps[torch.arange(rows) % 4, None]

    def lower(block, scores):
        return scores - (200.0 * (torch.arange(rows) == low))[:, None]

    def some(block, scores):
        return scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.3, -torch.inf)

    def nothing(blocks, row):
        def hidden(block, scores):
            wanted = (torch.arange(rows) == row)[:, None] & (block in blocks)
            return scores.masked_fill(wanted, -torch.inf)

        return hidden

    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    long, many, low = 16, rng.randint(24, 64), rng.randrange(rows)
    block_numbers = rows * long + long * features + 3 * rows * (features + 2)
    lengths = rng.sample(range(2, 9), 4)
    return [
        case("one block", [rng.randint(5, 8)]),
        case("several blocks", [4] * rng.randint(3, 5)),
        case("blocks of different lengths", [*lengths, 1]),
        case("large scores", [5] * 4, hidden=apart),
        case("rows far apart", [5] * 3, hidden=lower),
        case("hidden scores", [6] * 3, hidden=some),
        case("a block without scores", [3] * 4, hidden=nothing((0, 2), rng.randrange(rows))),
        case("a row without scores", [3] * 3, hidden=nothing(range(3), rng.randrange(rows))),
        case("float64", [4] * 3, dtype=torch.float64),
        case("many blocks", [long] * many, allows={"peak_bytes": float_bytes(8 * block_numbers)}),
    ]


def _reads_twice(read, num_blocks):
    """The first walk finds the peaks, as two walks would."""
    for number in range(num_blocks):
        read(number)
    return online_softmax(read, num_blocks)


def _keeps_all(read, num_blocks):
    held = [read(number) for number in range(num_blocks)]
    return online_softmax(held.__getitem__, num_blocks)


def _library(read, num_blocks):
    scores, values = zip(*map(read, range(num_blocks)), strict=True)
    scores, values = torch.cat(scores, -1), torch.cat(values)
    nothing = (scores == -torch.inf).all(-1)[:, None]
    return scores.softmax(-1).masked_fill(nothing, 0.0) @ values, scores.logsumexp(-1)


def _without_the_last(read, num_blocks):
    return RIGHT(read, range(max(1, num_blocks - 1)))


def _mutant(**wrong):
    walk = replace(RIGHT, **wrong)

    def answer(read, num_blocks):
        return walk(read, range(num_blocks))

    return answer


ONCE, MEMORY = OracleCalls("read", name="each block once"), PeakMemory()

EXERCISE = Exercise(
    name="03.online_softmax",
    function="online_softmax",
    title="A softmax in one walk",
    points=14,
    minutes=20,
    level=2,
    asks=ASKS,
    signature="online_softmax(read, num_blocks)",
    cases=cases,
    reference=online_softmax,
    comparison=Parts({"result": Close(axes=("row", "feature")), "log_sum_exp": Close(axes=("row",))}),
    rules=(ONCE, MEMORY, OWN_SOFTMAX),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant(
            "leaves the peak out of the log-sum-exp",
            _mutant(adds_peak=False),
            "one block",
            "The mean is right; the log-sum-exp is m + ln l, and yours is ln l: the peak is missing.",
        ),
        Mutant("does not rescale the sum", _mutant(fades_total=False), "several blocks"),
        Mutant("does not rescale the mixture", _mutant(fades_mixed=False), "several blocks"),
        Mutant("rescales nothing", _mutant(fades_total=False, fades_mixed=False), "several blocks"),
        Mutant("subtracts each block's own peak", _mutant(own_shift=True), "several blocks"),
        Mutant("leaves the last block out", _without_the_last, "several blocks"),
        Mutant("never updates the peak", _mutant(peak="first"), "large scores"),
        Mutant("lets the peak fall", _mutant(peak="block"), "large scores"),
        Mutant("subtracts no peak", _mutant(peak="none", adds_peak=False), "large scores"),
        Mutant("has one peak for all rows", _mutant(shared=True), "rows far apart"),
        Mutant("subtracts a peak of -inf", _mutant(guards=False), "a block without scores"),
        Mutant("divides by an empty sum", _mutant(zero_rows=False), "a row without scores"),
        Mutant("reads the blocks twice", _reads_twice, ONCE.name),
        Mutant("keeps all blocks", _keeps_all, MEMORY.name),
        Mutant("calls the library", _library, OWN_SOFTMAX.name),
    ),
)
