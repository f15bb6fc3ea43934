"""02.cached_attention: one query a row against what its row holds, and nothing else."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK, normal, ragged
from llmcourse.grading.rules import NoMutation

ASKS = r"""
In a decoding step each row has one query, that of its newest token, and the keys and values of all its tokens
lie in the cache:

$$\mathrm{Attention}(q, K, V) = \mathrm{softmax}\!\left(\frac{q K^\top}{\sqrt{D}}\right) V .$$

There are $H$ query heads, but only $H_{kv}$ heads of keys and values, and $H$ is a multiple of $H_{kv}$
(*grouped-query attention*, Ainslie et al. 2023): the first $H / H_{kv}$ query heads look at key/value head 0,
the next as many at head 1, and so on.

Write `cached_attention(q, keys, values, lengths)`.

- `q`: floating-point tensor of shape `(B, H, D)`.
- `keys`, `values`: the buffers, of shape `(B, Hkv, S, D)` and of the dtype of `q`.
- `lengths`: `int64` tensor of shape `(B,)`, at least 1: row `b` holds tokens in its first `lengths[b]` slots,
  the newest, whose query this is, among them.
- returns a tensor of the shape and dtype of `q`: for each row and head the mixture of the values.

What lies in the slots behind is left over, and **anything can be there: huge numbers, infinity, NaN**. None
of it may show in the result. PyTorch's and the course's own attention are not allowed here; `softmax` is.

