"""The kernel of `decode_attention` in 16 bits: keys and values wait in shared memory for the query.

`decode_attention_triton` must share a short cache out among many programs to read it fast, and then join what
they found: stores, a counter, loads, one after another through the L2. Here one program asks for the first
`STAGES` tiles of a head's keys and values before it waits for the previous kernel, so they arrive while that
one still works, and up to some hundreds of tokens one program a head needs no others. Longer caches are split
as before. In Gluon, because only there a copy can be begun before the wait and used after it.

The tile of a group's query heads has 16 rows, as the tensor cores' left operand must; what is combined with
it is loaded in its shape, every row alike.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.tiles import AttentionTile


@gluon.jit
def _request_tile(
    keys, values, keys_ptr, values_ptr, base, start, last, D: gl.constexpr, S: gl.constexpr, L: gl.constexpr
):
    """Begins to copy S keys and values from slot `start` on; zeros from slot `last` on."""
    slot = start + gl.arange(0, S, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, D, gl.SliceLayout(0, L))[None, :]
    at = base + slot * D + d
    inside = (slot < last) & (d < D)
    async_copy.async_copy_global_to_shared(keys, keys_ptr + at, mask=inside)
    async_copy.async_copy_global_to_shared(values, values_ptr + at, mask=inside)


@gluon.jit
def _gains(norm_ptr, d, partners, NORM: gl.constexpr, L: gl.constexpr):
    """Weights of the head norm for every feature and for its partner; ones without a norm."""
    if NORM:
        return gl.load(norm_ptr + d).to(gl.float32), gl.load(norm_ptr + partners).to(gl.float32)
    else:
        ones = gl.full(d.shape, 1.0, gl.float32, L)
        return ones, ones


@gluon.jit
def _rotated(x, y, gain, partner_gain, cos, sin, eps, D: gl.constexpr, NORM: gl.constexpr):
    """Heads x, their partners y, after norm and RoPE; fp32."""
    x, y = x.to(gl.float32), y.to(gl.float32)
    if NORM:
        scale = (1.0 / gl.sqrt(gl.sum(x * x, axis=1) / D + eps))[:, None]
        x = x * scale * gain
        y = y * scale * partner_gain
    return x * cos + y * sin


@gluon.jit
def _attend(
    query,
    keys,
    values,
    keys_ptr,
    values_ptr,
    base,
    first,
    last,
    peak,
    weight,
    mixed,
    scale,
    D: gl.constexpr,
    S: gl.constexpr,
    STAGES: gl.constexpr,
    L: gl.constexpr,
    C: gl.constexpr,
):
    """The online softmax over the tiles of a split, as in `online_softmax_triton.join`.

    Every tile has a key, and one that has been read makes place for the one `STAGES` tiles on.
    """
    dtype: gl.constexpr = keys.dtype
    LEFT: gl.constexpr = gl.DotOperandLayout(0, C, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, C, 2)
    s = gl.arange(0, S, gl.SliceLayout(0, C))
    stage = 0
    for start in range(first, last, S):
        async_copy.wait_group(STAGES - 1)
        tl.debug_barrier()  # all threads have waited for what each has copied
        k = keys.index(stage).permute((1, 0)).load(RIGHT)
        scores = mma_v2(query, k, gl.zeros([16, S], gl.float32, C)) * scale
        scores = gl.where((start + s < last)[None, :], scores, float("-inf"))
        new_peak = gl.maximum(peak, gl.max(scores, axis=1))
        fade = gl.exp2(peak - new_peak)
        share = gl.exp2(scores - new_peak[:, None])
        weight = weight * fade + gl.sum(share, axis=1)
        v = values.index(stage).load(RIGHT)
        mixed = mma_v2(gl.convert_layout(share.to(dtype), LEFT), v, mixed * fade[:, None])
        peak = new_peak
        if start + STAGES * S < last:
            tl.debug_barrier()  # all have read this tile before another takes its place
            _request_tile(
                keys.index(stage),
                values.index(stage),
                keys_ptr,
                values_ptr,
                base,
                start + STAGES * S,
                last,
                D,
                S,
                L,
            )
        async_copy.commit_group()  # without a tile an empty one, so that counting them stays simple
        stage = (stage + 1) % STAGES
    async_copy.wait_group(0)  # tiles that were asked for and not needed: their memory is used again
    tl.debug_barrier()
    return peak, weight, mixed


@gluon.jit
def _staged_attention_kernel(
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
    H: gl.constexpr,
    HKV: gl.constexpr,
    D: gl.constexpr,
    BLOCK_S: gl.constexpr,
    STAGES: gl.constexpr,
    SPLITS: gl.constexpr,
    NORM: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    G: gl.constexpr = H // HKV
    row = gl.program_id(0) // HKV
    kv_head = gl.program_id(0) % HKV
    split = gl.program_id(1)
    position = gl.load(positions_ptr + row).to(gl.int32)
    programs = gl.num_programs(1)
    if SPLITS == 1:
        programs = 1  # known when it is compiled, which spares registers
    span = gl.maximum((position + BLOCK_S * programs - 1) // (BLOCK_S * programs), 1) * BLOCK_S
    active = gl.maximum((position + span - 1) // span, 1)
    if split >= active:
        start_next(PDL)
        wait_for_input(PDL)
        return

    dtype: gl.constexpr = keys_ptr.dtype.element_ty
    LANES: gl.constexpr = D // 8  # threads for the features of a head, 16 bytes each
    L: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [num_warps, 1], [1, 0])
    # The tensor cores' result: the group's heads by keys, then by features; either way shared by the warps.
    C: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, num_warps], instr_shape=[16, 8]
    )
    PER_HEAD: gl.constexpr = gl.SliceLayout(1, C)
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, order=[1, 0])
    keys = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_S, D], swizzled)
    values = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_S, D], swizzled)
    first = split * span
    last = gl.minimum(first + span, position)
    base = (row.to(gl.int64) * HKV + kv_head) * capacity * D
    for stage in gl.static_range(STAGES):
        start = first + stage * BLOCK_S
        _request_tile(
            keys.index(stage), values.index(stage), keys_ptr, values_ptr, base, start, last, D, BLOCK_S, L
        )
        async_copy.commit_group()
    start_next(PDL)

    # What else is no result of the previous kernel: angles and gains.
    group = gl.arange(0, 16, gl.SliceLayout(1, L))
    d = gl.arange(0, D, gl.SliceLayout(0, L))[None, :] + gl.zeros([16, 1], gl.int32, L)
    partners = gl.where(d < D // 2, d + D // 2, d - D // 2)
    at = position * (D // 2) + d % (D // 2)
    cos = gl.load(cos_ptr + at).to(gl.float32)
    sin = gl.load(sin_ptr + at).to(gl.float32)
    sin = gl.where(d < D // 2, -sin, sin)
    q_gain, q_partner_gain = _gains(q_norm_ptr, d, partners, NORM, L)
    k_gain, k_partner_gain = _gains(k_norm_ptr, d, partners, NORM, L)
    wait_for_input(PDL)

    heads = qkv_ptr + row.to(gl.int64) * (H + 2 * HKV) * D
    q_head = heads + (kv_head * G + group)[:, None] * D
    k_head, v_head = heads + (H + kv_head) * D, heads + (H + HKV + kv_head) * D
    real = (group < G)[:, None] & (d < D)
    d_mixed = gl.arange(0, D, gl.SliceLayout(0, C))
    q = gl.load(q_head + d, mask=real, other=0.0)
    q_partner = gl.load(q_head + partners, mask=real, other=0.0)
    k_new, k_partner = gl.load(k_head + d), gl.load(k_head + partners)
    v_new = gl.load(v_head + d_mixed)
    q = _rotated(q, q_partner, q_gain, q_partner_gain, cos, sin, eps, D, NORM).to(dtype)
    k_new = _rotated(k_new, k_partner, k_gain, k_partner_gain, cos, sin, eps, D, NORM).to(dtype)

    peak = gl.full([16], float("-inf"), gl.float32, PER_HEAD)
    weight = gl.zeros([16], gl.float32, PER_HEAD)
    mixed = gl.zeros([16, D], gl.float32, C)
    if split == 0:  # always active: it stores the new token, and begins with it
        slot = base + position.to(gl.int64) * D
        gl.store(keys_ptr + slot + d, k_new, mask=(group == 0)[:, None] & (d < D))
        gl.store(values_ptr + slot + d_mixed, v_new)
        score = gl.sum(q.to(gl.float32) * k_new.to(gl.float32), axis=1) * scale
        peak = gl.convert_layout(score, PER_HEAD)
        weight = gl.full([16], 1.0, gl.float32, PER_HEAD)
        mixed += v_new.to(gl.float32)[None, :]

    query = gl.convert_layout(q, gl.DotOperandLayout(0, C, 2))
    peak, weight, mixed = _attend(
        query,
        keys,
        values,
        keys_ptr,
        values_ptr,
        base,
        first,
        last,
        peak,
        weight,
        mixed,
        scale,
        D,
        BLOCK_S,
        STAGES,
        L,
        C,
    )

    first_head = row * H + kv_head * G
    if active == 1:
        _store(out_ptr, weight, mixed, first_head, G, D, C)
        return
    _store_part(peaks_ptr, weights_ptr, mixed_ptr, peak, weight, mixed, first_head, split, G, D, SPLITS, C)
    tl.debug_barrier()  # all threads have stored before one of them says so
    arrived = gl.atomic_add(arrivals_ptr + row * HKV + kv_head, 1, sem="acq_rel")
    if arrived == active - 1:
        gl.store(arrivals_ptr + row * HKV + kv_head, 0)
        for member in gl.static_range(G):
            head = (first_head + member).to(gl.int64)
            _combine(out_ptr, peaks_ptr, weights_ptr, mixed_ptr, head, active, D, SPLITS, num_warps)


@gluon.jit
def _store(out_ptr, weight, mixed, first_head, G: gl.constexpr, D: gl.constexpr, C: gl.constexpr):
    """The output of the heads of a group whose cache was not split."""
    member = gl.arange(0, 16, gl.SliceLayout(1, C))
    d = gl.arange(0, D, gl.SliceLayout(0, C))
    to = out_ptr + (first_head + member).to(gl.int64)[:, None] * D + d[None, :]
    held = (member < G)[:, None] & (d < D)[None, :]
    gl.store(to, (mixed / weight[:, None]).to(out_ptr.dtype.element_ty), mask=held)


@gluon.jit
def _store_part(
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    peak,
    weight,
    mixed,
    first_head,
    split,
    G: gl.constexpr,
    D: gl.constexpr,
    SPLITS: gl.constexpr,
    C: gl.constexpr,
):
    """What a split leaves for the one that ends last."""
    member = gl.arange(0, 16, gl.SliceLayout(1, C))
    d = gl.arange(0, D, gl.SliceLayout(0, C))
    part = (first_head + member).to(gl.int64) * SPLITS + split
    gl.store(peaks_ptr + part, peak, mask=member < G)
    gl.store(weights_ptr + part, weight, mask=member < G)
    held = (member < G)[:, None] & (d < D)[None, :]
    gl.store(mixed_ptr + part[:, None] * D + d[None, :], mixed, mask=held)


@gluon.jit
def _combine(
    out_ptr,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    head,
    active,
    D: gl.constexpr,
    SPLITS: gl.constexpr,
    num_warps: gl.constexpr,
):
    """The output of a head of what its splits left."""
    LANES: gl.constexpr = min(D // 4, 32)
    L: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [num_warps, 1], [1, 0])
    split = gl.arange(0, SPLITS, gl.SliceLayout(1, L))
    d = gl.arange(0, D, gl.SliceLayout(0, L))
    seen = split < active
    part = head * SPLITS + split
    peaks = gl.load(peaks_ptr + part, mask=seen, other=float("-inf"), cache_modifier=".cg")
    weights = gl.load(weights_ptr + part, mask=seen, other=0.0, cache_modifier=".cg")
    at = mixed_ptr + part[:, None] * D + d[None, :]
    mixed = gl.load(at, mask=seen[:, None] & (d < D)[None, :], other=0.0, cache_modifier=".cg")
    fade = gl.exp2(peaks - gl.max(peaks, axis=0))
    total = gl.sum(mixed * fade[:, None], axis=0) / gl.sum(weights * fade, axis=0)
    gl.store(out_ptr + head * D + d, total.to(out_ptr.dtype.element_ty))


def launch(grid: tuple[int, int], arguments: tuple, constants: dict, tile: AttentionTile, pdl: bool) -> None:
    """With what `decode_attention` tells both of its kernels."""
    _staged_attention_kernel[grid](
        *arguments, **constants, STAGES=tile.stages, num_warps=tile.warps, **options(pdl)
    )
