"""03.tiled_attention: attention whose scores are never all in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.flash_attention.drawn import OWN_SOFTMAX, float_bytes
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import NoMutation, PeakMemory

ASKS = r"""
$\mathrm{softmax}(Q K^\top / \sqrt{D})\, V$ is a matrix of $T \times D$ numbers. On the way to it, PyTorch's
three operations make a matrix of $T \times S$, which for long texts is larger than all else. FlashAttention
makes its scores *tile by tile*: some queries with some keys, whose scores join a running softmax and are
forgotten.

Write `tiled_attention(q, k, v, tile)`.

- `q`: `float32` tensor of shape `(T, D)`, the queries of one head.
- `k`, `v`: tensors of shape `(S, D)`, its keys and values. Every query sees all keys.
- `tile`: at most so many queries, and at most so many keys, meet in one tile. The last tile of a row or of a
  column is smaller where `tile` does not divide `T` or `S`; `T` and `S` may be smaller than a tile.
- returns the mixtures of values, a tensor of shape `(T, D)`.

The values are not all that counts: **the memory is measured**. Of the tensors that you make, those that are
alive at one time may hold no more than $3\,T D$ numbers and eight tiles of $\mathit{tile} \cdot
(\mathit{tile} + 2 D)$ numbers. Nothing that is as long as all keys fits into that where there are many: no
row of tiles, no row of scores of a single query, no copy of the keys. PyTorch's `softmax` and `logsumexp` may
not be used.

