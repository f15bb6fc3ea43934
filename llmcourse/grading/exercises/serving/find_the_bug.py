"""03.find_the_bug: attention over blocks that is right for most lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import OWN_WORK
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A colleague has joined the two halves of this lab: one decoding step of attention, whose keys and values lie
in the blocks of a pool, and whose scores come block by block. It is in use, for prompts that are longer than
a block, and nobody complains; but texts that are generated twice, once alone and once in a batch whose blocks
are of another size, now and then differ in a word. Her tests have texts of 10, 25 and 70 tokens in blocks of
16, and pass.

Find the one mistake in `paged_attention(q, keys, values, tables, lengths)` and mend it.

- `q`: `float32` tensor of shape `(B, D)`, the query of each request, of one head.
- `keys`, `values`: the pool, tensors of shape `(N, S, D)`: `N` blocks of `S` tokens each.
- `tables`: a list for each request, the numbers of its blocks in the order of its text. It has exactly as
  many as its tokens need. Requests may share blocks.
- `lengths`: list of integers, how many tokens each request holds, at least 1. Token `i` lies in slot `i % S`
  of block `table[i // S]`; slots behind the last token are left over from others.
- returns the mixtures of values, a tensor of shape `(B, D)`.

```python
>>> keys, values = torch.zeros(4, 2, 1), torch.arange(8.0).view(4, 2, 1)    # 4 blocks of 2 tokens
>>> paged_attention(torch.zeros(1, 1), keys, values, [[3, 1]], [3])        # the mean of 6, 7 and 2
tensor([[5.]])
```
"""

STARTER = '''
def paged_attention(q, keys, values, tables, lengths):
    """One query for each request, over the tokens in the blocks of its table."""
    size, rows = keys.shape[1], []
    for query, table, length in zip(q, tables, lengths, strict=True):
        peak, total, mixed = torch.tensor(float("-inf")), torch.tensor(0.0), torch.zeros_like(query)
        for place, block in enumerate(table):
            held = size if place < len(table) - 1 else length % size
            scores = keys[block] @ query / query.shape[-1] ** 0.5
            scores[held:] = float("-inf")  # left over from others
            new = torch.maximum(peak, scores.max())
            fade, weights = (peak - new).exp(), (scores - new).exp()
            total = total * fade + weights.sum()
            mixed = mixed * fade + weights @ values[block]
            peak = new
        rows.append(mixed / total)
    return torch.stack(rows)
'''

HINTS = (
    "What do texts of 10, 25 and 70 tokens have in common, in blocks of 16? Try one of 32: how many of its "
    "tokens have a weight?",
    "Print held for each block of a text of 7, 8 and 9 tokens in blocks of 4.",
    "The last block of a text holds what the blocks before it do not: length less place times size. That is "
    "length % size as long as the block is not full.",
)

UNDONE = (
    "That was right when it was handed out: more than the one mistake has changed. "
    "labs/03_flash_attention_and_batching.ipynb has the step as it was; begin with it again."
)
HINTS_AT = dict.fromkeys(
    ("part of a block", "several blocks", "a batch", "shared blocks", "large scores"), UNDONE
)


