"""The kernel of `decode_attention`: grid (B · Hkv, splits)."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.decode_attention import HeadNorm, Workspace
from llmcourse.kernels.launch import options, wait_for_input


@triton.jit
def _rotated(
    head_ptr,
    norm_ptr,
    cos_ptr,
    sin_ptr,
    mask,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
):
    """Heads after norm and RoPE, fp32; every feature is loaded with its partner, D / 2 away."""
    d = tl.arange(0, BLOCK_D)
    HALF: tl.constexpr = D // 2
    partner = tl.where(d < HALF, d + HALF, d - HALF)
    angle = tl.where(d < HALF, d, d - HALF)
    inside = d < D
    x = tl.load(head_ptr + d[None, :], mask=mask & inside[None, :], other=0.0).to(tl.float32)
    y = tl.load(head_ptr + partner[None, :], mask=mask & inside[None, :], other=0.0).to(tl.float32)
    if NORM:
        scale = (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps))[:, None]
        x *= scale * tl.load(norm_ptr + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        y *= scale * tl.load(norm_ptr + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.where(d < HALF, -sin, sin)
    return x * cos[None, :] + y * sin[None, :]


@triton.jit
def _absorb(q, k, v, inside, peak, weight, mixed, scale):
    """One step of the online softmax: a tile of keys and values joins what was seen."""
    scores = tl.dot(q, k.T, input_precision="ieee") * scale  # (BLOCK_G, BLOCK_S), base 2
    scores = tl.where(inside[None, :], scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    # A split of no key yet has peak −inf, and −inf − (−inf) is no number.
    safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    fade = tl.exp2(peak - safe_peak)
    share = tl.exp2(scores - safe_peak[:, None])
    weight = weight * fade + tl.sum(share, axis=1)
    mixed = tl.dot(share.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
    return new_peak, weight, mixed


@triton.jit
def _decode_attention_kernel(
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
    capacity,
    eps,
    scale,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    G: tl.constexpr = H // HKV
    row = tl.program_id(0) // HKV
    kv_head = tl.program_id(0) % HKV
    split = tl.program_id(1)
    position = tl.load(positions_ptr + row).to(tl.int32)
    tiles_a_split = tl.maximum((position + BLOCK_S * SPLITS - 1) // (BLOCK_S * SPLITS), 1)
    span = tiles_a_split * BLOCK_S
    active = tl.maximum((position + span - 1) // span, 1)
    if split >= active:
        wait_for_input(PDL)
        return

    # Keys of earlier tokens are no result of the previous kernel: the first tile is on its way at once.
    first, last = split * span, tl.minimum(split * span + span, position)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    base = (row.to(tl.int64) * HKV + kv_head) * capacity * D
    at = base + (first + s)[:, None] * D + d[None, :]
    inside = first + s < last
    tile_mask = inside[:, None] & (d < D)[None, :]
    k = tl.load(keys_ptr + at, mask=tile_mask, other=0.0)
    v = tl.load(values_ptr + at, mask=tile_mask, other=0.0)
    wait_for_input(PDL)

    heads = qkv_ptr + row.to(tl.int64) * (H + 2 * HKV) * D
    group = tl.arange(0, BLOCK_G)
    q_heads = heads + (kv_head * G + group)[:, None] * D
    cosines, sines = cos_ptr + position * (D // 2), sin_ptr + position * (D // 2)
    q = _rotated(q_heads, q_norm_ptr, cosines, sines, (group < G)[:, None], eps, D, BLOCK_D, NORM)
    q = q.to(qkv_ptr.dtype.element_ty)

    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_G,), tl.float32)
    mixed = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    peak, weight, mixed = _absorb(q, k, v, inside, peak, weight, mixed, scale)
    for start in range(first + BLOCK_S, last, BLOCK_S):
        at = base + (start + s)[:, None] * D + d[None, :]
        inside = start + s < last
        tile_mask = inside[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + at, mask=tile_mask, other=0.0)
        v = tl.load(values_ptr + at, mask=tile_mask, other=0.0)
        peak, weight, mixed = _absorb(q, k, v, inside, peak, weight, mixed, scale)

    if split == 0:  # always active: it stores the new token, and lets it join
        one = tl.zeros((1,), tl.int32)
        k_head = heads + (H + kv_head) * D + one[:, None]
        k_new = _rotated(k_head, k_norm_ptr, cosines, sines, one[:, None] == 0, eps, D, BLOCK_D, NORM)
        k_new = k_new.to(keys_ptr.dtype.element_ty)
        v_new = tl.load(
            heads + (H + HKV + kv_head) * D + one[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0
        )
        slot = base + position.to(tl.int64) * D + one[:, None] + d[None, :]
        tl.store(keys_ptr + slot, k_new, mask=(d < D)[None, :])
        tl.store(values_ptr + slot, v_new.to(values_ptr.dtype.element_ty), mask=(d < D)[None, :])
        score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale
        new_peak = tl.maximum(peak, score)
        fade, share = tl.exp2(peak - new_peak), tl.exp2(score - new_peak)
        weight = weight * fade + share
        mixed = mixed * fade[:, None] + share[:, None] * v_new.to(tl.float32)
        peak = new_peak

    real = (group < G)[:, None] & (d < D)[None, :]
    outputs = out_ptr + (row.to(tl.int64) * H + kv_head * G + group)[:, None] * D + d[None, :]
    if active == 1:
        tl.store(outputs, (mixed / weight[:, None]).to(out_ptr.dtype.element_ty), mask=real)
        return
    part = (row * H + kv_head * G + group) * SPLITS + split
    tl.store(peaks_ptr + part, peak, mask=group < G)
    tl.store(weights_ptr + part, weight, mask=group < G)
    tl.store(mixed_ptr + part[:, None].to(tl.int64) * D + d[None, :], mixed, mask=real)
    tl.debug_barrier()  # all threads have stored before one of them says so
    arrived = tl.atomic_add(arrivals_ptr + row * HKV + kv_head, 1, sem="acq_rel")
    if arrived != active - 1:
        return
    tl.store(arrivals_ptr + row * HKV + kv_head, 0)
    splits = tl.arange(0, SPLITS)
    for member in tl.static_range(G):
        head = row * H + kv_head * G + member
        parts = head * SPLITS + splits
        peaks = tl.load(peaks_ptr + parts, mask=splits < active, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(weights_ptr + parts, mask=splits < active, other=0.0, cache_modifier=".cg")
        part_mask = (splits < active)[:, None] & (d < D)[None, :]
        part_at = mixed_ptr + parts[:, None].to(tl.int64) * D + d[None, :]
        parts_mixed = tl.load(part_at, mask=part_mask, other=0.0, cache_modifier=".cg")
        fade = tl.exp2(peaks - tl.max(peaks, axis=0))
        total = tl.sum(parts_mixed * fade[:, None], axis=0) / tl.sum(weights * fade, axis=0)
        tl.store(out_ptr + head.to(tl.int64) * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)


def launch(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
    workspace: Workspace,
    out: Tensor,
    pdl: bool,
    block: int,
    warps: int,
) -> None:
    batch, num_kv_heads, capacity, head_dim = keys.shape
    num_heads = out.shape[1] // head_dim
    _decode_attention_kernel[(batch * num_kv_heads, workspace.num_splits)](
        qkv,
        keys,
        values,
        positions,
        cos,
        sin,
        qkv if norm is None else norm.q,
        qkv if norm is None else norm.k,
        out,
        workspace.peaks,
        workspace.weights,
        workspace.mixed,
        workspace.arrivals,
        capacity,
        0.0 if norm is None else norm.eps,
        math.log2(math.e) / math.sqrt(head_dim),
        H=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_G=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        BLOCK_S=block,
        SPLITS=workspace.num_splits,
        NORM=norm is not None,
        PDL=pdl,
        num_warps=warps,
        **options(pdl),
    )
