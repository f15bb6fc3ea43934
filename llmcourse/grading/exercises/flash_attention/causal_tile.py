"""03.causal_tile: which keys of a tile its queries may see, at ragged ends too."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from llmcourse.grading.compare import Close, Difference, kind, show
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import OWN_WORK
from llmcourse.grading.rules import PeakMemory

ASKS = r"""
In a language model no token sees a later one. A tile cuts a piece out of that triangle, and at the ends of
the text a smaller piece; and where a cache holds the beginning of the text already, there are fewer queries
than keys: **the queries are the last $T$ of the $S$ keys**. Query 0 then stands at position $S - T$, and sees
the keys $0 \ldots S - T$.

Write `causal_tile(first_query, first_key, tile, num_queries, num_keys)`.

- `first_query`, `first_key`: where the tile begins; there is at least one query and one key in it.
- `tile`: it has so many queries and so many keys, or as many as there are left.
- `num_queries`, `num_keys`: $T$ and $S$, with $1 \le T \le S$.
- returns a `bool` tensor with a row for each query of the tile and a column for each key of it, `True` where
  the query may see the key; or `None` where no query of the tile may see any key of it: such a tile is not
  computed at all, which saves half of the work.

The mask of a tile is all that may be made: that of the whole text has $T \cdot S$ elements, and memory is
measured.

