"""02.find_the_bug: a decoding step that is right while all rows are equally long."""

from __future__ import annotations

import math
import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK, normal, ragged
from llmcourse.grading.rules import InPlace

ASKS = r"""
A colleague has written a decoding step of one attention layer, for a whole batch: rotate, write, attend.
All her tests were made with prompts of one length, and pass. Since prompts of unequal length share a batch,
the longest row is still right, and the others drift into nonsense. The same happens to rows that were rolled
back further than others.

Find the one mistake in `decode_step(q, k, v, keys, values, lengths)` and mend it. (`rotated`, above it, is
right.)

- `q`: `float32` tensor of shape `(B, H, D)`, the query of each row's new token; `k`, `v`: of shape
  `(B, Hkv, D)`, its key and value. $H$ is a multiple of $H_{kv}$.
- `keys`, `values`: the buffers, of shape `(B, Hkv, S, D)`. The keys in them are rotated already.
- `lengths`: `int64` tensor of shape `(B,)`, tokens that each row holds before the new one, for which there is
  room.
- returns `(mixed, keys, values)`: the layer's mixture of values, `(B, H, D)`, and the two buffers.

What it should do: rotate query and key by the angles of the position of the new token in *its own* text
(RoPE); write key and value into the row's next slot, in place; let the query look at the slots that the row
holds now, whatever lies behind them.

```python
>>> keys, values = torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2)
>>> k = torch.tensor([1.0, 0.0]).expand(2, 1, 2)
>>> mixed, keys, values = decode_step(k, k, k, keys, values, torch.tensor([0, 2]))
>>> keys[:, 0, 0], keys[:, 0, 2]        # row 1 writes into slot 2, rotated by two radians
(tensor([[1., 0.],
         [0., 0.]]), tensor([[ 0.0000,  0.0000],
         [-0.4161,  0.9093]]))
```
"""

STARTER = '''
def rotated(x, cos, sin):
    """RoPE: turns the pairs (x[i], x[i + D/2])."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def decode_step(q, k, v, keys, values, lengths):
    """Attention of one new token a row, whose key and value are written into the cache."""
    rows, slots = torch.arange(len(lengths)), torch.arange(int(lengths.max()) + 1)
    frequencies = 10_000.0 ** -(torch.arange(0, q.shape[-1], 2) / q.shape[-1])
    angles = slots[:, None] * frequencies  # (slots, D/2), a row for each position
    newest = angles[-1:, None]
    q, k = (rotated(x, newest.cos(), newest.sin()) for x in (q, k))
    keys[rows, :, lengths], values[rows, :, lengths] = k, v
    group = q.shape[1] // k.shape[1]
    seen_keys = keys[:, :, : len(slots)].repeat_interleave(group, dim=1)  # (B, H, slots, D)
    seen_values = values[:, :, : len(slots)].repeat_interleave(group, dim=1)
    scores = (seen_keys @ q[..., None])[..., 0] / q.shape[-1] ** 0.5
    behind = slots > lengths[:, None]
    weights = scores.masked_fill(behind[:, None], float("-inf")).softmax(-1)
    return (weights[:, :, None] @ seen_values)[:, :, 0], keys, values
'''

HINTS = (
    "Print the shapes of every line for two rows of which one holds 1 token and the other 3. Which of the "
    "values depend on the row? Which of them should?",
    "Three things must be each row's own: the slot that is written, the slots that are seen, and the angle "
    "of the rotation. Two of them use lengths.",
    "newest is the last row of the table of angles, the position of the longest row, and has no dimension "
    "for the batch. Row b needs the angles of its own position: index the table with lengths.",
)

UNDONE = (
    "That was right when it was handed out: more than the one mistake has changed. "
    "labs/02_kv_cache_and_roofline.ipynb has the step as it was; begin with it again."
)
HINTS_AT = dict.fromkeys(("one row", "rows of one length", "an empty cache"), UNDONE)


