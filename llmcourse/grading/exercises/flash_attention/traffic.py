"""03.traffic: bytes between slow memory and the chip, with the scores written out and without."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Exact, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import COURSE
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
How much does FlashAttention save? Count the bytes that one head moves between slow memory and the chip, each
operand once whenever an operation reads or writes it.

*Three operations*, each of which writes what the next one reads: $Q K^\top$ gives $T \times S$ scores; the
softmax makes $T \times S$ weights of them; the weights times $V$ give the result, $T \times D$.

*Tiles*: each tile of queries is read once, and its part of the result written once. For each tile of queries,
all keys and values are read. Scores and weights are never written.

Write `traffic(num_queries, num_keys, head_dim, query_tile, number_bytes)`.

- `num_queries`, `num_keys`, `head_dim`: $T$, $S$ and $D$; every query sees every key.
- `query_tile`: queries in a tile; the last one has what is left.
- `number_bytes`: bytes of a number, 2 for bf16. Scores and weights have the same.
- returns `(unfused, tiled)`, two integers: the bytes of the three operations, and those with tiles.

```python
>>> traffic(num_queries=4, num_keys=4, head_dim=2, query_tile=2, number_bytes=1)
(96, 48)
>>> unfused, tiled = traffic(16_384, 16_384, 64, 128, 2)
>>> round(unfused / tiled, 1)  # how many times the traffic of the tiles
4.0
```
"""

HINTS = (
    "Make a list of the reads and writes of each operation, with the shape of each. There are eight entries "
    "for the three operations, and four of them are T × S.",
    "The tiles read Q once and write the result once. Keys and values are read again for each tile of "
    "queries: how many of those are there?",
    "tiles = -(-num_queries // query_tile), rounded up. tiled = number_bytes · (2 · T · D + tiles · 2 · S · "
    "D).",
)

HINTS_AT = {
    "more keys than queries": "Q and the result have T rows, K and V have S.",
    "a tile that is left over": "What is left over is a tile too, and reads all keys: round up.",
    "numbers of several bytes": "All of it is in bytes: number_bytes for each number.",
}


def traffic(
    num_queries: int, num_keys: int, head_dim: int, query_tile: int, number_bytes: int
) -> tuple[int, int]:
    """Bytes of three operations, and of tiles."""
    return _count(num_queries, num_keys, head_dim, query_tile, number_bytes)


def _count(num_queries, num_keys, head_dim, query_tile, number_bytes, scores=4, tiles=None):
    """The parameters at the end are what mutants get wrong: how often scores move, and how many tiles."""
    tiles = -(-num_queries // query_tile) if tiles is None else tiles
    ends, keys = 2 * num_queries * head_dim, 2 * num_keys * head_dim
    unfused = ends + keys + scores * num_queries * num_keys
    return number_bytes * unfused, number_bytes * (ends + tiles * keys)


def cases(rng: random.Random) -> list[Case]:
    def case(label, queries, keys, tile, number_bytes=1):
        arguments = {"num_queries": queries, "num_keys": keys, "head_dim": 2 * rng.randint(2, 64)}
        return Case(arguments | {"query_tile": tile, "number_bytes": number_bytes}, label)

    tile = rng.randint(5, 20)
    whole = tile * rng.randint(3, 9)
    return [
        case("as many keys as queries", whole, whole, tile),
        case("more keys than queries", whole, whole + rng.randint(5, 900), tile),
        case("a tile that is left over", whole + rng.randint(1, tile - 1), whole, tile),
        case("numbers of several bytes", whole, whole, tile, rng.choice((2, 4))),
        case("a single query", 1, rng.randint(1000, 9000), tile, 2),
        case("a long text", 64 * rng.randint(4, 8), 64 * rng.randint(8, 12), 64, 2),
    ]


def _mutant(**wrong):
    def answer(**given):
        return _count(**given, **wrong)

    return answer


def _keys_once(**given):
    return _count(**given, tiles=1)


def _rounds_down(num_queries, num_keys, head_dim, query_tile, number_bytes):
    tiles = num_queries // query_tile
    return _count(num_queries, num_keys, head_dim, query_tile, number_bytes, tiles=tiles)


def _square(num_queries, num_keys, head_dim, query_tile, number_bytes):
    return _count(num_queries, num_queries, head_dim, query_tile, number_bytes)


def _numbers(number_bytes, **given):
    return _count(**given, number_bytes=1)


def _swapped(**given):
    return traffic(**given)[::-1]


def _one_tile_more(num_queries, num_keys, head_dim, query_tile, number_bytes):
    tiles = num_queries // query_tile + 1
    return _count(num_queries, num_keys, head_dim, query_tile, number_bytes, tiles=tiles)


EXERCISE = Exercise(
    name="03.traffic",
    function="traffic",
    title="What tiles save",
    points=6,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="traffic(num_queries, num_keys, head_dim, query_tile, number_bytes)",
    cases=cases,
    reference=traffic,
    comparison=Parts({"unfused": Exact(), "tiled": Exact()}),
    rules=(Forbid(names=(*LIBRARIES, *COURSE)),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("writes the scores once", _mutant(scores=1), "as many keys as queries"),
        Mutant("does not write the weights", _mutant(scores=2), "as many keys as queries"),
        Mutant("reads the keys once", _keys_once, "as many keys as queries"),
        Mutant("gives the two the other way round", _swapped, "as many keys as queries"),
        Mutant("always counts a tile more", _one_tile_more, "as many keys as queries"),
        Mutant("takes as many keys as queries", _square, "more keys than queries"),
        Mutant("drops the last tile", _rounds_down, "a tile that is left over"),
        Mutant("counts numbers", _numbers, "numbers of several bytes"),
    ),
)
