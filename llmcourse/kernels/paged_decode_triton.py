"""The kernel of `paged_decode_attention`: grid (B · Hkv, splits).

It shares its parts with that of `decode_attention`, which is to be read first, and goes through the keys
otherwise, for two things were measured on an H200. Where the keys of a tile lie is looked up in the block
table, so each tile's entries are read one tile ahead: then its keys can be asked for at once. And nothing but
the queries is held while the keys stream by, so that three programs fit on a multiprocessor where two did:
attention of 256 requests takes three quarters of the time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.decode_attention_triton import (
    absorb,
    angles,
    gains,
    hand_in,
    partners,
    repeated_features,
    rotated,
    shares,
)
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.tiles import AttentionTile


@triton.jit
def _turned(
    head_ptr, norm_ptr, cos_ptr, sin_ptr, position, d, real, eps, D: tl.constexpr, NORM: tl.constexpr
):
    """Heads of the projection after norm and RoPE, features d of each; fp32."""
    cos, sin = angles(cos_ptr, sin_ptr, position, d, D)
    gain, partner_gain = gains(norm_ptr, d, D, NORM)
    x = tl.load(head_ptr + d, mask=real, other=0.0)
    y = tl.load(head_ptr + partners(d, D), mask=real, other=0.0)
    return rotated(x, y, gain, partner_gain, cos, sin, eps, D, NORM)


@triton.jit
def _blocks(table_ptr, s, last, SIZE: tl.constexpr):
    """Blocks of tokens s. A row that fills up the batch has negative ones, and reads what it never stores."""
    return tl.maximum(tl.load(table_ptr + s // SIZE, mask=s < last, other=0), 0)


@triton.jit(do_not_specialize=["width"])  # which changes with the longest text
def _paged_decode_kernel(
    qkv_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    out_ptr,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    arrivals_ptr,
    width,
    eps,
    scale,
    tables_ptr,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    G: tl.constexpr = H // HKV
    row = tl.program_id(0) // HKV
    kv_head = tl.program_id(0) % HKV
    split = tl.program_id(1)
    position = tl.load(positions_ptr + row).to(tl.int32)
    span, active = shares(position, BLOCK_S)
    start_next(PDL)
    if split >= active:
        wait_for_input(PDL)
        return

    # The table is no result of the previous kernel.
    table_ptr = tables_ptr + row * width
    first, last = split * span, tl.minimum(split * span + span, position)
    s = tl.arange(0, BLOCK_S)
    next_block = _blocks(table_ptr, first + s, last, SIZE)
    own_block = tl.load(table_ptr + position // SIZE)
    wait_for_input(PDL)

    group, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    features = repeated_features(BLOCK_G, BLOCK_D)
    real = (group < G)[:, None] & (features < D)
    heads_ptr = qkv_ptr + row.to(tl.int64) * (H + 2 * HKV) * D
    group_ptr = heads_ptr + (kv_head * G + group)[:, None] * D
    q = _turned(group_ptr, q_norm_ptr, cos_ptr, sin_ptr, position, features, real, eps, D, NORM)
    q = q.to(qkv_ptr.dtype.element_ty)

    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_G,), tl.float32)
    mixed = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if split == 0:  # always active: it stores the new token, and begins with it
        one = d[None, :]
        k_ptr, v_ptr = heads_ptr + (H + kv_head) * D, heads_ptr + (H + HKV + kv_head) * D
        k_new = _turned(k_ptr, k_norm_ptr, cos_ptr, sin_ptr, position, one, one < D, eps, D, NORM)
        k_new = k_new.to(keys_ptr.dtype.element_ty)
        v_new = tl.load(v_ptr + one, mask=one < D, other=0.0)
        own = ((own_block.to(tl.int64) * HKV + kv_head) * SIZE + position % SIZE) * D + one
        kept = (one < D) & (own_block >= 0)
        tl.store(keys_ptr + own, k_new, mask=kept)
        tl.store(values_ptr + own, v_new.to(values_ptr.dtype.element_ty), mask=kept)
        peak = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale
        weight = tl.full((BLOCK_G,), 1.0, tl.float32)
        mixed += v_new.to(tl.float32)

    for start in range(first, last, BLOCK_S):
        at = start + s
        block = next_block.to(tl.int64)
        next_block = _blocks(table_ptr, at + BLOCK_S, last, SIZE)
        places = ((block * HKV + kv_head) * SIZE + at % SIZE)[:, None] * D + d[None, :]
        tile_mask = (at < last)[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + places, mask=tile_mask, other=0.0)
        v = tl.load(values_ptr + places, mask=tile_mask, other=0.0)
        peak, weight, mixed = absorb(q, k, v, at < last, peak, weight, mixed, scale)

    hand_in(
        peak, weight, mixed, out_ptr, peaks_ptr, weights_ptr, mixed_ptr, arrivals_ptr, row, kv_head, split,
        active, H, HKV, D, BLOCK_D, BLOCK_G, SPLITS,
    )  # fmt: skip


def launch(
    grid: tuple[int, int], arguments: tuple, constants: dict, tile: AttentionTile, pdl: bool, tables: Tensor
) -> None:
    """With what `decode_attention` tells its own kernels, and the tables."""
    _paged_decode_kernel[grid](
        *arguments,
        tables,
        **constants,
        SIZE=arguments[1].shape[2],
        BLOCK_D=max(16, triton.next_power_of_2(constants["D"])),
        BLOCK_G=max(16, triton.next_power_of_2(constants["H"] // constants["HKV"])),
        num_warps=tile.warps,
        **({"num_stages": tile.stages} if tile.stages else {}),  # otherwise Triton's own
        **options(pdl),
    )
