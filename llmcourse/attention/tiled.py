"""FlashAttention as an algorithm: the scores are made, used and forgotten tile by tile.

A GPU computes on what lies in the small SRAM of a multiprocessor; all else has to come from slow memory.
Operation by operation, attention writes all T · S scores there and reads them again, twice: its time is
that of the traffic. FlashAttention (Dao et al. 2022, algorithm 1) holds a tile of queries and a tile of
keys in SRAM, joins the scores of the two to a running softmax, and writes only the result. The loops are
those of FlashAttention-2 (Dao 2023, algorithm 1): queries outside, so that what is known of a row never
leaves SRAM.

Both functions here count what they read and write. Letters as in `definition`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.attention.definition import group_size
from llmcourse.attention.online_softmax import RunningSoftmax


class SlowMemory:
    """Counts what passes between slow memory and SRAM.

    Attributes:
        read_bytes, written_bytes: so far.
    """

    def __init__(self):
        self.read_bytes = 0
        self.written_bytes = 0

    @property
    def traffic_bytes(self) -> int:
        return self.read_bytes + self.written_bytes

    def read(self, tensor: Tensor) -> Tensor:
        self.read_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def write(self, tensor: Tensor) -> Tensor:
        self.written_bytes += tensor.numel() * tensor.element_size()
        return tensor


def unfused_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    *,
    causal: bool = True,
    memory: SlowMemory | None = None,
) -> Float[Tensor, "B H T D"]:
    """Three operations, one after another, each of which writes what the next one reads.

    The scores are rounded to the dtype of q in between. Each operand is counted once, as if the matrix
    products themselves read nothing twice: this is the least that the three can move. Arguments and errors
    are those of `tiled_attention`.
    """
    memory = memory or SlowMemory()
    group = group_size(q, k)
    scale = 1 / math.sqrt(q.shape[-1])
    hidden = ~_visible(range(q.shape[2]), range(k.shape[2]), q, k, causal)

    q, k = memory.read(q), memory.read(k).repeat_interleave(group, dim=1)
    scores = memory.write(q @ k.transpose(-1, -2) * scale)  # (B, H, T, S)
    weights = memory.read(scores).masked_fill(hidden, float("-inf")).softmax(dim=-1)
    weights = memory.write(weights.masked_fill(hidden, 0.0))  # a row without keys is 0/0 until here
    v = memory.read(v).repeat_interleave(group, dim=1)
    return memory.write(memory.read(weights) @ v)


def tiled_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    *,
    causal: bool = True,
    query_tile: int = 64,
    key_tile: int = 64,
    memory: SlowMemory | None = None,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T"]]:
    """The result, and of each row the log-sum-exp of its scores, from which a backward pass makes them again.

    Args:
        causal: a query sees no later key, the queries being the last T of the S keys; one without gets zeros.
        query_tile, key_tile: rows of q, and of k and v, that are in SRAM at a time.
        memory: where the traffic is counted. Every query head reads the keys for itself.

    Raises:
        ValueError: a tile without rows, or H is no multiple of Hkv.
    """
    _check_tiles(query_tile, key_tile)
    memory = memory or SlowMemory()
    group = group_size(q, k)
    wide, scale = torch.promote_types(q.dtype, torch.float32), 1 / math.sqrt(q.shape[-1])
    out, log_sum_exp = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=wide)

    for first in range(0, q.shape[2], query_tile):
        queries = range(q.shape[2])[first : first + query_tile]
        q_tile = memory.read(_rows(q, queries)).to(wide)
        seen = RunningSoftmax.before(q_tile.shape[:-1], q.shape[-1], q_tile)
        for start in range(0, _end(queries, q, k, causal), key_tile):
            keys = range(k.shape[2])[start : start + key_tile]
            k_tile, v_tile = (memory.read(_for_heads(_rows(x, keys), group)).to(wide) for x in (k, v))
            scores = q_tile @ k_tile.transpose(-1, -2) * scale  # (B, H, query_tile, key_tile)
            visible = _visible(queries, keys, q, k, causal)
            seen = seen.join(scores.masked_fill(~visible, float("-inf")), v_tile)
        _rows(out, queries).copy_(memory.write(seen.result().to(q.dtype)))
        log_sum_exp[:, :, queries.start : queries.stop] = memory.write(seen.log_sum_exp())
    return out, log_sum_exp


def _rows(x: Float[Tensor, "B heads rows D"], which: range) -> Float[Tensor, "B heads tile D"]:
    return x[:, :, which.start : which.stop]


def _for_heads(x: Float[Tensor, "B Hkv tile D"], group: int) -> Float[Tensor, "B H tile D"]:
    """A copy for each of the query heads that share it."""
    return x.repeat_interleave(group, dim=1)


def _visible(queries: range, keys: range, q: Tensor, k: Tensor, causal: bool) -> Bool[Tensor, "tile keys"]:
    """Which of these keys each of these queries may see."""
    last = k.shape[2] - q.shape[2] if causal else k.shape[2]  # of the keys of query 0
    ahead = torch.arange(keys.start, keys.stop)[None, :] - torch.arange(queries.start, queries.stop)[:, None]
    return (ahead <= last).to(q.device)


def _end(queries: range, q: Tensor, k: Tensor, causal: bool) -> int:
    """How many keys any of these queries may see: tiles beyond are not even read."""
    return queries.stop + k.shape[2] - q.shape[2] if causal else k.shape[2]


def _check_tiles(query_tile: int, key_tile: int) -> None:
    for name, rows in (("query_tile", query_tile), ("key_tile", key_tile)):
        if rows < 1:
            raise ValueError(f"{name} must be at least 1, got {rows}; 64 rows fit the SRAM of any GPU")
