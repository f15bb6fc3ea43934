"""02.visible: which slots of a cache a new token may look at."""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK, ragged
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A cache has $S$ *slots* for each row of the batch, and slot $s$ is where the key and value of the token at
position $s$ are kept. Rows hold different numbers of tokens; whatever lies in the slots behind is left over
from before, and must not be looked at. Both are said by one rule: **a token at position $p$ sees the slots
$s \le p$**, its own among them.

Write `visible(lengths, num_new, capacity)`.

- `lengths`: `int64` tensor of shape `(B,)`, how many tokens each row holds *before* the new ones.
- `num_new`: $T \ge 1$, how many tokens each row gets now. The first of them is at position `lengths[b]`.
- `capacity`: $S$, slots of a row; there is room for the new tokens in all rows.
- returns a `bool` tensor of shape `(B, T, S)`, `True` where new token `t` of row `b` may look at slot `s`.

```python
>>> visible(torch.tensor([1, 3]), num_new=2, capacity=6).int()
tensor([[[1, 1, 0, 0, 0, 0],
         [1, 1, 1, 0, 0, 0]],
<BLANKLINE>
        [[1, 1, 1, 1, 0, 0],
         [1, 1, 1, 1, 1, 0]]], dtype=torch.int32)
```
"""

HINTS = (
    "Write down the position of every new token first: a table of B rows and T columns. Where does each row "
    "begin?",
    "positions = lengths[:, None] + torch.arange(num_new), of shape (B, T). The slots are numbered too: "
    "torch.arange(capacity). The mask is one comparison of the two.",
    "To compare every position with every slot, give the positions a last dimension of size 1: "
    "positions[..., None] has the shape (B, T, 1), and broadcasting makes (B, T, S) of it.",
)

HINTS_AT = {
    "several new tokens": (
        "Each new token sees one slot more than the one before it: token t of row b is at position "
        "lengths[b] + t."
    ),
    "rows of different lengths": (
        "Every row begins where its own text ends: no maximum over the batch, and no row for all."
    ),
    "an empty row": "Its first token is at position 0 and sees slot 0, itself: no query is without a key.",
}


def visible(lengths: Int[Tensor, " B"], num_new: int, capacity: int) -> Bool[Tensor, "B T S"]:
    """Slot s is visible from position p where s <= p."""
    positions = lengths[:, None] + torch.arange(num_new)
    return torch.arange(capacity) <= positions[..., None]


def cases(rng: random.Random) -> list[Case]:
    capacity = rng.randint(9, 12)

    def case(label, lengths, num_new, slots=capacity):
        return Case({"lengths": torch.as_tensor(lengths), "num_new": num_new, "capacity": slots}, label)

    return [
        case("one new token", [rng.randint(2, 5)], 1),
        case("several new tokens", [rng.randint(2, 4)], rng.randint(2, 4)),
        case("rows of different lengths", ragged(rng, 4, 1, 6), rng.randint(2, 3)),
        case("an empty row", [rng.randint(2, 4), 0, 0, rng.randint(1, 5)], 3),
        case("a cache that gets full", [capacity - 3, rng.randint(1, 3)], 3),
    ]


def _not_itself(lengths, num_new, capacity):
    return visible(lengths - 1, num_new, capacity)


def _one_too_many(lengths, num_new, capacity):
    return visible(lengths + 1, num_new, capacity)


def _hidden(lengths, num_new, capacity):
    return ~visible(lengths, num_new, capacity)


def _zeros_and_ones(lengths, num_new, capacity):
    return visible(lengths, num_new, capacity).int()


def _all_as_the_last(lengths, num_new, capacity):
    return visible(lengths + num_new - 1, 1, capacity).expand(-1, num_new, -1)


def _all_as_the_first(lengths, num_new, capacity):
    return visible(lengths, 1, capacity).expand(-1, num_new, -1)


def _causal_among_the_new(lengths, num_new, capacity):
    mask = visible(lengths, num_new, capacity)
    return mask & (torch.arange(capacity) >= lengths[:, None, None]) | (num_new == 1) & mask


def _longest_for_all(lengths, num_new, capacity):
    return visible(lengths.max().expand(len(lengths)), num_new, capacity)


def _first_for_all(lengths, num_new, capacity):
    return visible(lengths[:1].expand(len(lengths)), num_new, capacity)


def _blind_where_empty(lengths, num_new, capacity):
    return visible(lengths, num_new, capacity) & (lengths > 0)[:, None, None]


def _in_place(lengths, num_new, capacity):
    lengths += num_new
    return visible(lengths - num_new, num_new, capacity)


EXERCISE = Exercise(
    name="02.visible",
    function="visible",
    title="Which slots a token sees",
    points=6,
    minutes=8,
    level=1,
    asks=ASKS,
    signature="visible(lengths, num_new, capacity)",
    cases=cases,
    reference=visible,
    comparison=Close(axes=("row", "token", "slot")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("does not see itself", _not_itself, "one new token"),
        Mutant("sees one slot too many", _one_too_many, "one new token"),
        Mutant("says what is hidden", _hidden, "one new token"),
        Mutant("returns numbers", _zeros_and_ones, "one new token"),
        Mutant("lets all see what the last sees", _all_as_the_last, "several new tokens"),
        Mutant("lets all see what the first sees", _all_as_the_first, "several new tokens"),
        Mutant("forgets the past", _causal_among_the_new, "several new tokens"),
        Mutant("takes the longest row for all", _longest_for_all, "rows of different lengths"),
        Mutant("takes the first row for all", _first_for_all, "rows of different lengths"),
        Mutant("hides all from an empty row", _blind_where_empty, "an empty row"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)
