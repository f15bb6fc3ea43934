"""02.write_cache: new keys and values into the slots of each row, in memory that was allocated once."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK, normal, ragged
from llmcourse.grading.rules import InPlace

ASKS = r"""
The lecture writes $K_{past} \leftarrow K_{past} \oplus k$. Done so, with `torch.cat`, each step copies the
whole cache to append one token to it. A real cache is allocated once, with room for `S` tokens in every row,
and a new token is *written into* its slot. Rows are of different lengths, so they write to different slots.

Write `write_cache(keys, values, lengths, k, v)`.

- `keys`, `values`: the buffers, floating-point tensors of shape `(B, H, S, D)`: rows, key/value heads, slots,
  features. Row `b` holds tokens in its first `lengths[b]` slots; what lies behind is of no meaning.
- `lengths`: `int64` tensor of shape `(B,)`; stays as it is.
- `k`, `v`: tensors of shape `(B, H, T, D)`, keys and values of the `T` new tokens of each row. Token `t` of
  row `b` belongs into slot `lengths[b] + t`.
- returns `(keys, values, new_lengths)`: **the same two buffers**, written in place and otherwise unchanged,
  and a new tensor of shape `(B,)` with the lengths as they are now.

If the new tokens do not fit into some row, raise a `ValueError`, before anything is written.

```python
>>> keys, values, lengths = torch.zeros(2, 1, 4, 1), torch.zeros(2, 1, 4, 1), torch.tensor([0, 2])
>>> k = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
>>> keys, values, lengths = write_cache(keys, values, lengths, k, -k)
>>> keys[:, 0, :, 0]
tensor([[1., 0., 0., 0.],
        [0., 0., 2., 0.]])
>>> lengths
tensor([1, 3])
```
"""

HINTS = (
    "For a single row first, with a slice: keys[b, :, start : start + T] = k[b]. Where is start? Then a "
    "loop over the rows is all that is missing; the loop is right, and is enough here.",
    "lengths[b] is where row b begins to write, and so it ends at lengths[b] + T. Assigning to a slice "
    "writes into the buffer itself; torch.cat and clone make another one.",
    "Without a loop: slots = lengths[:, None] + torch.arange(T) has the shape (B, T). Made (B, 1, T, 1) and "
    "expanded to the shape of k, it is the index for keys.scatter_(2, index, k).",
)

HINTS_AT = {
    "rows of different lengths": (
        "Every row has a slot of its own to begin at: lengths[b], not the longest or the first of them."
    ),
    "slots that were used before": (
        "lengths says where to write, not the contents: slots behind it may be full of what was rolled back, "
        "and are overwritten."
    ),
    "no room in one row": (
        "Before writing: the largest of lengths plus T may be S, and no more. A slice that is too long is no "
        "error by itself, and one that comes in the middle comes when half is written."
    ),
    "a row filled to the last slot": "lengths + T equal to S still fits: only more than S is too much.",
    "written in place": (
        "Assign into keys and values, and return these very tensors. lengths is another matter: lengths + T "
        "makes a new tensor, lengths += T changes that of whoever called you."
    ),
}


def write_cache(
    keys: Float[Tensor, "B H S D"],
    values: Float[Tensor, "B H S D"],
    lengths: Int[Tensor, " B"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T D"],
) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Int[Tensor, " B"]]:
    """Token t of row b into slot lengths[b] + t."""
    new_lengths = lengths + k.shape[2]
    if new_lengths.max() > keys.shape[2]:
        raise ValueError(f"a row holds {keys.shape[2]} tokens, {new_lengths.max()} are needed")
    return (*_written(keys, values, lengths, k, v), new_lengths)


def _written(keys, values, starts, k, v):
    """Both buffers, with the new tokens from each row's start on."""
    index = (starts[:, None] + torch.arange(k.shape[2]))[:, None, :, None].expand_as(k)
    return keys.scatter_(2, index, k), values.scatter_(2, index, v)


def cases(rng: random.Random) -> list[Case]:
    heads, slots, features = rng.randint(2, 3), rng.randint(9, 11), rng.choice((2, 4))

    def case(label, lengths, new, used=False, dtype=torch.float32, raises=None):
        lengths = torch.as_tensor(lengths)
        shape = (len(lengths), heads, slots, features)
        keys, values = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
        if not used:
            behind = (torch.arange(slots) >= lengths[:, None])[:, None, :, None]
            keys, values = keys.masked_fill(behind, 0), values.masked_fill(behind, 0)
        k, v = (normal(rng, len(lengths), heads, new, features, dtype=dtype) for _ in range(2))
        arguments = {"keys": keys, "values": values, "lengths": lengths, "k": k, "v": v}
        return Case(arguments, label, raises=raises)

    full = [rng.randint(0, 3), slots - 2, rng.randint(1, 4)]
    return [
        case("one token", [rng.randint(2, 5)], 1),
        case("several tokens", [rng.randint(2, 4)], rng.randint(2, 4)),
        case("rows of different lengths", ragged(rng, 4, 1, 6), 2),
        case("an empty cache", [0, 0], rng.randint(3, 5)),
        case("slots that were used before", ragged(rng, 3, 1, 5), 2, used=True),
        case("a row filled to the last slot", full, 2),
        case("no room in one row", full, 3, raises=ValueError),
        case("float64", ragged(rng, 3, 1, 5), 1, dtype=torch.float64),
    ]