```python
>>> q, k = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
>>> tiled_attention(q, k, torch.tensor([[1.0], [2.0], [6.0]]), tile=2)  # 2 × 2, 2 × 1
tensor([[1.1967],
        [3.0000]])
```
"""

HINTS = (
    "Two loops, the queries outside: for each tile of queries the running softmax of 03.online_softmax "
    "begins anew, and a loop over the tiles of keys feeds it. What is then written of the result?",
    "for first in range(0, T, tile): and inside it for start in range(0, S, tile):. A slice past the end is "
    "cut by itself: q[first : first + tile]. The scores of a tile: q_tile @ k_tile.T / D ** 0.5.",
    "out = torch.empty_like(q) before the loops, peak, total and mixed for the queries of one tile before "
    "the inner loop, and out[first : first + tile] = mixed / total[:, None] after it.",
)

HINTS_AT = {
    "several tiles": (
        "The softmax goes over all keys, not over those of a tile: when a tile brings a larger score, what "
        "was summed before it is scaled down. 03.online_softmax did that."
    ),
    "tiles that do not divide": (
        "The rest behind the last whole tile counts as well: range(0, S, tile) has a start for it, "
        "range(S // tile) has none."
    ),
    "large scores": "Subtract the largest score seen so far, and only that.",
    "a long row of scores": (
        "Nothing as long as S fits here: not the scores of one query with all keys, nor a copy of the keys. "
        "Scores belong to a tile, at most tile queries with at most tile keys, and are forgotten."
    ),
    "own work": (
        "PyTorch's softmax needs all scores of a row at once, and its attention all of everything. Keep the "
        "peak, the sum and the mixture of each row, as in 03.online_softmax."
    ),
    "peak memory": (
        "Which of your tensors has a dimension of T or S? Only the inputs and the result should. Scores have "
        "the shape of one tile, at most tile × tile."
    ),
}


@dataclass(frozen=True)
class Tiles:
    """Attention in tiles; the parameters are what mutants get wrong.

    Args:
        query_tile, key_tile: rows of a tile, None for those that are asked for, 0 for all.
        whole: whether only whole tiles of keys count, but for a first one that is not.
        rescales: whether what was summed is corrected when the peak grows.
        follows: whether the peak follows the scores after the first tile.
        power: of D, which scores are divided by.
    """

    query_tile: int | None = None
    key_tile: int | None = None
    whole: bool = False
    rescales: bool = True
    follows: bool = True
    power: float = 0.5

    def __call__(self, q, k, v, tile):
        rows, columns = (
            tile if own is None else own or len(x) for own, x in ((self.query_tile, q), (self.key_tile, k))
        )
        end = max(len(k) // columns * columns, min(columns, len(k))) if self.whole else len(k)
        out = torch.empty_like(q)
        for first in range(0, len(q), rows):
            seen = None
            for start in range(0, end, columns):
                seen = self._join(
                    seen, q[first : first + rows], k[start : start + columns], v[start : start + columns]
                )
            out[first : first + rows] = seen[2] / seen[1][:, None]
        return out

    def _join(self, seen, q, k, v):
        scores = q @ k.T / q.shape[-1] ** self.power
        peak, total, mixed = seen or (scores.amax(-1), 0.0, 0.0)
        new = torch.maximum(peak, scores.amax(-1)) if self.follows else peak
        fade = (peak - new).exp() if self.rescales else torch.ones_like(new)
        weights = scores.sub_(new[:, None]).exp_()
        return new, total * fade + weights.sum(-1), mixed * fade[:, None] + weights @ v


RIGHT = Tiles()


def tiled_attention(
    q: Float[Tensor, "T D"], k: Float[Tensor, "S D"], v: Float[Tensor, "S D"], tile: int
) -> Float[Tensor, "T D"]:
    """Queries outside, keys inside; what is known of a row is its peak, its sum and its mixture."""
    return RIGHT(q, k, v, tile)


def cases(rng: random.Random) -> list[Case]:
    features = rng.choice((4, 8))

    def case(label, queries, keys, tile, features=features, rising=False, limited=False):
        q, k, v = (normal(rng, rows, features) for rows in (queries, keys, keys))
        if rising:  # by more than float32's exponent holds, from tile to tile; the last is not rounded
            q[:, 0], k[:, 0] = features**0.5 / 1.5, -150.0 * (torch.arange(keys).flip(0) // tile)
        most = float_bytes(3 * queries * features + 8 * tile * (tile + 2 * features))
        arguments = {"q": 1.5 * q, "k": k, "v": v, "tile": tile}
        return Case(arguments, label, allows={"peak_bytes": most} if limited else {})

    tile = rng.randint(4, 6)
    long, wide = rng.randint(700, 800), {"tile": 32, "features": 4, "limited": True}
    return [
        case("one tile", tile - 1, tile, tile),
        case("several tiles", 3 * tile, 4 * tile, tile),
        case("tiles that do not divide", 2 * tile + rng.randint(1, tile - 1), 3 * tile + 1, tile),
        case("a single query", 1, 2 * tile + rng.randint(1, tile - 1), tile),
        case("large scores", 2 * tile, 4 * tile, tile, rising=True),
        case("tiles of one row", 4, 5, 1),
        case("a long row of scores", rng.randint(2, 3), rng.randint(215, 240), 3, features=2, limited=True),
        case("many keys", rng.randint(33, 60), long, **wide),
        case("many queries", long, rng.randint(33, 60), **wide),
    ]


def _plain(q, k, v, tile):
    """Softmax over the whole matrix of scores."""
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v


def _by_hand(q, k, v, tile):
    """The same, in place, with as little memory as a whole matrix needs."""
    weights = q @ k.T
    weights.div_(q.shape[-1] ** 0.5).sub_(weights.amax(-1, keepdim=True)).exp_()
    return weights @ v / weights.sum(-1, keepdim=True)


def _rows_of_scores(q, k, v, tile):
    """No tiles: some queries with all keys, as many as memory seems to have room for, at least one."""
    size = max(1, 2 * tile * (tile + 2 * q.shape[-1]) // len(k))
    return torch.cat([_by_hand(rows, k, v, tile) for rows in q.split(size)])


def _query_by_query(q, k, v, tile):
    return torch.cat([_by_hand(query, k, v, tile) for query in q.split(1)])


def _copies_the_keys(q, k, v, tile):
    return replace(RIGHT, power=0.0)(q, k / q.shape[-1] ** 0.5, v, tile)


def _softmax_of_each_tile(q, k, v, tile):
    parts = [_by_hand(q, a, b, tile) for a, b in zip(k.split(tile), v.split(tile), strict=True)]
    return torch.stack(parts).mean(0)


def _sdpa(q, k, v, tile):
    return F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]


def _scales_the_queries(q, k, v, tile):
    return replace(RIGHT, power=0.0)(q.div_(q.shape[-1] ** 0.5), k, v, tile)


MEMORY = PeakMemory()

EXERCISE = Exercise(
    name="03.tiled_attention",
    function="tiled_attention",
    title="Attention in tiles",
    points=16,
    minutes=25,
    level=3,
    asks=ASKS,
    signature="tiled_attention(q, k, v, tile)",
    cases=cases,
    reference=tiled_attention,
    comparison=Close(atol=2e-5, rtol=2e-5, axes=("query", "feature")),
    rules=(MEMORY, NoMutation(), OWN_SOFTMAX),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant(
            "forgets the root of D",
            replace(RIGHT, power=0.0),
            "one tile",
            "The scores are not divided: they are q · k / √D.",
        ),
        Mutant(
            "divides by D",
            replace(RIGHT, power=1.0),
            "one tile",
            "The scores are divided by D. It is the root, √D, as in the first line of the exercise.",
        ),
        Mutant("does not rescale", replace(RIGHT, rescales=False), "several tiles"),
        Mutant("takes a softmax of each tile", _softmax_of_each_tile, "several tiles"),
        Mutant("drops the last tile", replace(RIGHT, whole=True), "tiles that do not divide"),
        Mutant("never updates the peak", replace(RIGHT, follows=False), "large scores"),
        Mutant("is a plain softmax", _plain, OWN_SOFTMAX.name),
        Mutant("is a plain softmax in place", _by_hand, MEMORY.name),
        Mutant("is a softmax of one query after another", _query_by_query, MEMORY.name),
        Mutant("makes rows of scores, no tiles", _rows_of_scores, MEMORY.name),
        Mutant("copies the keys", _copies_the_keys, MEMORY.name),
        Mutant("tiles the queries alone", replace(RIGHT, key_tile=0), MEMORY.name),
        Mutant("tiles the keys alone", replace(RIGHT, query_tile=0), MEMORY.name),
        Mutant("scales the queries in place", _scales_the_queries, NoMutation().name),
        Mutant("calls the library", _sdpa, OWN_SOFTMAX.name),
    ),
)
