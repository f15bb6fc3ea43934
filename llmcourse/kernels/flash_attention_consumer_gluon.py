"""What a consumer of `flash_attention_gluon` does, whose plan stands there: 64 queries of each tile.

Scores and weights of a block of keys, 64 × 128, and the result, 64 × D, are in registers; each of the 128
threads holds parts of two rows. The tensor cores take keys and values from shared memory, and weights from
registers, where they lie as the scores came.

Names of what is counted: `nth_tile` and `nth_block` count tiles and blocks of keys over all that the program
does, and say which slot and which phase of its barriers; `block` is the place of a block among the keys.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from llmcourse.kernels.flash_tiles_gluon import matrix

ROWS = gl.constexpr(64)  # queries of a consumer: the height of its products


@gluon.jit
def place_of(
    tile, T, S, H, q_tiles, heads, section, CAUSAL: gl.constexpr, BLOCK_Q: gl.constexpr, KEYS: gl.constexpr
):
    """Batch, head, first query and number of key blocks of a tile; `heads` is of all the batch.

    Heads go in sections; in a section the last queries of all its heads come first. Tiles are counted from
    the last query, and one that would begin before query 0 begins there: rows that two tiles share are
    computed twice, to the same bits.
    """
    begin = tile // (section * q_tiles) * section
    tile -= begin * q_tiles
    wide = gl.minimum(section, heads - begin)
    row = begin + tile % wide
    first = gl.maximum(T - (tile // wide + 1) * BLOCK_Q, 0)
    end = S
    if CAUSAL:
        end = gl.minimum(S, first + BLOCK_Q + S - T)
    blocks = gl.maximum((end + KEYS - 1) // KEYS, 1)  # one even if all of it is masked
    return row // H, row % H, first, blocks


@gluon.jit
def _exp2(x):
    """Without the care for the smallest results, which would take three instructions more."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _narrow(x, dtype: gl.constexpr):
    """Two numbers to 16 bits by one instruction, which the compiler makes two of."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        return gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.float16, is_pure=True, pack=2
        )


@gluon.jit
def _join(scores, peak, total, scale, MASKED: gl.constexpr):
    """`online_softmax_triton.join`, of scores that are not scaled yet: one instruction with the shift."""
    new_peak = gl.maximum(peak, gl.max(scores, axis=1) * scale)
    shift = new_peak
    if MASKED:
        shift = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    fade = _exp2(peak - shift)
    share = _exp2(scores * scale - shift[:, None])
    return new_peak, total * fade + gl.sum(share, axis=1), fade, share


@gluon.jit
def _hide(scores, block, first, T, S, CAUSAL: gl.constexpr, KEYS: gl.constexpr, SCORES: gl.constexpr):
    """−inf for keys that a query does not see."""
    # A thread has keys 8 i + j and 8 i + j + 1, with one even j of its own: taken out, constants are left.
    key = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    of_thread = key & 6
    end = gl.full([ROWS], 0, gl.int32, gl.SliceLayout(1, SCORES)) + S
    if CAUSAL:
        end = gl.minimum(first + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES)) + (S - T + 1), S)
    seen = (end - block * KEYS)[:, None] - of_thread[None, :]
    return gl.where((key & (KEYS - 7))[None, :] < seen, scores, float("-inf"))


@gluon.jit
def _begin_scores(q_tile, ks, turns, nth_block, ME: gl.constexpr, SCORES: gl.constexpr):
    """Issues Q Kᵀ of keys that are there, when it is this consumer's turn: once for each block, as all do."""
    STAGES: gl.constexpr = ks.shape[0]
    KEYS: gl.constexpr = ks.shape[3]
    mbarrier.wait(turns.index(ME), (nth_block + (ME == 0)) % 2)  # nobody is before the first
    zeros = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    k_tile = matrix(ks.index(nth_block % STAGES)).permute((1, 0))
    return warpgroup_mma(q_tile, k_tile, zeros, use_acc=False, is_async=True)