def _swapped(keys, values, lengths, k, v):
    return write_cache(keys, values, lengths, v, k)


def _old_lengths(keys, values, lengths, k, v):
    return (*write_cache(keys, values, lengths, k, v)[:2], lengths.clone())


def _one_slot_late(keys, values, lengths, k, v):
    return (*_written(keys, values, (lengths + 1).clamp(max=keys.shape[2] - 1), k, v), lengths + k.shape[2])


def _one_longer(keys, values, lengths, k, v):
    keys, values, new = write_cache(keys, values, lengths, k, v)
    return keys, values, new - k.shape[2] + 1


def _backwards(keys, values, lengths, k, v):
    return write_cache(keys, values, lengths, k.flip(2), v.flip(2))


def _longest_for_all(keys, values, lengths, k, v):
    starts = lengths.max().expand(len(lengths))
    return (*_written(keys, values, starts, k, v), lengths + k.shape[2])


def _first_for_all(keys, values, lengths, k, v):
    return (*_written(keys, values, lengths[:1].expand(len(lengths)), k, v), lengths + k.shape[2])


def _first_zero_slot(keys, values, lengths, k, v):
    starts = keys[:, 0].ne(0).any(-1).sum(-1)
    return (*_written(keys, values, starts.clamp(max=keys.shape[2] - k.shape[2]), k, v), lengths + k.shape[2])


def _one_slot_unused(keys, values, lengths, k, v):
    if (lengths + k.shape[2] >= keys.shape[2]).any():
        raise ValueError("full")
    return write_cache(keys, values, lengths, k, v)


def _what_fits(keys, values, lengths, k, v):
    for row, start in enumerate(lengths.tolist()):
        room = keys.shape[2] - start
        keys[row, :, start : start + k.shape[2]] = k[row, :, :room]
        values[row, :, start : start + k.shape[2]] = v[row, :, :room]
    return keys, values, lengths + k.shape[2]


def _looks_too_late(keys, values, lengths, k, v):
    for row, start in enumerate(lengths.tolist()):
        if start + k.shape[2] > keys.shape[2]:
            raise ValueError("full")
        keys[row, :, start : start + k.shape[2]] = k[row]
        values[row, :, start : start + k.shape[2]] = v[row]
    return keys, values, lengths + k.shape[2]


def _copies(keys, values, lengths, k, v):
    return write_cache(keys.clone(), values.clone(), lengths, k, v)


def _lengths_too(keys, values, lengths, k, v):
    keys, values, new = write_cache(keys, values, lengths, k, v)
    return keys, values, lengths.copy_(new)


BUFFERS = InPlace(("keys", "values"))

EXERCISE = Exercise(
    name="02.write_cache",
    function="write_cache",
    title="Writing into the cache",
    points=8,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="write_cache(keys, values, lengths, k, v)",
    cases=cases,
    reference=write_cache,
    comparison=Parts(
        {
            "keys": Close(0.0, 0.0, axes=("row", "head", "slot", "feature")),
            "values": Close(0.0, 0.0, axes=("row", "head", "slot", "feature")),
            "lengths": Close(axes=("row",)),
        }
    ),
    rules=(BUFFERS, OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("swaps keys and values", _swapped, "one token"),
        Mutant("returns the old lengths", _old_lengths, "one token"),
        Mutant("leaves a slot empty", _one_slot_late, "one token"),
        Mutant("counts one token, however many", _one_longer, "several tokens"),
        Mutant("writes them backwards", _backwards, "several tokens"),
        Mutant("writes all rows behind the longest", _longest_for_all, "rows of different lengths"),
        Mutant("writes all rows where the first ends", _first_for_all, "rows of different lengths"),
        Mutant("looks for the first empty slot", _first_zero_slot, "slots that were used before"),
        Mutant("never uses the last slot", _one_slot_unused, "a row filled to the last slot"),
        Mutant("writes what fits", _what_fits, "no room in one row"),
        Mutant("refuses when half is written", _looks_too_late, "no room in one row"),
        Mutant("copies the buffers", _copies, BUFFERS.name),
        Mutant("changes the lengths", _lengths_too, BUFFERS.name),
    ),
)