```python
>>> causal_tile(first_query=2, first_key=4, tile=4, num_queries=5, num_keys=7).int()
tensor([[1, 0, 0],
        [1, 1, 0],
        [1, 1, 1]], dtype=torch.int32)
>>> causal_tile(first_query=0, first_key=4, tile=2, num_queries=5, num_keys=7) is None
True
```
"""

HINTS = (
    "Write the position of each query of the tile, and of each key of it, as two short vectors. Then the "
    "mask is one comparison of the two, as in 02.visible.",
    "Positions are counted in the whole text: query i stands at num_keys - num_queries + i, key j at j. The "
    "numbers i go from first_query up to the smaller of first_query + tile and num_queries.",
    "mask = keys <= positions[:, None] gives a row for each query. Whether anything is left of it says "
    "mask.any(), and None comes where nothing is.",
)

HINTS_AT = {
    "a tile of the past": (
        "Inside a tile, only positions in the whole text count: there may be no triangle in it."
    ),
    "a tile of the future": "Where no pair is visible, the answer is None, not a mask of False.",
    "more keys than queries": (
        "The queries are the last of the keys: the first of them stands at position num_keys - num_queries, "
        "not at 0."
    ),
    "the last queries": "As many rows as there are queries left: num_queries ends the tile too.",
    "the last keys": "As many columns as there are keys left: num_keys ends the tile too.",
    "a single visible pair": (
        "The last query of the tile sees its first key, and nothing else is visible. It still has to be "
        "computed."
    ),
    "peak memory": "Make the positions of this tile's queries and keys alone, and compare those.",
}


@dataclass(frozen=True)
class TileMask:
    """A mask, or None where there is nothing to see; which of the two it is comes first."""

    def __call__(self, got: object, expected: Bool[Tensor, "rows columns"] | None) -> Difference | None:
        if expected is None and got is not None:
            return Difference(f"got {kind(got)}, expected None", show(got), "None")
        if expected is not None and got is None:
            return Difference("got None, expected a mask", "None", show(expected))
        return None if got is None else Close(axes=("query", "key"))(got, expected)


def _tile(first_query, first_key, tile, num_queries, num_keys, offset=None, further=0):
    """The mask, also where nothing is visible; the last two parameters are what mutants get wrong."""
    offset = num_keys - num_queries if offset is None else offset
    queries = torch.arange(first_query, min(first_query + tile, num_queries))
    keys = torch.arange(first_key, min(first_key + tile, num_keys))
    return keys <= queries[:, None] + offset + further


def _or_none(mask):
    return mask if mask.any() else None


def causal_tile(
    first_query: int, first_key: int, tile: int, num_queries: int, num_keys: int
) -> Bool[Tensor, "rows columns"] | None:
    """Key j is visible to query i where j <= S - T + i."""
    return _or_none(_tile(first_query, first_key, tile, num_queries, num_keys))


def cases(rng: random.Random) -> list[Case]:
    def case(label, first_query, first_key, tile, num_queries, num_keys, limited=False):
        arguments = {"first_query": first_query, "first_key": first_key, "tile": tile}
        arguments |= {"num_queries": num_queries, "num_keys": num_keys}
        return Case(arguments, label, allows={"peak_bytes": 64 * tile * tile} if limited else {})

    tile, row = rng.randint(4, 7), rng.randint(1, 3)
    whole, rest = 5 * tile, rng.randint(2, tile - 2)
    short, past = rng.randint(2, 3) * tile, rng.randint(tile + 1, 2 * tile - 1)
    corner = rng.randrange(1, 9)  # position of the tile's last query beyond the first key of its row of tiles
    long = rng.randrange(1500, 2000)
    end = (long - 1) // tile * tile
    return [
        case("a tile on the diagonal", row * tile, row * tile, tile, whole, whole),
        case("a tile of the past", (row + 1) * tile, (row - 1) * tile, tile, whole, whole),
        case("a tile of the future", (row - 1) * tile, (row + 1) * tile, tile, whole, whole),
        case("more keys than queries", tile, past + tile - 1, tile, short, short + past),
        case("the last queries", 2 * tile, tile + rest, tile, 2 * tile + rest, 2 * tile + rest),
        case("the last keys", tile, short, tile, 2 * tile, short + rest),
        case("a single visible pair", tile, corner + 2 * tile - 1, tile, whole, whole + corner),
        case("one query", 0, 2 * tile, tile, 1, 2 * tile + rest),
        case("a long text", end, end, tile, long, long, limited=True),
    ]


def _not_itself(**given):
    return _or_none(_tile(**given, further=-1))


def _one_too_many(**given):
    return _or_none(_tile(**given, further=1))


def _mirrored(**given):
    mask = _tile(**given)
    return None if not mask.any() else ~mask


def _first_of_the_keys(**given):
    return _or_none(_tile(**given, offset=0))


def _a_triangle_in_each(first_query, first_key, tile, num_queries, num_keys):
    return torch.ones_like(_tile(first_query, first_key, tile, num_queries, num_keys)).tril()


def _never_none(**given):
    return _tile(**given)


def _all_rows(first_query, first_key, tile, num_queries, num_keys):
    offset, more = num_keys - num_queries, num_queries + tile
    return _or_none(_tile(first_query, first_key, tile, more, num_keys, offset))


def _all_columns(first_query, first_key, tile, num_queries, num_keys):
    offset = num_keys - num_queries
    return _or_none(_tile(first_query, first_key, tile, num_queries, num_keys + tile, offset))


def _skips_too_much(first_query, first_key, tile, num_queries, num_keys):
    last = min(first_query + tile, num_queries) - 1 + num_keys - num_queries
    if first_key >= last and last > num_keys - num_queries + first_query:
        return None
    return causal_tile(first_query, first_key, tile, num_queries, num_keys)


def _asks_the_first_query(first_query, first_key, tile, num_queries, num_keys):
    mask = _tile(first_query, first_key, tile, num_queries, num_keys)
    return mask if mask[0].any() else None


def _of_the_whole(first_query, first_key, tile, num_queries, num_keys):
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    return _or_none(mask[first_query : first_query + tile, first_key : first_key + tile])


MEMORY = PeakMemory()

EXERCISE = Exercise(
    name="03.causal_tile",
    function="causal_tile",
    title="A causal mask for tiles",
    points=12,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="causal_tile(first_query, first_key, tile, num_queries, num_keys)",
    cases=cases,
    reference=causal_tile,
    comparison=TileMask(),
    rules=(MEMORY, OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("hides a token from itself", _not_itself, "a tile on the diagonal"),
        Mutant("sees one key too many", _one_too_many, "a tile on the diagonal"),
        Mutant("is the mask of what is hidden", _mirrored, "a tile on the diagonal"),
        Mutant("puts a triangle into each tile", _a_triangle_in_each, "a tile of the past"),
        Mutant("computes every tile", _never_none, "a tile of the future"),
        Mutant("takes the queries for the first keys", _first_of_the_keys, "more keys than queries"),
        Mutant("does not cut the rows", _all_rows, "the last queries"),
        Mutant("does not cut the columns", _all_columns, "the last keys"),
        Mutant(
            "asks the first query alone",
            _asks_the_first_query,
            "the last keys",
            "Not None: the last query of a tile sees furthest, and it sees some of these keys.",
        ),
        Mutant("skips a tile with one visible pair", _skips_too_much, "a single visible pair"),
        Mutant("makes the mask of the whole text", _of_the_whole, MEMORY.name),
    ),
)
