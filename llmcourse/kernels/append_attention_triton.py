"""The kernel of `append_attention`: grid (B · Hkv · blocks of queries, splits)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcourse.kernels.append_attention import query_blocks
from llmcourse.kernels.decode_attention_triton import (
    absorb,
    angles,
    gains,
    partners,
    repeated_features,
    rotated,
    shares,
)
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.tiles import MOST_QUERIES, AttentionTile
from llmcourse.kernels.tree_mask import TreeMask


@triton.jit
def _turned(
    head_ptr,
    norm_ptr,
    cos_ptr,
    sin_ptr,
    positions,
    real,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
):
    """Heads at `head_ptr` `(BLOCK, 1)` after norm and RoPE at their positions `(BLOCK, 1)`; fp32."""
    d = repeated_features(BLOCK, BLOCK_D)
    real = real[:, None] & (d < D)
    x = tl.load(head_ptr + d, mask=real, other=0.0)
    y = tl.load(head_ptr + partners(d, D), mask=real, other=0.0)
    gain, partner_gain = gains(norm_ptr, d, D, NORM)
    cos, sin = angles(cos_ptr, sin_ptr, positions, d, D)
    return rotated(x, y, gain, partner_gain, cos, sin, eps, D, NORM)


@triton.jit(do_not_specialize=["width"])  # slots of a row: no kernel for each cache
def _append_attention_kernel(
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
    sees_ptr,
    depths_ptr,
    T: tl.constexpr,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    TREE: tl.constexpr,
    PDL: tl.constexpr,
):
    G: tl.constexpr = H // HKV
    group, block, split = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS, tl.program_id(1)
    row, kv_head = group // HKV, group % HKV
    last_new = tl.load(positions_ptr + row).to(tl.int32)
    begin = last_new - (T - 1)  # the first new token, behind so many old ones
    span, active = shares(begin, BLOCK_S)
    start_next(PDL)
    if split >= active:
        wait_for_input(PDL)
        return

    # Old keys and values are no result of the previous kernel: the first of them are on their way at once.
    first, last = split * span, tl.minimum(split * span + span, begin)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    cache_row = (row.to(tl.int64) * HKV + kv_head) * width
    inside = first + s < last
    at = (cache_row + (first + s))[:, None] * D + d[None, :]
    k = tl.load(keys_ptr + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    v = tl.load(values_ptr + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    wait_for_input(PDL)

    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tl.minimum(m // G, T - 1)  # the token of each query; rows of the tile that are none take any
    stands = begin + (tl.load(depths_ptr + t).to(tl.int32) if TREE else t)
    tokens = qkv_ptr + row.to(tl.int64) * T * (H + 2 * HKV) * D
    q_heads = tokens + (t * (H + 2 * HKV) + kv_head * G + m % G)[:, None] * D
    real = m < T * G
    q = _turned(
        q_heads, q_norm_ptr, cos_ptr, sin_ptr, stands[:, None], real, eps, D, BLOCK_M, BLOCK_D, NORM
    ).to(qkv_ptr.dtype.element_ty)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak, weight, mixed = absorb(q, k, v, inside, peak, weight, mixed, scale)
    for start in range(first + BLOCK_S, last, BLOCK_S):
        inside = start + s < last
        at = (cache_row + (start + s))[:, None] * D + d[None, :]
        k = tl.load(keys_ptr + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        v = tl.load(values_ptr + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        peak, weight, mixed = absorb(q, k, v, inside, peak, weight, mixed, scale)

    if split == 0:  # always active: here the new tokens join, which the first block stores
        for start in range(0, T, BLOCK_T):
            new = start + tl.arange(0, BLOCK_T)
            held = tl.minimum(new, T - 1)
            k_heads = tokens + (held * (H + 2 * HKV) + H + kv_head)[:, None] * D
            where = begin + (tl.load(depths_ptr + held).to(tl.int32) if TREE else held)
            k_new = _turned(
                k_heads, k_norm_ptr, cos_ptr, sin_ptr, where[:, None], new < T, eps, D, BLOCK_T, BLOCK_D, NORM
            ).to(keys_ptr.dtype.element_ty)
            kept = (new < T)[:, None] & (d < D)[None, :]
            v_new = tl.load(k_heads + HKV * D + d[None, :], mask=kept, other=0.0)
            slots = (cache_row + begin + new)[:, None] * D + d[None, :]
            tl.store(keys_ptr + slots, k_new, mask=kept & (block == 0))
            tl.store(values_ptr + slots, v_new, mask=kept & (block == 0))
            scores = tl.dot(q, k_new.T, input_precision="ieee") * scale  # (BLOCK_M, BLOCK_T)
            if TREE:
                pairs = sees_ptr + t[:, None] * T + new[None, :]
                seen = tl.load(pairs, mask=(new < T)[None, :], other=0) != 0
            else:
                seen = new[None, :] <= t[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            peak, weight, fade, share = join(scores, peak, weight)
            mixed = tl.dot(share.to(v_new.dtype), v_new, mixed * fade[:, None], input_precision="ieee")

    outputs = out_ptr + row.to(tl.int64) * T * H * D + kv_head * G * D
    if active == 1:
        heads = outputs + (t * H + m % G)[:, None] * D + d[None, :]
        result = (mixed / weight[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(heads, result, mask=real[:, None] & (d < D)[None, :])
    else:
        part = (group * T * G + m) * SPLITS + split
        tl.store(peaks_ptr + part, peak, mask=real)
        tl.store(weights_ptr + part, weight, mask=real)
        part_at = mixed_ptr + part[:, None].to(tl.int64) * D + d[None, :]
        tl.store(part_at, mixed, mask=real[:, None] & (d < D)[None, :])
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(arrivals_ptr + tl.program_id(0), 1, sem="acq_rel") == active - 1:
            tl.store(arrivals_ptr + tl.program_id(0), 0)
            _combine(
                outputs,
                peaks_ptr,
                weights_ptr,
                mixed_ptr,
                group,
                block * BLOCK_M,
                active,
                T,
                H,
                G,
                D,
                BLOCK_D,
                BLOCK_M,
                SPLITS,
            )


@triton.jit
def _combine(
    outputs,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    group,
    first,
    active,
    T: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The output of a block of queries, of what their splits left; as many at once as registers hold."""
    WIDTH: tl.constexpr = max(1, min(BLOCK_M, 16384 // (SPLITS * BLOCK_D)))
    splits, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    for start in range(first, first + BLOCK_M, WIDTH):
        m = start + tl.arange(0, WIDTH)
        parts = (group * T * G + m).to(tl.int64)[:, None] * SPLITS + splits[None, :]  # (WIDTH, SPLITS)
        held = (m < T * G)[:, None] & (splits < active)[None, :]
        peaks = tl.load(peaks_ptr + parts, mask=held, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(weights_ptr + parts, mask=held, other=0.0, cache_modifier=".cg")
        part_at = mixed_ptr + parts[:, :, None] * D + d[None, None, :]
        part_mask = held[:, :, None] & (d < D)[None, None, :]
        mixed = tl.load(part_at, mask=part_mask, other=0.0, cache_modifier=".cg")
        peak = tl.where(m < T * G, tl.max(peaks, axis=1), 0.0)
        fade = tl.exp2(peaks - peak[:, None])
        weight = tl.where(m < T * G, tl.sum(weights * fade, axis=1), 1.0)
        total = tl.sum(mixed * fade[:, :, None], axis=1) / weight[:, None]
        at = (m // G * H + m % G)[:, None] * D + d[None, :]
        result = total.to(outputs.dtype.element_ty)
        tl.store(outputs + at, result, mask=(m < T * G)[:, None] & (d < D)[None, :])


def launch(
    grid: tuple[int, int],
    arguments: tuple,
    constants: dict,
    num_tokens: int,
    tree: TreeMask | None,
    tile: AttentionTile,
    pdl: bool,
) -> None:
    """With what `decode_attention` tells its kernels, but a program a row of the cache, not of `qkv`."""
    queries = num_tokens * constants["H"] // constants["HKV"]
    block = min(MOST_QUERIES, max(16, triton.next_power_of_2(queries)))
    blocks = query_blocks(num_tokens, constants["H"], constants["HKV"])
    chain = arguments[3], arguments[3]  # of a chain never read
    _append_attention_kernel[(grid[0] // num_tokens * blocks, grid[1])](
        *arguments,
        *(chain if tree is None else (tree.sees.view(torch.uint8), tree.depths)),
        **constants,
        T=num_tokens,
        BLOCK_D=max(16, triton.next_power_of_2(constants["D"])),
        BLOCK_M=block,
        BLOCK_T=16 if num_tokens <= 16 else 32,
        BLOCKS=blocks,
        TREE=tree is not None,
        num_warps=tile.warps,
        **options(pdl),
    )
