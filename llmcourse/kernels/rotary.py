"""What lies between the projection and paged attention: norm, rotation, and the store of keys and values.

For each new token at position p: split the fused projection into heads of q, k and v; RMSNorm on those of q
and k where the model has it (Qwen3); RoPE by the angles of p (Su et al. 2021, section 3.4.2); k and v go to
the token's slot of the pool. One pass over the projection in place of six operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_apart, check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.decode_attention import HeadNorm


def rotate_and_store_reference(
    qkv: Float[Tensor, "T heads_D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    positions: Int[Tensor, " T"],
    slot_mapping: Int[Tensor, " T"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
) -> Float[Tensor, "T H D"]:
    """What `rotate_and_store` does, operation by operation."""
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    heads = qkv.view(len(qkv), -1, head_dim)  # (T, H + 2 Hkv, D)
    q, k, v = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    if norm is not None:
        q, k = (F.rms_norm(x, (head_dim,), w, norm.eps) for x, w in ((q, norm.q), (k, norm.k)))
    cos, sin = cos[positions][:, None], sin[positions][:, None]  # (T, 1, D / 2)
    cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    q, k = (x * cos + x.roll(head_dim // 2, -1) * sin for x in (q, k))
    block_size, kept = keys.shape[2], slot_mapping >= 0
    block, place = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    keys[block, :, place], values[block, :, place] = k[kept], v[kept]
    return q


def rotate_and_store(
    qkv: Float[Tensor, "T heads_D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    positions: Int[Tensor, " T"],
    slot_mapping: Int[Tensor, " T"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "T H D"]:
    """The queries of the new tokens, rotated; their keys and values are in the pool afterwards.

    Args:
        qkv: the fused projection, H heads of q, then Hkv of k, then Hkv of v.
        keys, values: one layer of the pool.
        positions: of the new tokens, each below S.
        slot_mapping: block · size + place in it, of each token; negative for one that is stored nowhere.
        cos, sin: of the angles of every position, a pair of features each.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run; on the
            CPU also positions or slots that there are not, which on a GPU nobody looks for.
    """
    num_heads = _check(qkv, keys, values, positions, slot_mapping, cos, sin, norm)
    if resolve(backend, qkv.device, qkv.dtype) == "reference":
        return rotate_and_store_reference(qkv, keys, values, positions, slot_mapping, cos, sin, norm)
    from llmcourse.kernels.rotary_triton import launch

    out = qkv.new_empty(len(qkv), num_heads, keys.shape[3])
    launch(qkv, keys, values, positions, slot_mapping, cos, sin, norm, out)
    return out


def _check(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
) -> int:
    """The number of query heads, of arguments that fit each other."""
    num_heads = check_projection(qkv, keys, values, positions, cos, sin, norm)
    check_tensor("slot_mapping", slot_mapping, (len(qkv),), qkv, "pass one for each token", dtype=torch.long)
    num_slots = keys.shape[0] * keys.shape[2]
    if slot_mapping.is_cpu and len(slot_mapping) and slot_mapping.max() >= num_slots:
        raise ValueError(
            f"slot_mapping must be below {num_slots}, got {slot_mapping.max()}; take slots from the pool"
        )
    return num_heads


def check_projection(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
) -> int:
    """The number of query heads in a projection whose keys and values go to a pool, if all of them fit."""
    check_dims("qkv", qkv, "T", "(H + 2 Hkv) · D")
    check_dims("keys", keys, "blocks", "Hkv", "size", "D")
    _, num_kv_heads, _, head_dim = keys.shape
    if 0 in keys.shape[1:]:
        raise ValueError(
            f"keys must have heads, slots and features, got shape {tuple(keys.shape)}; pass a layer"
        )
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    if qkv.shape[1] % head_dim or num_heads < 1 or num_heads % num_kv_heads or head_dim % 2:
        raise ValueError(
            f"qkv must hold (H + 2 · {num_kv_heads}) · {head_dim} columns, H a multiple of {num_kv_heads} "
            f"and the head size even, got {qkv.shape[1]}; is this the cache of another model?"
        )
    check_memory("qkv", qkv, qkv)
    check_memory("keys", keys, qkv, layout="pass one layer of the pool")
    check_tensor("values", values, tuple(keys.shape), qkv, "take keys and values from one layer of one pool")
    check_tensor("positions", positions, (len(qkv),), qkv, "pass one for each token", dtype=torch.long)
    check_dims("cos", cos, "S", "D / 2")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, (len(cos), head_dim // 2), qkv, "pass the angles of all positions")
    if norm is not None:
        for name, gains in (("norm.q", norm.q), ("norm.k", norm.k)):
            check_tensor(name, gains, (head_dim,), qkv, "it weighs the features of a head")
    check_apart(keys, name="keys", remedy="take a part of the pool for each", qkv=qkv, values=values)
    if positions.is_cpu and len(positions):
        _check_positions(positions, len(cos))
    return num_heads


def _check_positions(positions: Tensor, end: int) -> None:
    """On the CPU alone: on a GPU looking at them would hold up every step."""
    low, high = positions.aminmax()
    if low < 0 or high >= end:
        raise ValueError(
            f"positions must be in [0, {end - 1}], for which there are angles, got "
            f"{(low if low < 0 else high).item()}; pass longer tables, or end the text before"
        )
