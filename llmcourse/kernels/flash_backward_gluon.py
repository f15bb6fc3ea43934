"""The gradients of `flash_attention` on Hopper in five products instead of seven, for 16 bits.

`flash_backward_triton`, which is to be read first, makes P and dS twice, so that no program adds to what
another one writes. Here they are made once. A program holds 128 keys of a head, sums dK and dV up in
registers, and adds its share of dQ to that of the others in global memory, in fp32 (Dao 2023,
FlashAttention-2, section 3.2). The order of that sum is the one in which programs come along: two runs differ
in the last bits. There are three launches:

    _prepare_kernel    dQ = 0, and two numbers for each query: `starts`, −L / scale, and `deltas`, −δ
    _backward_kernel   the five products; dQ is left unscaled, in fp32, and in an order of its own
    _finish_kernel     dQ scaled, rounded and put in order

`flash_tiles_gluon` says what producers, consumers, slots and barriers are. In `_backward_kernel`

    the producer    (`_produce`, one warp, 24 registers a thread) asks for K and V once, and then, for every
                    query head that shares them, for tiles of Q and dO, with their `starts` and `deltas`
    the consumer    (`_consume`, eight warps, 240 registers a thread) multiplies: two groups of four warps,
                    each with 64 of the keys

    kv_full         K and V of this program have come
    full[slot]      a tile of queries has come, with all that belongs to it
    free[slot]      all products with it are done. The consumer says so one step later, where its two groups
                    meet anyway; so there are three slots, and nobody waits for the one between

One tile of queries is a step of the consumer (`_walk`); `→` starts a product, which then runs on its own:

    → S = K Qᵀ, → dP = V dOᵀ
    P = 2^(scale · S) while dP is on its way, then dS = P ∘ (dP − δ)
    → dV += P dO, as P lies in registers; dS goes to shared memory as well, since dQ needs what the other
    group of warps has: they meet here
    → dQ = dSᵀ K, → dK += dS Q
    dQ is added to global memory while dK is on its way

S begins at −L / scale instead of 0: tensor cores add to what is there, so that P = 2^(scale · S) needs
neither a subtraction nor registers for L while S is made. dQ leaves as it lies in the registers, four
neighbours a thread and 512 bytes a warp, the widest addition that there is, and `_finish_kernel` knows the
order; shared memory, which has to feed the tensor cores, sees none of it. (FlashAttention-3 lets the memory
accelerator add tiles of shared memory. With one more warp and two more barriers that was as fast at 64
features and slower at 128.)

Registers are what limits the tiles: dK and dV of 128 keys by 128 features take 128 of the 240. For the same
reason no product reaches into the next step: ptxas then finds too few registers and lets all of them wait.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels.flash_attention import Scoring
from llmcourse.kernels.flash_tiles_gluon import L2_BYTES, barriers, matrix, tiles_of
from llmcourse.kernels.flash_tiles_triton import LOG2_E, load_rows, norm_of, with_strides
from llmcourse.kernels.tiles import flash_backward_hopper_tile

WARPS = gl.constexpr(8)
PREPARED = 64  # rows of queries that a program of `_prepare_kernel` takes
LENGTHS = ["T", "S", "H", "GROUP", "padded", "heads", "section"]


@gluon.jit
def _produce(
    q, grad_out, starts, deltas, k, v, q_ring, grad_ring, start_ring, delta_ring, k_tile, v_tile, kv_full,
    full, free, batch, kv_head, first, begin, end, H, GROUP, padded, BLOCK_Q: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for keys and values once, then for tiles of queries, as slots become free."""
    mbarrier.expect(kv_full, 2 * k.block_type.nbytes)
    tma.async_copy_global_to_shared(k, [batch, kv_head, first, 0], kv_full, k_tile)
    tma.async_copy_global_to_shared(v, [batch, kv_head, first, 0], kv_full, v_tile)
    step = 0
    for member in range(GROUP):
        head = kv_head * GROUP + member
        row = (batch * H + head) * padded
        for query in range(begin, end, BLOCK_Q):
            slot = step % STAGES
            arrived = full.index(slot)
            mbarrier.wait(free.index(slot), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(arrived, 2 * (q.block_type.nbytes + starts.block_type.nbytes))
            tma.async_copy_global_to_shared(q, [batch, head, query, 0], arrived, q_ring.index(slot))
            tma.async_copy_global_to_shared(starts, [row + query], arrived, start_ring.index(slot))
            tma.async_copy_global_to_shared(grad_out, [batch, head, query, 0], arrived, grad_ring.index(slot))
            tma.async_copy_global_to_shared(deltas, [row + query], arrived, delta_ring.index(slot))
            step += 1


@gluon.jit
def _zeros_of_dq(BLOCK_Q: gl.constexpr, D: gl.constexpr):
    """As the product makes it: four warps share 64 queries; the other four have others, or other features."""
    if BLOCK_Q == 64:
        L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS // 2, 2], [16, D // 2, 16])
    else:
        L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    return gl.zeros([BLOCK_Q, D], gl.float32, L)


@gluon.jit
def _as_registers_lie(grad):
    """dQ as a row: two rows by two columns of a thread first, then the threads of a warp."""
    ROWS: gl.constexpr = grad.shape[0]
    D: gl.constexpr = grad.shape[1]
    parts = grad.reshape([ROWS // 16, 2, 8, D // 8, 4, 2])
    return parts.permute([0, 3, 2, 4, 1, 5]).reshape([ROWS * D])


@gluon.jit
def _as_rows(flat, ROWS: gl.constexpr, D: gl.constexpr):
    """`_as_registers_lie` undone."""
    return flat.reshape([ROWS // 16, D // 8, 8, 4, 2, 2]).permute([0, 4, 2, 1, 3, 5]).reshape([ROWS, D])


@gluon.jit
def _hide(scores, key, query, S, offset, CAUSAL: gl.constexpr):
    """−∞ for keys that are not there or that a query does not see."""
    seen = (key < S)[:, None]
    if CAUSAL:
        seen = seen & (key[:, None] <= (query + offset)[None, :])
    return gl.where(seen, scores, float("-inf"))


@gluon.jit
def _walk(
    step, begin, end, dk, dv, k, v, q_ring, grad_ring, start_ring, delta_ring, ds_tile, sums_ptr, full, free,
    first, offset, S, scale, MASKED: gl.constexpr, CAUSAL: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The steps of the consumer from one tile of queries to another; those before are `step` in number."""
    BLOCK_K: gl.constexpr = ds_tile.shape[0]
    BLOCK_Q: gl.constexpr = ds_tile.shape[1]
    D: gl.constexpr = k.shape[1]
    dtype: gl.constexpr = k.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_Q, 16])
    ROW: gl.constexpr = gl.SliceLayout(0, SCORES)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, dv.type.layout, 2)
    # Addresses of tiles are cheap to make in each step, by scalar instructions; were they made once, ahead of
    # the loop, there would be no registers for all of them.
    for start in tl.range(begin, end, BLOCK_Q, disable_licm=True):
        slot = step % STAGES
        q, grad_out = matrix(q_ring.index(slot)), matrix(grad_ring.index(slot))
        mbarrier.wait(full.index(slot), (step // STAGES) & 1)
        scores = start_ring.index(slot).load(ROW)[None, :].broadcast_to([BLOCK_K, BLOCK_Q])
        scores = warpgroup_mma(k, q.permute((1, 0)), scores, is_async=True)
        dp = gl.zeros([BLOCK_K, BLOCK_Q], gl.float32, SCORES)
        dp = warpgroup_mma(v, grad_out.permute((1, 0)), dp, use_acc=False, is_async=True)

        scores = warpgroup_mma_wait(1, deps=[scores])
        if MASKED:
            key = first + gl.arange(0, BLOCK_K, gl.SliceLayout(1, SCORES))
            scores = _hide(scores, key, start + gl.arange(0, BLOCK_Q, ROW), S, offset, CAUSAL)
        weights = gl.exp2(scores * scale)
        left_weights = gl.convert_layout(weights.to(dtype), LEFT)
        dp = warpgroup_mma_wait(0, deps=[dp])
        ds = (weights * (dp + delta_ring.index(slot).load(ROW)[None, :])).to(dtype)
        dv = warpgroup_mma(left_weights, grad_out, dv, is_async=True)
        ds_tile.store(ds)
        fence_async_shared()
        # All warps have come here, so that none is still in the step before.
        mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1, pred=step > 0)

        dq = _zeros_of_dq(BLOCK_Q, D)
        dq = warpgroup_mma(ds_tile.permute((1, 0)), k, dq, use_acc=False, is_async=True)
        dk = warpgroup_mma(gl.convert_layout(ds, LEFT), q, dk, is_async=True)
        dq, dv = warpgroup_mma_wait(1, deps=[dq, dv])
        flat = _as_registers_lie(dq)
        at = start.to(gl.int64) * D + gl.arange(0, BLOCK_Q * D, flat.type.layout)
        gl.atomic_add(sums_ptr + at, flat, sem="relaxed")
        dk = warpgroup_mma_wait(0, deps=[dk])
        step += 1
    return step, dk, dv


@gluon.jit
def _consume(
    grad_k, grad_v, k_tile, v_tile, q_ring, grad_ring, start_ring, delta_ring, ds_tile, sums_ptr, kv_full,
    full, free, batch, kv_head, first, begin, middle, end, S, T, H, GROUP, padded, scale, grad_scale,
    CAUSAL: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Makes dK and dV of the program's keys, from every query head that shares them, and adds to dQ.

    Only queries before the middle are near the diagonal, or near the end of the keys, and have keys to hide.
    """
    k, v = matrix(k_tile), matrix(v_tile)
    BLOCK_K: gl.constexpr = k.shape[0]
    D: gl.constexpr = k.shape[1]
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    dk = gl.zeros([BLOCK_K, D], gl.float32, L)
    dv = gl.zeros([BLOCK_K, D], gl.float32, L)
    mbarrier.wait(kv_full, 0)
    step = 0
    for member in range(GROUP):
        row = (batch * H + kv_head * GROUP + member).to(gl.int64) * padded
        step, dk, dv = _walk(
            step, begin, middle, dk, dv, k, v, q_ring, grad_ring, start_ring, delta_ring, ds_tile,
            sums_ptr + row * D, full, free, first, S - T, S, scale, True, CAUSAL, STAGES,
        )  # fmt: skip
        step, dk, dv = _walk(
            step, middle, end, dk, dv, k, v, q_ring, grad_ring, start_ring, delta_ring, ds_tile,
            sums_ptr + row * D, full, free, first, S - T, S, scale, False, CAUSAL, STAGES,
        )  # fmt: skip
    k.store((dk * grad_scale).to(k.dtype))  # nobody reads the tiles of K and V any more
    v.store(dv.to(k.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(grad_k, [batch, kv_head, first, 0], k_tile)
    tma.async_copy_shared_to_global(grad_v, [batch, kv_head, first, 0], v_tile)
    tma.store_wait(0)


@gluon.jit
def _place(S, heads, section, BLOCK_K: gl.constexpr):
    """Which key/value head of the batch this program takes, and its first key.

    Heads go in sections, whose queries the L2 cache holds; in a section the first keys of all its heads,
    which most queries see, come first, so that no long program is left over.
    """
    tiles = (S + BLOCK_K - 1) // BLOCK_K
    nth = gl.program_id(0) // (tiles * section)
    place = gl.program_id(0) % (tiles * section)
    wide = gl.minimum(section, heads - nth * section)
    return nth * section + place % wide, place // wide * BLOCK_K


@gluon.jit
def _queries_of(first, T, S, CAUSAL: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr):
    """Where the tiles of queries begin that see some of the keys, where those that see all, and the end."""
    begin, middle = 0, 0
    if CAUSAL:
        begin = gl.maximum(0, first - (S - T)) // BLOCK_Q * BLOCK_Q
        middle = (gl.maximum(0, first + BLOCK_K - 1 - (S - T)) + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
    end = (T + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
    if first + BLOCK_K > S:
        middle = end
    return begin, gl.minimum(middle, end), end


@gluon.jit(do_not_specialize=LENGTHS)
def _backward_kernel(
    q, k, v, grad_out, starts, deltas, sums_ptr, grad_k, grad_v, T, S, H, GROUP, padded, heads, section,
    scale, grad_scale, CAUSAL: gl.constexpr, STAGES: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q.dtype
    BLOCK_Q: gl.constexpr = q.block_shape[2]
    BLOCK_K: gl.constexpr = k.block_shape[2]
    D: gl.constexpr = k.block_shape[3]
    k_tile = gl.allocate_shared_memory(dtype, k.block_shape, k.layout)
    v_tile = gl.allocate_shared_memory(dtype, k.block_shape, k.layout)
    q_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_Q, D], q.layout)
    grad_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_Q, D], q.layout)
    start_ring = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_Q], starts.layout)
    delta_ring = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_Q], starts.layout)
    ds_tile = gl.allocate_shared_memory(dtype, [BLOCK_K, BLOCK_Q], gl.NVMMASharedLayout(128, 16, 2))
    kv_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full, free = barriers(STAGES), barriers(STAGES)
    mbarrier.init(kv_full, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(free.index(slot), count=1)
    fence_async_shared()

    row, first = _place(S, heads, section, BLOCK_K)
    batch, kv_head = row // (H // GROUP), row % (H // GROUP)
    begin, middle, end = _queries_of(first, T, S, CAUSAL, BLOCK_Q, BLOCK_K)
    gl.warp_specialize(
        [
            (_consume, (
                grad_k, grad_v, k_tile, v_tile, q_ring, grad_ring, start_ring, delta_ring, ds_tile, sums_ptr,
                kv_full, full, free, batch, kv_head, first, begin, middle, end, S, T, H, GROUP, padded,
                scale, grad_scale, CAUSAL, STAGES,
            )),
            (_produce, (
                q, grad_out, starts, deltas, k, v, q_ring, grad_ring, start_ring, delta_ring, k_tile, v_tile,
                kv_full, full, free, batch, kv_head, first, begin, end, H, GROUP, padded, BLOCK_Q, STAGES,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def _prepare_kernel(
    out, grad_out, log_sum_exp_ptr, starts_ptr, deltas_ptr, sums_ptr, T, H, padded, scale, D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """−L / scale and −δ of each row, −∞ and 0 of rows that are not there; dQ = 0."""
    first, head, batch = tl.program_id(0) * BLOCK_Q, tl.program_id(1), tl.program_id(2)
    query = first + tl.arange(0, BLOCK_Q)
    row = (batch * H + head).to(tl.int64)
    out_tile = load_rows(out, batch, head, first, T, BLOCK_Q, D, D).to(tl.float32)
    grad_tile = load_rows(grad_out, batch, head, first, T, BLOCK_Q, D, D).to(tl.float32)
    place = row * padded + query
    tl.store(deltas_ptr + place, -tl.sum(out_tile * grad_tile, axis=1))
    tl.store(starts_ptr + place, -norm_of(log_sum_exp_ptr + row * T, query, T) / scale)
    tl.store(sums_ptr + place[:, None] * D + tl.arange(0, D)[None, :], tl.zeros((BLOCK_Q, D), tl.float32))


@gluon.jit(do_not_specialize=LENGTHS)
def _finish_kernel(
    sums_ptr, grad_q, T, H, padded, grad_scale, D: gl.constexpr, BLOCK_Q: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """dQ scaled, rounded and put in order."""
    first, head, batch = gl.program_id(0) * BLOCK_Q, gl.program_id(1), gl.program_id(2)
    row = (batch * H + head).to(gl.int64) * padded + first
    like = _as_registers_lie(_zeros_of_dq(BLOCK_Q, D))
    flat = gl.load(sums_ptr + row * D + gl.arange(0, BLOCK_Q * D, like.type.layout))
    grad = (_as_rows(flat, BLOCK_Q, D) * grad_scale).to(grad_q[0].dtype.element_ty)

    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])  # 16 bytes a thread
    query = first + gl.arange(0, BLOCK_Q, gl.SliceLayout(1, L))
    d = gl.arange(0, D, gl.SliceLayout(0, L))
    to = grad_q[0] + batch.to(gl.int64) * grad_q[1] + head.to(gl.int64) * grad_q[2]
    to = to + query.to(gl.int64)[:, None] * grad_q[3] + d[None, :]
    gl.store(to, gl.convert_layout(grad, L), mask=(query < T)[:, None] & (d < D)[None, :])


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, grad_out: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """As `flash_backward_triton.launch_backward`, of what `flash_tiles_gluon.takes`."""
    batch, heads, queries, size = q.shape
    kv_heads, keys = k.shape[1:3]
    tile = flash_backward_hopper_tile(size)
    padded = triton.cdiv(queries, tile.queries) * tile.queries
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
    starts, deltas = (q.new_empty(batch * heads * padded, dtype=torch.float32) for _ in range(2))
    sums = q.new_empty(batch * heads * padded * size, dtype=torch.float32)
    scale, grad_scale = scoring.scale * LOG2_E.value, scoring.scale
    lengths = {"T": queries, "H": heads, "padded": padded}
    _prepare_kernel[(padded // PREPARED, heads, batch)](
        with_strides(out), with_strides(grad_out), log_sum_exp, starts, deltas, sums, scale=scale, D=size,
        BLOCK_Q=PREPARED, **lengths,
    )  # fmt: skip
    by_queries, by_keys = (functools.partial(tiles_of, rows=rows) for rows in (tile.queries, tile.keys))
    _backward_kernel[(triton.cdiv(keys, tile.keys) * kv_heads * batch,)](
        by_queries(q), by_keys(k), by_keys(v), by_queries(grad_out), _numbers(starts, tile.queries),
        _numbers(deltas, tile.queries), sums, by_keys(grad_k), by_keys(grad_v), S=keys,
        GROUP=heads // kv_heads, heads=batch * kv_heads,
        section=max(1, L2_BYTES // (2 * q.element_size() * queries * size)),
        scale=scale, grad_scale=grad_scale, CAUSAL=scoring.causal, STAGES=tile.stages, num_warps=tile.warps,
        **lengths,
    )  # fmt: skip
    _finish_kernel[(padded // tile.queries, heads, batch)](
        sums, with_strides(grad_q), grad_scale=grad_scale, D=size, BLOCK_Q=tile.queries,
        num_warps=tile.warps, **lengths,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _numbers(x: Tensor, rows: int) -> TensorDescriptor:
    """For copies of one number a row."""
    return TensorDescriptor(x, list(x.shape), [1], [rows], gl.NVMMASharedLayout(0, 32, rank=1))