@gluon.jit
def _begin_values(weights, vs, v_full, nth_block, mixed):
    """Issues P V, added to what is mixed already, when the values are there."""
    STAGES: gl.constexpr = vs.shape[0]
    mbarrier.wait(v_full.index(nth_block % STAGES), nth_block // STAGES % 2)
    v_tile = matrix(vs.index(nth_block % STAGES))
    return warpgroup_mma(weights, v_tile, mixed, is_async=True)


@gluon.jit
def _step(
    q_tile,
    ks,
    vs,
    k_full,
    k_free,
    v_full,
    v_free,
    turns,
    nth_block,
    block,
    first,
    T,
    S,
    weights,
    mixed,
    peak,
    total,
    scale,
    MASKED: gl.constexpr,
    ME: gl.constexpr,
    SCORES: gl.constexpr,
):
    """Scores and softmax of a block, while the values of the block before it are added.

    Masked blocks are few; their softmax waits for both products, since registers do not hold all at once.
    """
    STAGES: gl.constexpr = ks.shape[0]
    KEYS: gl.constexpr = ks.shape[3]
    CONSUMERS: gl.constexpr = turns.shape[0]
    MIXED: gl.constexpr = mixed.type.layout
    scores = _begin_scores(q_tile, ks, turns, nth_block, ME, SCORES)
    mixed = _begin_values(weights, vs, v_full, nth_block - 1, mixed)
    mbarrier.arrive(turns.index((ME + 1) % CONSUMERS), count=1)
    if MASKED:
        scores, mixed, weights = warpgroup_mma_wait(0, [scores, mixed, weights])
        mbarrier.arrive(k_free.index(nth_block % STAGES), count=1)
        mbarrier.arrive(v_free.index((nth_block - 1) % STAGES), count=1)
        scores = _hide(scores, block, first, T, S, True, KEYS, SCORES)
        peak, total, fade, share = _join(scores, peak, total, scale, True)
        mbarrier.wait(k_full.index((nth_block + 1) % STAGES), (nth_block + 1) // STAGES % 2, pred=block > 0)
    else:
        scores = warpgroup_mma_wait(1, [scores])
        mbarrier.arrive(k_free.index(nth_block % STAGES), count=1)
        peak, total, fade, share = _join(scores, peak, total, scale, False)
        # The branch of this wait also keeps ptxas from moving the next wait before the exponentials.
        mbarrier.wait(k_full.index((nth_block + 1) % STAGES), (nth_block + 1) // STAGES % 2, pred=block > 0)
        mixed, weights = warpgroup_mma_wait(0, [mixed, weights])
        mbarrier.arrive(v_free.index((nth_block - 1) % STAGES), count=1)
    mixed = mixed * gl.convert_layout(fade, gl.SliceLayout(1, MIXED))[:, None]
    # At head size 128 this is slower on an H200, and with a mask the registers do not hold it.
    narrow = share.to(ks.dtype) if MASKED or ks.shape[4] > 64 else _narrow(share, ks.dtype)
    weights = gl.convert_layout(narrow, gl.DotOperandLayout(0, MIXED, 2))
    return weights, mixed, peak, total


@gluon.jit
def _pass_by(k_full, k_free, v_full, v_free, turns, nth_block, ME: gl.constexpr):
    """Says of a block that this consumer is done with it, and lets the next have its turn."""
    STAGES: gl.constexpr = k_full.shape[0]
    slot = nth_block % STAGES
    phase = nth_block // STAGES % 2
    mbarrier.wait(turns.index(ME), (nth_block + (ME == 0)) % 2)
    mbarrier.arrive(turns.index((ME + 1) % turns.shape[0]), count=1)
    # What arrives before the slot is full would count for the block that was there before.
    mbarrier.wait(k_full.index(slot), phase)
    mbarrier.arrive(k_free.index(slot), count=1)
    mbarrier.wait(v_full.index(slot), phase)
    mbarrier.arrive(v_free.index(slot), count=1)


@gluon.jit
def _finish(
    out,
    log_sum_exp_ptr,
    results,
    v_free,
    nth_block,
    batch,
    head,
    first,
    T,
    H,
    weights,
    mixed,
    peak,
    total,
    ME: gl.constexpr,
    STAGES: gl.constexpr,
    MIXED: gl.constexpr,
):
    """Divides by the weights' sum, and stores by way of shared memory; rows from T on are left out."""
    ROW: gl.constexpr = peak.type.layout
    total = gl.where(total == 0, 1.0, total)  # a query without keys gets zeros, its peak being −inf
    query = first + ROWS * ME + gl.arange(0, ROWS, ROW)
    row = (batch * H + head).to(gl.int64)
    gl.store(log_sum_exp_ptr + row * T + query, peak + gl.log2(total), mask=query < T)
    norm = gl.convert_layout(1.0 / total, gl.SliceLayout(1, MIXED))
    tma.store_wait(0)  # of the tile before: its slot in shared memory is needed
    mixed, weights = warpgroup_mma_wait(0, [mixed, weights])
    mbarrier.arrive(v_free.index(nth_block % STAGES), count=1)
    matrix(results.index(ME)).store((mixed * norm[:, None]).to(out.dtype))
    fence_async_shared()
    tl.debug_barrier()
    tma.async_copy_shared_to_global(out, [batch, head, first + ROWS * ME, 0], results.index(ME))


@gluon.jit
def consume(given, CAUSAL: gl.constexpr, RAGGED: gl.constexpr, ME: gl.constexpr):
    """Attention of 64 queries of each tile: the first block they see by itself, masked ones, the others."""
    (
        out, log_sum_exp_ptr, qs, ks, vs, results, drawn, q_full, q_free, k_full, k_free, v_full, v_free,
        turns, scale, T, S, H, q_tiles, heads, section,
    ) = given  # fmt: skip
    STAGES: gl.constexpr = ks.shape[0]
    KEYS: gl.constexpr = ks.shape[3]
    D: gl.constexpr = ks.shape[4]
    CONSUMERS: gl.constexpr = turns.shape[0]
    HIDDEN: gl.constexpr = CAUSAL or RAGGED
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16]
    )
    MIXED: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    nothing = gl.full([ROWS], float("-inf"), gl.float32, ROW)
    none = gl.zeros([ROWS], gl.float32, ROW)
    nth_block = 0
    nth_tile = 0
    mbarrier.wait(q_full.index(ME), 0)
    tile = gl.max(drawn.index(ME).load(ONE), axis=0)
    while tile >= 0:
        _batch, _head, first, blocks = place_of(
            tile, T, S, H, q_tiles, heads, section, CAUSAL, CONSUMERS * ROWS, KEYS
        )
        first += ROWS * ME
        block = blocks - 1
        slot = (nth_tile % 2) * CONSUMERS + ME
        q_tile = matrix(qs.index(slot))
        if CAUSAL and CONSUMERS * ROWS > KEYS:  # else blocks nobody sees are rare
            last_seen = gl.minimum(first + ROWS - 1 + S - T, S - 1)
            while (block > 0) & (block * KEYS > last_seen):
                _pass_by(k_full, k_free, v_full, v_free, turns, nth_block, ME)
                nth_block += 1
                block -= 1
        mbarrier.wait(k_full.index(nth_block % STAGES), nth_block // STAGES % 2)
        scores = _begin_scores(q_tile, ks, turns, nth_block, ME, SCORES)
        mbarrier.arrive(turns.index((ME + 1) % CONSUMERS), count=1)
        scores = warpgroup_mma_wait(0, [scores])
        mbarrier.arrive(k_free.index(nth_block % STAGES), count=1)
        if HIDDEN:
            scores = _hide(scores, block, first, T, S, CAUSAL, KEYS, SCORES)
        peak, total, _fade, share = _join(scores, nothing, none, scale, HIDDEN)
        weights = gl.convert_layout(share.to(ks.dtype), gl.DotOperandLayout(0, MIXED, 2))
        nth_block += 1
        mbarrier.wait(k_full.index(nth_block % STAGES), nth_block // STAGES % 2, pred=block > 0)
        mixed = gl.zeros([ROWS, D], gl.float32, MIXED)
        block -= 1
        if CAUSAL:
            whole = gl.minimum(gl.maximum(first + S - T + 1, 0), S) // KEYS  # blocks that all queries see
            while block >= whole:
                weights, mixed, peak, total = _step(
                    q_tile, ks, vs, k_full, k_free, v_full, v_free, turns, nth_block, block, first, T, S,
                    weights, mixed, peak, total, scale, True, ME, SCORES,
                )  # fmt: skip
                nth_block += 1
                block -= 1
        while block >= 0:
            weights, mixed, peak, total = _step(
                q_tile, ks, vs, k_full, k_free, v_full, v_free, turns, nth_block, block, first, T, S,
                weights, mixed, peak, total, scale, False, ME, SCORES,
            )  # fmt: skip
            nth_block += 1
            block -= 1

        mbarrier.arrive(q_free.index(slot), count=1)
        mixed = _begin_values(weights, vs, v_full, nth_block - 1, mixed)
        batch, head, first, _blocks = place_of(
            tile, T, S, H, q_tiles, heads, section, CAUSAL, CONSUMERS * ROWS, KEYS
        )
        _finish(
            out, log_sum_exp_ptr, results, v_free, nth_block - 1, batch, head, first, T, H,
            weights, mixed, peak, total, ME, STAGES, MIXED,
        )  # fmt: skip
        nth_tile += 1
        slot = (nth_tile % 2) * CONSUMERS + ME
        mbarrier.wait(q_full.index(slot), nth_tile // 2 % 2)
        tile = gl.max(drawn.index(slot).load(ONE), axis=0)
    tma.store_wait(0)