def decode_step(
    q: Float[Tensor, "B H D"],
    k: Float[Tensor, "B Hkv D"],
    v: Float[Tensor, "B Hkv D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    lengths: Int[Tensor, " B"],
) -> tuple[Float[Tensor, "B H D"], Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
    """Rotate by the row's own position, write into its own slot, look at its own tokens."""
    return _step(q, k, v, keys, values, lengths)


def _rotated(x, positions):
    """By the angles of each row's position."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10_000.0 ** -(torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat(
        (x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin), -1
    )


def _step(q, k, v, keys, values, lengths, turn_q=None, turn_k=None, slot=None, hidden=None):
    """The step; the parameters are what mutants get wrong: positions, slots, and what is not seen."""
    turn_q, turn_k, slot = (lengths if own is None else own for own in (turn_q, turn_k, slot))
    q, k, rows = _rotated(q, turn_q), _rotated(k, turn_k), torch.arange(len(lengths))
    keys[rows, :, slot], values[rows, :, slot] = k, v
    if hidden is None:
        hidden = torch.arange(keys.shape[2]) > lengths[:, None]
    group = q.shape[1] // k.shape[1]
    held = [buffer.repeat_interleave(group, dim=1) for buffer in (keys, values)]
    scores = torch.einsum("bhd,bhsd->bhs", q, held[0]) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhs,bhsd->bhd", weights, held[1]), keys, values


def cases(rng: random.Random) -> list[Case]:
    slots, features = rng.randint(9, 12), rng.choice((4, 8))
    kv_heads, group = 2, rng.randint(2, 3)

    def case(label, lengths, used=False):
        lengths = torch.as_tensor(lengths)
        rows = len(lengths)
        keys, values = (normal(rng, rows, kv_heads, slots, features) for _ in range(2))
        if not used:  # else what was rolled back is still there
            behind = (torch.arange(slots) >= lengths[:, None])[:, None, :, None]
            keys, values = keys.masked_fill(behind, 0), values.masked_fill(behind, 0)
        q = 2 * normal(rng, rows, kv_heads * group, features)  # sharp enough to tell angles apart
        k, v = (normal(rng, rows, kv_heads, features) for _ in range(2))
        arguments = {"q": q, "k": k, "v": v, "keys": keys, "values": values, "lengths": lengths}
        return Case(arguments, label)

    length = rng.randint(3, slots - 2)
    return [
        case("one row", [length]),
        case("rows of one length", [length] * 3),
        case("an empty cache", [0, 0]),
        case("rows of different lengths", ragged(rng, 4, 1, slots - 2)),
        case("rows that were rolled back", ragged(rng, 3, 1, slots - 2), used=True),
    ]


_handed_out = {"torch": torch}
exec(STARTER, _handed_out)


def _not_rotated(q, k, v, keys, values, lengths):
    start = torch.zeros_like(lengths)
    return _step(q, k, v, keys, values, lengths, start, start)


def _key_not_rotated(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys, values, lengths, turn_k=torch.zeros_like(lengths))


def _one_position_further(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys, values, lengths, lengths + 1, lengths + 1)


def _without_the_newest(q, k, v, keys, values, lengths):
    last = (lengths - 1).clamp(min=0)
    hidden = torch.arange(keys.shape[2]) > last[:, None]
    return _step(q, k, v, keys, values, lengths, hidden=hidden)


def _interleaved(q, k, v, keys, values, lengths):
    order = torch.arange(q.shape[1]).view(k.shape[1], -1)
    mixed, keys, values = _step(q[:, order.T.flatten().argsort()], k, v, keys, values, lengths)
    return mixed[:, order.T.flatten()], keys, values


def _mended_for_the_query(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys, values, lengths, turn_k=lengths.max().expand(len(lengths)))


def _mended_for_the_key(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys, values, lengths, turn_q=lengths.max().expand(len(lengths)))


def _shortest_for_all(q, k, v, keys, values, lengths):
    least = lengths.min().expand(len(lengths))
    return _step(q, k, v, keys, values, lengths, least, least)


def _behind_the_longest(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys, values, lengths, slot=lengths.max().expand(len(lengths)))


def _as_far_as_the_longest(q, k, v, keys, values, lengths):
    hidden = (torch.arange(keys.shape[2]) > lengths.max()).expand(len(lengths), -1)
    return _step(q, k, v, keys, values, lengths, hidden=hidden)


def _counts_what_was_written(q, k, v, keys, values, lengths):
    written = keys.ne(0).any(-1)[:, 0].sum(-1)
    return _step(q, k, v, keys, values, lengths, written, written)


def _sees_what_was_written(q, k, v, keys, values, lengths):
    written = keys.ne(0).any(-1)[:, 0]
    written[torch.arange(len(lengths)), lengths] = True
    return _step(q, k, v, keys, values, lengths, hidden=~written)


def _copies(q, k, v, keys, values, lengths):
    return _step(q, k, v, keys.clone(), values.clone(), lengths)


BUFFERS = InPlace(("keys", "values"))
AXES = ("row", "head", "slot", "feature")

EXERCISE = Exercise(
    name="02.find_the_bug",
    function="decode_step",
    title="A decoding step with a mistake",
    points=8,
    minutes=20,
    level=5,
    asks=ASKS,
    signature="decode_step(q, k, v, keys, values, lengths)",
    cases=cases,
    reference=decode_step,
    comparison=Parts(
        {
            "mixed": Close(axes=("row", "head", "feature")),
            "keys": Close(axes=AXES),
            "values": Close(axes=AXES),
        }
    ),
    rules=(BUFFERS, OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    starter=STARTER.lstrip(),
    mutants=(
        Mutant("rotates nothing", _not_rotated, "one row"),
        Mutant("does not rotate the key", _key_not_rotated, "one row"),
        Mutant("is one position too far", _one_position_further, "one row"),
        Mutant("does not see the new token", _without_the_newest, "one row"),
        Mutant("puts the groups in another order", _interleaved, "one row"),
        Mutant("as it was handed out", _handed_out["decode_step"], "rows of different lengths"),
        Mutant("is mended for the query alone", _mended_for_the_query, "rows of different lengths"),
        Mutant("is mended for the key alone", _mended_for_the_key, "rows of different lengths"),
        Mutant("takes the shortest row for all", _shortest_for_all, "rows of different lengths"),
        Mutant("writes behind the longest row", _behind_the_longest, "rows of different lengths"),
        Mutant("sees as far as the longest row", _as_far_as_the_longest, "rows of different lengths"),
        Mutant(
            "takes what was written for the position", _counts_what_was_written, "rows that were rolled back"
        ),
        Mutant("sees all that was written", _sees_what_was_written, "rows that were rolled back"),
        Mutant("copies the buffers", _copies, BUFFERS.name),
    ),
)
