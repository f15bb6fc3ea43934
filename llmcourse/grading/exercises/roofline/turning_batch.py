"""02.turning_batch: from which batch on arithmetic is the limit, if from any."""

from __future__ import annotations

import math
import random

from llmcourse.grading.compare import Near
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
A batch shares the reading of the weights. Each row adds FLOPs, and bytes of its own: its activations and, in
a whole decoding step, its cache. So a step of $B$ rows has

$$\text{FLOPs} = B \cdot \texttt{row\_flops}, \qquad
\text{bytes} = \texttt{shared\_bytes} + B \cdot \texttt{row\_bytes},$$

and its intensity grows with $B$, but not for ever: towards `row_flops / row_bytes`. The step is compute-bound
if its intensity is **greater** than the ridge.

Write `turning_batch(row_flops, shared_bytes, row_bytes, ridge)`.

- `row_flops`, `shared_bytes`: positive ints. `row_bytes`: an int, at least 0. `ridge`: of the machine, in
  FLOP/byte, a positive number.
- returns the smallest batch, an int of at least 1, that makes the step compute-bound; `None` where no batch
  does.

```python
>>> turning_batch(2 * 4096 * 4096, 2 * 4096 * 4096, 2 * 2 * 4096, 153.0)    # a matrix in bf16, on an A100
166
>>> turning_batch(2 * 10**9, 2 * 10**9, 10 * 2**20, 153.0)     # a model of 10⁹ weights, 10 MiB of cache a row
774
>>> turning_batch(2 * 10**9, 2 * 10**9, 20 * 2**20, 153.0)     # 20 MiB a row: too many
```
"""

HINTS = (
    "Write down the condition, FLOPs / bytes > ridge, with B in it, and multiply by the bytes. It is linear "
    "in B.",
    "B · row_flops > ridge · shared_bytes + B · ridge · row_bytes. Bring B to one side. What stands in "
    "front of it may be positive or not, and that decides whether there is such a batch.",
    "With gain = row_flops - ridge · row_bytes: None if gain ≤ 0, else the first whole number above ridge · "
    "shared_bytes / gain. floor plus one is greater even where the quotient is whole.",
)

HINTS_AT = {
    "rows with bytes of their own": "Each row brings its own bytes too: they are added B times.",
    "a late turn": "The batch may be as large as it likes; a formula finds it where a loop has an end.",
    "exactly on the ridge": "It has to be greater than the ridge: where B meets it exactly, take the next.",
    "from the first row on": "Even a single row can be above the ridge. A batch has at least one row.",
    "a long cache": (
        "However large the batch, the intensity stays below row_flops / row_bytes. Is that above the ridge?"
    ),
    "a level on the ridge": (
        "row_flops / row_bytes is the ridge itself here, and the intensity only ever comes near it: no "
        "batch turns."
    ),
}


def turning_batch(row_flops: int, shared_bytes: int, row_bytes: int, ridge: float | int) -> int | None:
    """The first batch above ridge · shared / (flops - ridge · bytes of a row)."""
    gain = row_flops - ridge * row_bytes
    return None if gain <= 0 else math.floor(ridge * shared_bytes / gain) + 1


def cases(rng: random.Random) -> list[Case]:
    def case(label, row_flops, shared_bytes, row_bytes, ridge):
        arguments = {"row_flops": row_flops, "shared_bytes": shared_bytes, "row_bytes": row_bytes}
        return Case(arguments | {"ridge": ridge}, label)

    def turning(label, batch, share):
        """Turns between this batch and the next; rows have so large a share of the bytes that they may."""
        ridge, shared_bytes = round(rng.uniform(20, 400), 1), rng.randint(10**7, 10**10)
        gain = ridge * shared_bytes / (batch + rng.uniform(0.3, 0.7))
        row_bytes = round(share * gain / ridge)
        return case(label, round(gain + ridge * row_bytes), shared_bytes, row_bytes, ridge)

    # Powers of 2: nothing here is rounded.
    power, batch, ridge = 2 ** rng.randint(10, 16), 2 ** rng.randint(3, 8), 2 ** rng.randint(4, 8)
    level, above = rng.randint(10**6, 10**8), rng.uniform(1.5, 9)
    return [
        turning("the weights alone", rng.randint(5, 900), 0),
        turning("rows with bytes of their own", rng.randint(5, 900), rng.uniform(0.2, 3)),
        turning("a late turn", rng.randint(10**5, 10**7), rng.uniform(0.2, 3)),
        case("exactly on the ridge", 4 * ridge * power, 3 * batch * power, power, ridge),
        turning("from the first row on", 0, rng.uniform(0.2, 3)),
        case("a long cache", level, rng.randint(10**7, 10**9), round(above * level / ridge), ridge),
        case("a level on the ridge", level * ridge, rng.randint(10**7, 10**9), level, ridge),
    ]


def _rows_own_bytes_forgotten(row_flops, shared_bytes, row_bytes, ridge):
    return turning_batch(row_flops, shared_bytes, 0, ridge)


def _the_last_below(row_flops, shared_bytes, row_bytes, ridge):
    turns = turning_batch(row_flops, shared_bytes, row_bytes, ridge)
    return turns and turns - 1


def _the_ridge_itself(row_flops, shared_bytes, row_bytes, ridge):
    return math.ceil(ridge)


def _not_whole(row_flops, shared_bytes, row_bytes, ridge):
    gain = row_flops - ridge * row_bytes
    return None if gain <= 0 else ridge * shared_bytes / gain


def _looks_up_to_1024(row_flops, shared_bytes, row_bytes, ridge):
    turns = turning_batch(row_flops, shared_bytes, row_bytes, ridge)
    return turns if turns and turns <= 1024 else None


def _rounds_up(row_flops, shared_bytes, row_bytes, ridge):
    gain = row_flops - ridge * row_bytes
    return None if gain <= 0 else math.ceil(ridge * shared_bytes / gain)


def _from_two_on(row_flops, shared_bytes, row_bytes, ridge):
    turns = turning_batch(row_flops, shared_bytes, row_bytes, ridge)
    return turns and max(2, turns)


def _always_turns(row_flops, shared_bytes, row_bytes, ridge):
    gain = abs(row_flops - ridge * row_bytes)
    return None if not gain else math.floor(ridge * shared_bytes / gain) + 1


def _negative(row_flops, shared_bytes, row_bytes, ridge):
    gain = row_flops - ridge * row_bytes
    return None if not gain else math.floor(ridge * shared_bytes / gain) + 1


def _divides_by_zero(row_flops, shared_bytes, row_bytes, ridge):
    gain = row_flops - ridge * row_bytes
    return None if gain < 0 else math.floor(ridge * shared_bytes / gain) + 1


EXERCISE = Exercise(
    name="02.turning_batch",
    function="turning_batch",
    title="Where the limit changes",
    points=8,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="turning_batch(row_flops, shared_bytes, row_bytes, ridge)",
    cases=cases,
    reference=turning_batch,
    comparison=Near(rtol=0.0, none_says="no batch turns it"),
    rules=(Forbid(names=(*LIBRARIES, "roofline")),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("returns the last batch below", _the_last_below, "the weights alone"),
        Mutant("takes the ridge for the batch", _the_ridge_itself, "the weights alone"),
        Mutant("returns no whole number", _not_whole, "the weights alone"),
        Mutant("forgets the bytes of a row", _rows_own_bytes_forgotten, "rows with bytes of their own"),
        Mutant("looks no further than 1,024", _looks_up_to_1024, "a late turn"),
        Mutant("is content with the ridge itself", _rounds_up, "exactly on the ridge"),
        Mutant("begins with two rows", _from_two_on, "from the first row on"),
        Mutant("says that every step turns", _always_turns, "a long cache"),
        Mutant("has a negative batch", _negative, "a long cache"),
        Mutant("divides by 0", _divides_by_zero, "a level on the ridge"),
    ),
)
