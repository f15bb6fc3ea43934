"""Attention of one new token a row over its cache, with all that lies between projection and output.

For each row at position p: split the fused projection into q, k and v; RMSNorm on the heads of q and k
where the model has it (Qwen3); RoPE; write k and v to slot p; attend to slots 0 … p.

The cache is cut into splits that run side by side, or a short batch would leave most of a GPU idle
(Flash-Decoding, Dao et al. 2023). Split i gives its largest score m_i, l_i = Σ exp(s − m_i) and
o_i = Σ exp(s − m_i) v; the program that ends last combines them:

    o = Σ exp(m_i − m) o_i / Σ exp(m_i − m) l_i,   m = max m_i

The query heads that share a key/value head are one tile, so every key is read once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import (
    check_apart,
    check_dims,
    check_memory,
    check_tensor,
    is_count,
)
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tiles import SPARE_BYTES, STAGED_HEAD_DIMS, AttentionTile, attention_tile


@dataclass(frozen=True)
class HeadNorm:
    """RMSNorm on every head of q and of k."""

    q: Float[Tensor, " D"]
    k: Float[Tensor, " D"]
    eps: float


STAGED_KEYS = 512  # slots of a cache that one program a head goes through alone
MOST_SPLITS = 64  # the registers of the program that joins them hold no more


class Workspace:
    """What the splits of a row's keys hand to the one that ends last; one serves every layer.

    Args:
        num_rows: of new tokens, at most.
        num_splits: at most `MOST_SPLITS`.

    Attributes:
        stride: room for as many splits in the parts, the next power of 2.
        peaks: `(rows, H, stride)`, the largest score m_i of each split, in base 2.
        weights: `(rows, H, stride)`, its l_i.
        mixed: `(rows, H, stride, D)`, its o_i.
        arrivals: `(rows, Hkv)`, how many splits have ended; zero between launches.
    """

    def __init__(
        self, num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int, num_splits: int, device
    ):
        if not is_count(num_splits) or num_splits > MOST_SPLITS:
            raise ValueError(
                f"num_splits must be an integer in [1, {MOST_SPLITS}], got {num_splits!r}; 1 is for none"
            )
        self.num_splits = num_splits
        self.stride = 1 << (num_splits - 1).bit_length()
        shape = (num_rows, num_heads, self.stride)
        self.peaks = torch.empty(shape, dtype=torch.float32, device=device)
        self.weights = torch.empty(shape, dtype=torch.float32, device=device)
        self.mixed = torch.empty((*shape, head_dim), dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(num_rows, num_kv_heads, dtype=torch.int32, device=device)

    def check(self, batch_size: int, num_heads: int, num_kv_heads: int, head_dim: int, device) -> None:
        """Raises ValueError unless it was made for as many rows or more of these sizes, on this device."""
        needed = (num_heads, num_kv_heads, head_dim, device)
        rows, heads, _, size = self.mixed.shape
        held = (heads, self.arrivals.shape[1], size, self.mixed.device)
        if held != needed or rows < batch_size:
            raise ValueError(
                f"workspace must be for (batch_size, num_heads, num_kv_heads, head_dim, device) "
                f"{(batch_size, *needed)}, got {(rows, *held)}; make one for these, or leave it at None"
            )


def num_splits(
    batch_size: int, num_kv_heads: int, capacity: int, tile: AttentionTile, multiprocessors: int
) -> int:
    """A power of 2, at most `MOST_SPLITS`: about enough to fill the chip, and none without a tile of keys.

    A multiprocessor has room for two programs with tiles in registers, or one with tiles in shared memory.
    The latter is alone with a short cache: nothing to join is what it is for.
    """
    if tile.stages and capacity <= STAGED_KEYS:
        return 1
    wanted = max(1, (1 if tile.stages else 2) * multiprocessors // (batch_size * num_kv_heads))
    useful = max(1, -(-capacity // tile.block))
    return 1 << (min(wanted, useful, MOST_SPLITS).bit_length() - 1)


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; elsewhere, where nothing is gained by splits, as if there were 8."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def decode_attention_reference(
    qkv: Float[Tensor, "B heads_D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
) -> Float[Tensor, "B H_D"]:
    """What `decode_attention` computes, operation by operation."""
    return attend_at(Place.of(positions, cos, sin), qkv, keys, values, norm)


@dataclass(frozen=True)
class Place:
    """Where the new tokens stand, the same for every layer of a step.

    Attributes:
        cos, sin: of each feature's angle, that of i and i + D/2 being one; sin negated for the former.
        extent: slots of the cache that some row sees.
        seen: which of them each row sees; None where all rows see all.
    """

    rows: Int[Tensor, " B"]
    positions: Int[Tensor, " B"]
    cos: Float[Tensor, "B 1 D"]
    sin: Float[Tensor, "B 1 D"]
    extent: int
    seen: Bool[Tensor, "B 1 1 S"] | None

    @classmethod
    def of(
        cls, positions: Int[Tensor, " B"], cos: Float[Tensor, "S half"], sin: Float[Tensor, "S half"]
    ) -> Place:
        cos, sin = cos[positions][:, None], sin[positions][:, None]  # (B, 1, D / 2)
        held = positions.tolist()
        seen = None
        if min(held) < max(held):
            seen = torch.arange(max(held) + 1, device=positions.device) <= positions[:, None]
            seen = seen[:, None, None]
        return cls(
            torch.arange(len(held), device=positions.device),
            positions,
            torch.cat((cos, cos), -1),
            torch.cat((-sin, sin), -1),
            max(held) + 1,
            seen,
        )


def attend_at(
    place: Place,
    qkv: Float[Tensor, "B heads_D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    norm: HeadNorm | None = None,
) -> Float[Tensor, "B H_D"]:
    """`decode_attention_reference` for one of several layers that share their place."""
    batch, num_kv_heads, _, head_dim = keys.shape
    heads = qkv.view(batch, -1, head_dim)  # (B, H + 2 Hkv, D)
    q, k, v = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    if norm is not None:
        q, k = (F.rms_norm(x, (head_dim,), w, norm.eps) for x, w in ((q, norm.q), (k, norm.k)))
    keys[place.rows, :, place.positions] = _rotate(k, place)
    values[place.rows, :, place.positions] = v
    mixed = F.scaled_dot_product_attention(
        _rotate(q, place)[:, :, None],
        keys[:, :, : place.extent],
        values[:, :, : place.extent],
        attn_mask=place.seen,
        enable_gqa=q.shape[1] > num_kv_heads,
    )
    return mixed.reshape(batch, -1)


def _rotate(x: Float[Tensor, "B H D"], place: Place) -> Float[Tensor, "B H D"]:
    return x * place.cos + x.roll(x.shape[-1] // 2, -1) * place.sin


def decode_attention(
    qkv: Float[Tensor, "B heads_D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
    *,
    workspace: Workspace | None = None,
    out: Float[Tensor, "B H_D"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
    tile: AttentionTile | None = None,
) -> Float[Tensor, "B H_D"]:
    """One token a row: rotates and stores its key, stores its value, attends to all up to it.

    Args:
        qkv: the fused projection, H heads of q, then Hkv of k, then Hkv of v.
        keys, values: one whole layer of the cache; slot `positions[b]` of row b is written.
        positions: of the new tokens, on the device, each below S: the lengths so far.
        cos, sin: of the angles of every position.
        workspace: memory of the splits; None makes it, which a loop should not.
        out: where the result goes; new memory if None.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.
        tile: how a program goes through the cache; None keeps its tiles in registers.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    num_heads = _num_query_heads(qkv, keys)
    check_inputs(num_heads, qkv, keys, values, positions, cos, sin, norm, workspace, out)
    if resolve(backend, qkv.device, qkv.dtype) == "reference":
        mixed = decode_attention_reference(qkv, keys, values, positions, cos, sin, norm)
        return mixed if out is None else out.copy_(mixed)
    tile = tile or best_attention_tile(keys, num_heads)
    batch, num_kv_heads, capacity, head_dim = keys.shape
    if workspace is None:
        splits = num_splits(batch, num_kv_heads, capacity, tile, multiprocessors(qkv.device))
        workspace = Workspace(batch, num_heads, num_kv_heads, head_dim, splits, qkv.device)
    if out is None:
        out = qkv.new_empty(batch, num_heads * head_dim)
    if tile.stages:
        if obstacle := _staging_obstacle(tile, keys, values, num_heads):
            raise ValueError(f"tile must be one that fits, got {tile} {obstacle}; leave it at None")
        from llmcourse.kernels.decode_attention_gluon import launch
    else:
        from llmcourse.kernels.decode_attention_triton import launch
    inputs = (qkv, keys, values, positions, cos, sin)
    launch(*launch_arguments(*inputs, norm, workspace, out, tile, capacity), tile, pdl)
    return out