```python
>>> keys = torch.tensor([0.0, 0.0, float("nan")]).view(1, 1, 3, 1)
>>> values = torch.tensor([2.0, 4.0, float("nan")]).view(1, 1, 3, 1)
>>> q = torch.ones(1, 2, 1)             # two query heads, which share one head of keys and values
>>> cached_attention(q, keys, values, torch.tensor([2]))[0, :, 0]
tensor([3., 3.])
>>> cached_attention(q, keys, values, torch.tensor([1]))[0, :, 0]
tensor([2., 2.])
```
"""

HINTS = (
    "Give every query head its keys and values first: repeat_interleave along the heads makes (B, H, S, D) "
    "of (B, Hkv, S, D). Then each head is on its own, and the formula is three lines.",
    "scores = (keys @ q[..., None])[..., 0] / D**0.5 has the shape (B, H, S). Which of its places belong to "
    "slots that row b holds? A comparison of torch.arange(S) with lengths[:, None] says it, as (B, S).",
    "Set the scores of all other slots to -inf before the softmax: their weights are then exactly 0. But 0 "
    "times NaN is NaN: their values have to be replaced as well, with masked_fill or torch.where.",
)

HINTS_AT = {
    "several heads": "Every head has its own scores, its own softmax over the slots, and its own mixture.",
    "grouped queries": (
        "Query head h reads key/value head h // (H // Hkv): neighbours share one. repeat_interleave puts "
        "copies side by side; repeat would put the whole row of heads again behind itself."
    ),
    "rows of different lengths": (
        "Each row has lengths[b] slots that count, no fewer and no more; the score of any other is -inf, not "
        "0: 0 would be a score like others."
    ),
    "a row of one token": (
        "There the only slot has all the weight, and the result is its value, whatever the others hold."
    ),
    "huge values in unused slots": (
        "To subtract a large number is not enough, where a score may be larger. Put -inf in its place: "
        "masked_fill."
    ),
    "NaN in unused slots": (
        "The weight of such a slot is 0, and 0 · NaN is NaN. Its value must not enter the sum: replace it, "
        "on a copy."
    ),
    "float64": (
        "Every step in the dtype of q: no .float() on the way, and no tensor of ones or zeros of another."
    ),
}


def cached_attention(
    q: Float[Tensor, "B H D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    lengths: Int[Tensor, " B"],
) -> Float[Tensor, "B H D"]:
    """Softmax over the slots that a row holds; all others are replaced before anything is multiplied."""
    hidden = torch.arange(keys.shape[2]) >= lengths[:, None]
    keys, values = (buffer.masked_fill(hidden[:, None, :, None], 0) for buffer in (keys, values))
    return _mixed(q, keys, values, hidden)


def _mixed(q, keys, values, hidden, scale=None, spread=None, axis=-1):
    """Attention with the slots of `hidden`, (B, S), at -inf; the parameters are what mutants get wrong."""
    group = q.shape[1] // keys.shape[1]
    spread = spread or (lambda buffer: buffer.repeat_interleave(group, dim=1))
    scores = torch.einsum("bhd,bhsd->bhs", q, spread(keys)) * (scale or 1 / math.sqrt(q.shape[-1]))
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(axis)
    return torch.einsum("bhs,bhsd->bhd", weights, spread(values))


def cases(rng: random.Random) -> list[Case]:
    slots, features = rng.randint(8, 10), rng.choice((4, 8))

    def case(label, lengths, heads=4, kv_heads=2, behind=None, dtype=torch.float32):
        lengths = torch.as_tensor(lengths)
        shape = (len(lengths), kv_heads, slots, features)
        keys, values = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
        if behind is not None:
            unused = (torch.arange(slots) >= lengths[:, None])[:, None, :, None]
            keys, values = keys.where(~unused, keys.abs() * behind), values.where(~unused, behind)
        q = normal(rng, len(lengths), heads, features, dtype=dtype).abs() + 0.1  # finds every huge key
        return Case({"q": q, "keys": keys, "values": values, "lengths": lengths}, label)

    kv_heads, group = rng.randint(2, 3), rng.randint(2, 3)
    return [
        case("a full cache", [slots], heads=1, kv_heads=1),
        case("several heads", [slots], heads=4, kv_heads=4),
        case("grouped queries", [slots] * 2, kv_heads * group, kv_heads),
        case("rows of different lengths", ragged(rng, 4, 2, slots - 1)),
        case("a row of one token", [rng.randint(3, 6), 1]),
        case("huge values in unused slots", ragged(rng, 3, 2, slots - 2), behind=1e20),
        case("NaN in unused slots", ragged(rng, 3, 2, slots - 2), behind=torch.nan),
        case("float64", ragged(rng, 3, 2, slots - 2), dtype=torch.float64),
    ]


def _hidden(keys, lengths):
    return torch.arange(keys.shape[2]) >= lengths[:, None]


def _without_scale(q, keys, values, lengths):
    return cached_attention(q * math.sqrt(q.shape[-1]), keys, values, lengths)


def _divides_by_d(q, keys, values, lengths):
    return cached_attention(q / math.sqrt(q.shape[-1]), keys, values, lengths)


def _over_the_heads(q, keys, values, lengths):
    return _mixed(q, keys, values, _hidden(keys, lengths), axis=1)


def _without_the_newest(q, keys, values, lengths):
    return cached_attention(q, keys, values, (lengths - 1).clamp(min=1))


def _one_head_for_all(q, keys, values, lengths):
    return cached_attention(q, keys[:, :1], values[:, :1], lengths)


def _interleaved(q, keys, values, lengths):
    group = q.shape[1] // keys.shape[1]
    return cached_attention(q, keys.repeat(1, group, 1, 1), values.repeat(1, group, 1, 1), lengths)


def _every_slot(q, keys, values, lengths):
    return cached_attention(q, keys, values, torch.full_like(lengths, keys.shape[2]))


def _one_slot_too_many(q, keys, values, lengths):
    return cached_attention(q, keys, values, lengths + 1)


def _longest_for_all(q, keys, values, lengths):
    return cached_attention(q, keys, values, lengths.max().expand(len(lengths)))


def _first_for_all(q, keys, values, lengths):
    return cached_attention(q, keys, values, lengths[:1].expand(len(lengths)))


def _score_0(q, keys, values, lengths):
    hidden = _hidden(keys, lengths)
    keys, values = (buffer.masked_fill(hidden[:, None, :, None], 0) for buffer in (keys, values))
    return _mixed(q, keys, values, torch.zeros_like(hidden))


def _subtracts_a_lot(q, keys, values, lengths):
    hidden = _hidden(keys, lengths)
    group = q.shape[1] // keys.shape[1]
    keys, values = (buffer.repeat_interleave(group, dim=1) for buffer in (keys, values))
    scores = torch.einsum("bhd,bhsd->bhs", q, keys) / math.sqrt(q.shape[-1]) - 1e9 * hidden[:, None]
    return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values)


def _zero_times_nan(q, keys, values, lengths):
    return _mixed(q, keys, values, _hidden(keys, lengths))


def _always_float32(q, keys, values, lengths):
    return cached_attention(q.float(), keys.float(), values.float(), lengths)


def _wipes_the_cache(q, keys, values, lengths):
    for buffer in (keys, values):
        buffer.masked_fill_(_hidden(keys, lengths)[:, None, :, None], 0)
    return cached_attention(q, keys, values, lengths)


def _asks_pytorch(q, keys, values, lengths):
    rows = [
        F.scaled_dot_product_attention(
            q[row, None, :, None], keys[row, None, :, :held], values[row, None, :, :held], enable_gqa=True
        )
        for row, held in enumerate(lengths.tolist())
    ]
    return torch.cat(rows)[:, :, 0]


EXERCISE = Exercise(
    name="02.cached_attention",
    function="cached_attention",
    title="Attention against the cache",
    points=12,
    minutes=25,
    level=4,
    asks=ASKS,
    signature="cached_attention(q, keys, values, lengths)",
    cases=cases,
    reference=cached_attention,
    comparison=Close(axes=("row", "head", "feature")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("does not scale", _without_scale, "a full cache"),
        Mutant("divides by D", _divides_by_d, "a full cache"),
        Mutant("takes the softmax over the heads", _over_the_heads, "a full cache"),
        Mutant("leaves the newest token out", _without_the_newest, "a full cache"),
        Mutant("gives every query the first head", _one_head_for_all, "several heads"),
        Mutant("puts the groups in another order", _interleaved, "grouped queries"),
        Mutant("reads every slot", _every_slot, "rows of different lengths"),
        Mutant("reads one slot too many", _one_slot_too_many, "rows of different lengths"),
        Mutant("reads as far as the longest row", _longest_for_all, "rows of different lengths"),
        Mutant("reads as far as the first row", _first_for_all, "rows of different lengths"),
        Mutant("gives unused slots the score 0", _score_0, "rows of different lengths"),
        Mutant("subtracts a large number", _subtracts_a_lot, "huge values in unused slots"),
        Mutant("multiplies NaN by 0", _zero_times_nan, "NaN in unused slots"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("wipes the buffers", _wipes_the_cache, NoMutation().name),
        Mutant("asks PyTorch", _asks_pytorch, OWN_WORK.name),
    ),
)
