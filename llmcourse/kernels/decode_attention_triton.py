"""The kernel of `decode_attention`: grid (B · Hkv, splits)."""

from __future__ import annotations

import triton
import triton.language as tl

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.tiles import AttentionTile

# The tile of a group's query heads is (BLOCK_G, BLOCK_D), and all that is combined with it is loaded in its
# shape, every row alike: so each thread holds what it needs, and nothing has to pass from thread to thread.


@triton.jit
def repeated_features(BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.arange(0, BLOCK_D)[None, :] + tl.zeros((BLOCK_G, 1), tl.int32)


@triton.jit
def partners(d, D: tl.constexpr):
    """RoPE turns feature d with the one that lies D / 2 away."""
    return tl.where(d < D // 2, d + D // 2, d - D // 2)


@triton.jit
def angles(cos_ptr, sin_ptr, position, d, D: tl.constexpr):
    """Cosine and signed sine for every feature of a head at this position."""
    HALF: tl.constexpr = D // 2
    at = position * HALF + tl.where(d < HALF, d, d - HALF)
    cos = tl.load(cos_ptr + at, mask=d < D, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=d < D, other=0.0).to(tl.float32)
    return cos, tl.where(d < HALF, -sin, sin)


@triton.jit
def gains(norm_ptr, d, D: tl.constexpr, NORM: tl.constexpr):
    """Weights of the head norm for every feature and for its partner; ones without a norm."""
    if NORM:
        own = tl.load(norm_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        return own, tl.load(norm_ptr + partners(d, D), mask=d < D, other=0.0).to(tl.float32)
    else:
        ones = tl.full(d.shape, 1.0, tl.float32)
        return ones, ones


@triton.jit
def rotated(x, y, gain, partner_gain, cos, sin, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Heads x, their partners y, after norm and RoPE; fp32."""
    x, y = x.to(tl.float32), y.to(tl.float32)
    if NORM:
        scale = (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps))[:, None]
        x *= scale * gain
        y *= scale * partner_gain
    return x * cos + y * sin


@triton.jit
def absorb(q, k, v, inside, peak, weight, mixed, scale):
    """The tile k, v `(BLOCK_S, BLOCK_D)` joins what the query heads q `(BLOCK_G, BLOCK_D)` have seen."""
    scores = tl.dot(q, k.T, input_precision="ieee") * scale  # (BLOCK_G, BLOCK_S), base 2
    scores = tl.where(inside[None, :], scores, float("-inf"))
    peak, weight, fade, share = join(scores, peak, weight)
    mixed = tl.dot(share.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
    return peak, weight, mixed


@triton.jit
def shares(position, BLOCK_S: tl.constexpr):
    """Earlier keys that each split of a row takes, in whole tiles, and how many splits then have some."""
    programs = BLOCK_S * tl.num_programs(1)
    span = tl.maximum((position + programs - 1) // programs, 1) * BLOCK_S
    return span, tl.maximum((position + span - 1) // span, 1)


@triton.jit(do_not_specialize=["width"])  # slots of a row: no kernel for each cache
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
    width,
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
    span, active = shares(position, BLOCK_S)
    start_next(PDL)
    if split >= active:
        wait_for_input(PDL)
        return

    # What is no result of the previous kernel is on its way at once: angles, gains, keys of earlier tokens.
    features = repeated_features(BLOCK_G, BLOCK_D)
    cos, sin = angles(cos_ptr, sin_ptr, position, features, D)
    q_gain, q_partner_gain = gains(q_norm_ptr, features, D, NORM)
    k_gain, k_partner_gain = gains(k_norm_ptr, features, D, NORM)
    first, last = split * span, tl.minimum(split * span + span, position)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    cache_row = (row.to(tl.int64) * HKV + kv_head) * width
    inside = first + s < last
    at = (cache_row + (first + s))[:, None] * D + d[None, :]
    tile_mask = inside[:, None] & (d < D)[None, :]
    k = tl.load(keys_ptr + at, mask=tile_mask, other=0.0)
    v = tl.load(values_ptr + at, mask=tile_mask, other=0.0)
    wait_for_input(PDL)

    # And so is all that the previous kernel wrote, before any of it is used.
    heads = qkv_ptr + row.to(tl.int64) * (H + 2 * HKV) * D
    group = tl.arange(0, BLOCK_G)
    q_head = heads + (kv_head * G + group)[:, None] * D
    k_head, v_head = heads + (H + kv_head) * D, heads + (H + HKV + kv_head) * D
    real = (group < G)[:, None] & (features < D)
    q = tl.load(q_head + features, mask=real, other=0.0)
    q_partner = tl.load(q_head + partners(features, D), mask=real, other=0.0)
    k_new = tl.load(k_head + features, mask=features < D, other=0.0)
    k_partner = tl.load(k_head + partners(features, D), mask=features < D, other=0.0)
    v_new = tl.load(v_head + features, mask=features < D, other=0.0)
    q = rotated(q, q_partner, q_gain, q_partner_gain, cos, sin, eps, D, NORM)
    q = q.to(qkv_ptr.dtype.element_ty)
    k_new = rotated(k_new, k_partner, k_gain, k_partner_gain, cos, sin, eps, D, NORM)
    k_new = k_new.to(keys_ptr.dtype.element_ty)

    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_G,), tl.float32)
    mixed = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    peak, weight, mixed = absorb(q, k, v, inside, peak, weight, mixed, scale)
    for start in range(first + BLOCK_S, last, BLOCK_S):
        inside = start + s < last
        at = (cache_row + (start + s))[:, None] * D + d[None, :]
        tile_mask = inside[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + at, mask=tile_mask, other=0.0)
        v = tl.load(values_ptr + at, mask=tile_mask, other=0.0)
        peak, weight, mixed = absorb(q, k, v, inside, peak, weight, mixed, scale)

    if split == 0:  # always active: it stores the new token, and lets it join
        slot = (cache_row + position) * D + features
        first_row = (group == 0)[:, None] & (features < D)
        tl.store(keys_ptr + slot, k_new, mask=first_row)
        tl.store(values_ptr + slot, v_new.to(values_ptr.dtype.element_ty), mask=first_row)
        score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale
        new_peak = tl.maximum(peak, score)
        fade, share = tl.exp2(peak - new_peak), tl.exp2(score - new_peak)
        weight = weight * fade + share
        mixed = mixed * fade[:, None] + share[:, None] * v_new.to(tl.float32)
        peak = new_peak

    hand_in(
        peak, weight, mixed, out_ptr, peaks_ptr, weights_ptr, mixed_ptr, arrivals_ptr, row, kv_head, split,
        active, H, HKV, D, BLOCK_D, BLOCK_G, SPLITS,
    )  # fmt: skip


@triton.jit
def hand_in(
    peak,
    weight,
    mixed,
    out_ptr,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    arrivals_ptr,
    row,
    kv_head,
    split,
    active,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Stores what a split has seen; the last of a row's active splits to arrive makes the output of all."""
    G: tl.constexpr = H // HKV
    group, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    real = (group < G)[:, None] & (d < D)[None, :]
    if active == 1:
        outputs = out_ptr + (row.to(tl.int64) * H + kv_head * G + group)[:, None] * D + d[None, :]
        tl.store(outputs, (mixed / weight[:, None]).to(out_ptr.dtype.element_ty), mask=real)
    else:
        part = (row * H + kv_head * G + group) * SPLITS + split
        tl.store(peaks_ptr + part, peak, mask=group < G)
        tl.store(weights_ptr + part, weight, mask=group < G)
        tl.store(mixed_ptr + part[:, None].to(tl.int64) * D + d[None, :], mixed, mask=real)
        tl.debug_barrier()  # all threads have stored before one of them says so
        arrivals = arrivals_ptr + row * HKV + kv_head
        if tl.atomic_add(arrivals, 1, sem="acq_rel") == active - 1:
            tl.store(arrivals, 0)
            first_head = row * H + kv_head * G
            combine(out_ptr, peaks_ptr, weights_ptr, mixed_ptr, first_head, active, G, D, BLOCK_D, SPLITS)


@triton.jit
def combine(
    out_ptr,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    first_head,
    active,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The output of G heads of what their splits left; as many heads at once as registers hold."""
    WIDTH: tl.constexpr = max(1, min(triton.next_power_of_2(G), 16384 // (SPLITS * BLOCK_D)))
    splits, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    seen = splits < active
    for start in tl.static_range(0, G, WIDTH):
        member = start + tl.arange(0, WIDTH)
        head = (first_head + member).to(tl.int64)
        parts = head[:, None] * SPLITS + splits[None, :]  # (WIDTH, SPLITS)
        held = (member < G)[:, None] & seen[None, :]
        peaks = tl.load(peaks_ptr + parts, mask=held, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(weights_ptr + parts, mask=held, other=0.0, cache_modifier=".cg")
        part_mask = held[:, :, None] & (d < D)[None, None, :]
        part_at = mixed_ptr + parts[:, :, None] * D + d[None, None, :]
        mixed = tl.load(part_at, mask=part_mask, other=0.0, cache_modifier=".cg")
        peak = tl.where(member < G, tl.max(peaks, axis=1), 0.0)
        fade = tl.exp2(peaks - peak[:, None])
        weight = tl.where(member < G, tl.sum(weights * fade, axis=1), 1.0)
        total = tl.sum(mixed * fade[:, :, None], axis=1) / weight[:, None]
        at = out_ptr + head[:, None] * D + d[None, :]
        tl.store(at, total.to(out_ptr.dtype.element_ty), mask=(member < G)[:, None] & (d < D)[None, :])


def launch(grid: tuple[int, int], arguments: tuple, constants: dict, tile: AttentionTile, pdl: bool) -> None:
    """With what `decode_attention` tells both of its kernels."""
    _decode_attention_kernel[grid](
        *arguments,
        **constants,
        BLOCK_D=max(16, triton.next_power_of_2(constants["D"])),
        BLOCK_G=max(16, triton.next_power_of_2(constants["H"] // constants["HKV"])),
        num_warps=tile.warps,
        **options(pdl),
    )