@dataclass(frozen=True)
class Paged:
    """The step; the parameters are what mutants get wrong.

    Args:
        held: the tokens in the last block, of length and size.
        in_order: whether blocks are read in the order of their numbers.
        same_table, same_length: whether the first table, or the longest length, is that of all.
        rescales: whether what was summed is corrected when the peak grows.
        follows: whether the peak follows the scores after the first block.
    """

    held: str = "right"
    in_order: bool = False
    same_table: bool = False
    rescales: bool = True
    follows: bool = True
    scaled: bool = True

    def __call__(self, q, keys, values, tables, lengths):
        tables = [tables[0]] * len(tables) if self.same_table else tables
        rows = zip(q, tables, lengths, strict=True)
        return torch.stack([self._row(query, keys, values, *which) for query, *which in rows])

    def _row(self, query, keys, values, table, length):
        size = keys.shape[1]
        needed = -(-length // size)
        table = list(range(needed)) if self.in_order else table[:needed]
        peak, total, mixed = torch.tensor(-torch.inf), 0.0, 0.0
        for place, block in enumerate(table):
            scores = keys[block] @ query / (len(query) ** 0.5 if self.scaled else 1.0)
            if place == len(table) - 1:
                scores[self._held(length, size) :] = -torch.inf
            new = torch.maximum(peak, scores.max()) if self.follows or not place else peak
            fade, weights = (peak - new).exp() if self.rescales or not place else 1.0, (scores - new).exp()
            total, mixed, peak = total * fade + weights.sum(), mixed * fade + weights @ values[block], new
        return mixed / total

    def _held(self, length, size):
        last = (length - 1) % size + 1
        return {"right": last, "all": size, "one less": last - 1 or 1, "rest": length % size}[self.held]


RIGHT = Paged()


def paged_attention(
    q: Float[Tensor, "B D"],
    keys: Float[Tensor, "N S D"],
    values: Float[Tensor, "N S D"],
    tables: list[list[int]],
    lengths: list[int],
) -> Float[Tensor, "B D"]:
    """Block by block in the order of the table, the last one as far as it is filled."""
    return RIGHT(q, keys, values, tables, lengths)


def cases(rng: random.Random) -> list[Case]:
    features, size, blocks = rng.choice((4, 8)), rng.randint(4, 6), 16

    def rest():
        return rng.randint(2, size - 1)

    def case(label, lengths, shared=0, rising=False):
        numbers = rng.sample(range(8, blocks), 8) + rng.sample(range(8), 8)  # none in its own place
        beginning, tables = [numbers.pop() for _ in range(shared)], []
        for length in lengths:
            own = -(-length // size) - shared
            tables.append([*beginning, *(numbers.pop(0) for _ in range(own))])
        keys, values = (normal(rng, blocks, size, features) for _ in range(2))
        q = 1.5 * normal(rng, len(lengths), features)
        if rising:  # by more than float32's exponent holds, from block to block; the last is not rounded
            q[:, 0], keys[tables[0], :, 0] = (
                features**0.5,
                -150.0 * torch.arange(len(tables[0])).flip(0)[:, None],
            )
        elif not shared:  # the first request's peak rises with every block that is full
            full = lengths[0] // size
            tables[0][:full] = sorted(tables[0][:full], key=lambda block: (keys[block] @ q[0]).max().item())
        arguments = {"q": q, "keys": keys, "values": values}
        return Case(arguments | {"tables": tables, "lengths": list(lengths)}, label)

    whole = rng.randint(2, 3) * size
    return [
        case("part of a block", [rest()]),
        case("several blocks", [3 * size + rest()]),
        case("a batch", [2 * size + rest(), rest(), size + rest()]),
        case("shared blocks", [2 * size + rest(), 3 * size + rest()], shared=2),
        case("large scores", [5 * size + rest()], rising=True),
        case("a full last block", [size + rest(), whole, rest()]),
        case("a single full block", [size]),
    ]


_handed_out = {"torch": torch}
exec(STARTER, _handed_out)


def _another_block(q, keys, values, tables, lengths):
    """A block more than there is, where the last one is full."""
    if any(length // keys.shape[1] >= len(table) for table, length in zip(tables, lengths, strict=True)):
        raise IndexError("list index out of range")
    return paged_attention(q, keys, values, tables, lengths)


def _only_the_last_block(q, keys, values, tables, lengths):
    size = keys.shape[1]
    tables = [table[(length - 1) // size :] for table, length in zip(tables, lengths, strict=True)]
    return paged_attention(q, keys, values, tables, [(length - 1) % size + 1 for length in lengths])


def _of_each_block(q, keys, values, tables, lengths):
    """The mean of what each block alone would give."""
    size, rows = keys.shape[1], []
    for query, table, length in zip(q, tables, lengths, strict=True):
        parts = [
            RIGHT._row(query, keys, values, [block], min(size, length - place * size))
            for place, block in enumerate(table)
        ]
        rows.append(torch.stack(parts).mean(0))
    return torch.stack(rows)


def _clears_the_rest(q, keys, values, tables, lengths):
    for table, length in zip(tables, lengths, strict=True):
        values[table[-1], (length - 1) % keys.shape[1] + 1 :] = 0.0
    return paged_attention(q, keys, values, tables, lengths)


EXERCISE = Exercise(
    name="03.find_the_bug",
    function="paged_attention",
    title="A word now and then",
    points=12,
    minutes=20,
    level=5,
    asks=ASKS,
    signature="paged_attention(q, keys, values, tables, lengths)",
    cases=cases,
    reference=paged_attention,
    comparison=Close(atol=2e-5, rtol=2e-5, axes=("request", "feature")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    starter=STARTER.lstrip(),
    mutants=(
        Mutant("sees what is left over", replace(RIGHT, held="all"), "part of a block"),
        Mutant("does not see the last token", replace(RIGHT, held="one less"), "part of a block"),
        Mutant("reads blocks in the order of the pool", replace(RIGHT, in_order=True), "part of a block"),
        Mutant("forgets the root of D", replace(RIGHT, scaled=False), "part of a block"),
        Mutant("does not rescale", replace(RIGHT, rescales=False), "several blocks"),
        Mutant("takes a softmax of each block", _of_each_block, "several blocks"),
        Mutant("reads the last block alone", _only_the_last_block, "several blocks"),
        Mutant("takes the first table for all", replace(RIGHT, same_table=True), "a batch"),
        Mutant("never updates the peak", replace(RIGHT, follows=False), "large scores"),
        Mutant("as it was handed out", _handed_out["paged_attention"], "a full last block"),
        Mutant("drops a full last block", replace(RIGHT, held="rest"), "a full last block"),
        Mutant("looks for a block too many", _another_block, "a full last block"),
        Mutant("clears what is left over", _clears_the_rest, NoMutation().name),
    ),
)