def launch_arguments(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
    workspace: Workspace,
    out: Tensor,
    tile: AttentionTile,
    width: int,
) -> tuple[tuple[int, int], tuple, dict[str, int | bool]]:
    """Grid, arguments and constants that the kernels have in common.

    Args:
        width: slots of a row, or its blocks where the cache is a pool of them.
    """
    num_kv_heads, head_dim = keys.shape[1], keys.shape[-1]
    gains = (qkv, qkv) if norm is None else (norm.q, norm.k)  # without a norm never read
    parts = (workspace.peaks, workspace.weights, workspace.mixed, workspace.arrivals)
    eps = 0.0 if norm is None else norm.eps
    scale = math.log2(math.e) / math.sqrt(head_dim)  # exponentials are of base 2
    arguments = (qkv, keys, values, positions, cos, sin, *gains, out, *parts, width, eps, scale)
    constants = {"H": out.shape[1] // head_dim, "HKV": num_kv_heads, "D": head_dim, "BLOCK_S": tile.block}
    constants |= {"SPLITS": workspace.stride, "NORM": norm is not None}
    return (len(qkv) * num_kv_heads, workspace.num_splits), arguments, constants


def best_attention_tile(
    keys: Float[Tensor, "B Hkv S D"], num_heads: int, staged: bool = False
) -> AttentionTile:
    """For one layer of a cache like this one.

    Args:
        staged: tiles in shared memory where they can be, for caches of at most `STAGED_KEYS` slots. On an
            H200, at 228 tokens, they pay between matrices of `linear_gluon`, which leave the chip room for
            them (Qwen3-0.6B: a step 5 % shorter), and not between larger ones (Llama-3-8B: 4 % longer).
    """
    from llmcourse.kernels.capabilities import shared_bytes

    head_dim, item_bytes = keys.shape[-1], keys.element_size()
    if staged and keys.shape[2] <= STAGED_KEYS and item_bytes == 2:
        tile = attention_tile(head_dim, item_bytes, shared_bytes())
        if tile.stages and _staging_obstacle(tile, keys, keys, num_heads) is None:
            return tile
    return attention_tile(head_dim, item_bytes, 0)


def _staging_obstacle(tile: AttentionTile, keys: Tensor, values: Tensor, num_heads: int) -> str | None:
    """Why `decode_attention_gluon` cannot run with such a tile, or None."""
    from llmcourse.kernels.capabilities import runs_gluon, shared_bytes

    if not runs_gluon(80):
        return "without a GPU of Ampere or later, or with a Triton that has no Gluon"
    group, head_dim = num_heads // keys.shape[1], keys.shape[-1]
    if keys.element_size() != 2 or head_dim not in STAGED_HEAD_DIMS or group > 16:
        return f"for {keys.dtype}, {group} query heads a key head and head size {head_dim}"
    if not keys.is_meta and (keys.data_ptr() % 16 or values.data_ptr() % 16):
        return "for a cache that does not begin at a multiple of 16 bytes"
    held = 2 * tile.stages * tile.block * head_dim * keys.element_size()
    if held > shared_bytes() - SPARE_BYTES:
        return f"with {held} bytes for a program, which has room for {shared_bytes() - SPARE_BYTES}"
    return None


def check_inputs(
    num_heads: int,
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
    workspace: Workspace | None,
    out: Tensor | None,
) -> None:
    """Raises ValueError where cache, angles, norm or memory do not fit a projection of these heads."""
    batch, num_kv_heads, capacity, head_dim = keys.shape
    whole = "pass a whole layer of the cache, as `cache.keys[layer]`, not a part of its slots"
    check_memory("qkv", qkv, qkv)
    check_memory("keys", keys, qkv, layout=whole)
    pair = "take keys and values from one layer of one cache"
    check_tensor("values", values, tuple(keys.shape), qkv, pair, layout=whole)
    check_tensor("positions", positions, (batch,), qkv, "pass one for each row", dtype=torch.long)
    angles = f"pass the angles of the {capacity} slots of the cache, a pair of features each"
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, (capacity, head_dim // 2), qkv, angles)
    if norm is not None:
        for name, gains in (("norm.q", norm.q), ("norm.k", norm.k)):
            check_tensor(name, gains, (head_dim,), qkv, "it weighs the features of a head")
    if workspace is not None:
        workspace.check(len(qkv), num_heads, num_kv_heads, head_dim, qkv.device)
    memory = "leave it at None for new memory"
    check_tensor("out", out, (len(qkv), num_heads * head_dim), qkv, memory, layout=memory)
    check_apart(out, qkv=qkv, keys=keys, values=values)


def _num_query_heads(qkv: Tensor, keys: Tensor) -> int:
    check_dims("qkv", qkv, "B", "(H + 2 Hkv) · D")
    check_dims("keys", keys, "B", "Hkv", "S", "D")
    batch, num_kv_heads, _, head_dim = keys.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    if qkv.shape[0] != batch:
        raise ValueError(
            f"qkv must have {batch} rows as the cache has, got {qkv.shape[0]}; make a cache for these rows"
        )
    if qkv.shape[1] % head_dim or num_heads < 1 or num_heads % num_kv_heads or head_dim % 2:
        raise ValueError(
            f"qkv must hold (H + 2 · {num_kv_heads}) · {head_dim} columns, H a multiple of {num_kv_heads} "
            f"and the head size even, got {qkv.shape[1]}; is this the cache of another model?"
        )
    return num_heads
