"""The forward pass of `flash_attention` on Hopper: tensor cores multiply while exponentials are taken.

What is computed is what `flash_attention_triton` computes, which is to be read first, by the plan of Shah et
al. 2024, FlashAttention-3. `flash_tiles_gluon` says what producers, consumers, slots and barriers are.

There are as many programs as multiprocessors. Each takes one tile of queries after the other, as a counter in
global memory deals them out. In a program

    the producer    (`_produce`, one warp) draws tiles from the counter, and asks for their queries, and for
                    blocks of keys and values, as far ahead as there are slots
    two or three    consumers (`consume` in `flash_attention_consumer_gluon`, four warps each) have 64 queries
                    of each tile; scores, weights and the result never leave their registers

    q_full, q_free    64 queries. Each consumer has two slots of its own, for this tile and the next; beside
                      the slot lies the number of the tile that was drawn, −1 if none was left
    k_full, k_free    a block of keys, and
    v_full, v_free    one of values, which all consumers read: each of them has to say that it is done
    turns[c]          the consumer before c has started its products, and it is the turn of c

Two things keep the tensor cores busy. A consumer starts the product of its queries with the next keys, and
with it that of its last weights with their values, and takes the softmax of the first while the second still
runs (section 3.2, algorithm 2). And consumers start products in turns (section 3.1, "ping-pong"), so that one
takes exponentials while another's products run.

Keys are walked from the last that the tile sees back to the first: so the blocks that need a mask come first,
and the long loop has none. Where a tile is taller than a block, a consumer passes by those of which its own
queries see nothing. Tiles with most keys are drawn first, so that none is left over at the end; heads whose
keys and values fit the L2 cache together go together, as a section.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from llmcourse.kernels.flash_attention import Scoring
from llmcourse.kernels.flash_attention_consumer_gluon import ROWS, consume, place_of
from llmcourse.kernels.flash_tiles_gluon import L2_BYTES, barriers, tiles_of
from llmcourse.kernels.flash_tiles_triton import LOG2_E

BLOCK_K = 128  # keys at a time
CONSUMERS = {64: 3, 128: 2}  # by head size: as many as the registers hold
STAGES = {64: 4, 128: 2}  # blocks of keys in shared memory, and as many of values
REGISTERS = {2: (240, 24), 3: (160, 32)}  # of a consumer's thread and a producer's; 64 Ki in all
# Triton would compile once more for a 1 and for a multiple of 16: not for every other length of a prompt.
LENGTHS = ["T", "S", "H", "GROUP", "q_tiles", "heads", "section", "num_tiles"]


@gluon.jit
def _fill(tensor, tiles, full, free, nth_block, batch, head, first):
    """Asks for the nth block of all into its slot, when that is free."""
    STAGES: gl.constexpr = tiles.shape[0]
    slot = nth_block % STAGES
    mbarrier.wait(free.index(slot), (nth_block // STAGES + 1) % 2)
    mbarrier.expect(full.index(slot), tensor.block_type.nbytes)
    tma.async_copy_global_to_shared(tensor, [batch, head, first, 0], full.index(slot), tiles.index(slot))


@gluon.jit
def _produce(given, CAUSAL: gl.constexpr, KEYS: gl.constexpr, CONSUMERS: gl.constexpr):
    """Asks for all that the consumers read: values one block behind the keys, as they are needed."""
    (
        q, k, v, qs, ks, vs, drawn, counter_ptr, q_full, q_free, k_full, k_free, v_full, v_free,
        T, S, H, GROUP, q_tiles, heads, section, num_tiles,
    ) = given  # fmt: skip
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    nth_tile = 0
    nth_block = 0  # of keys, over all tiles
    v_batch = 0
    v_head = 0
    v_first = 0
    tile = gl.atomic_add(counter_ptr, 1)
    while tile < num_tiles:
        batch, head, first, blocks = place_of(
            tile, T, S, H, q_tiles, heads, section, CAUSAL, CONSUMERS * ROWS, KEYS
        )
        kv_head = head // GROUP
        for c in gl.static_range(CONSUMERS):
            slot = (nth_tile % 2) * CONSUMERS + c
            mbarrier.wait(q_free.index(slot), (nth_tile // 2 + 1) % 2)
            drawn.index(slot).store(gl.full([1], 0, gl.int32, ONE) + tile)
            mbarrier.expect(q_full.index(slot), q.block_type.nbytes)
            at = [batch, head, first + ROWS * c, 0]
            tma.async_copy_global_to_shared(q, at, q_full.index(slot), qs.index(slot))
        for back in range(blocks):
            start = (blocks - 1 - back) * KEYS
            _fill(k, ks, k_full, k_free, nth_block, batch, kv_head, start)
            if nth_block > 0:
                _fill(v, vs, v_full, v_free, nth_block - 1, v_batch, v_head, v_first)
            v_batch = batch
            v_head = kv_head
            v_first = start
            nth_block += 1
        nth_tile += 1
        tile = gl.atomic_add(counter_ptr, 1)
    if nth_block > 0:
        _fill(v, vs, v_full, v_free, nth_block - 1, v_batch, v_head, v_first)
    for c in gl.static_range(CONSUMERS):
        slot = (nth_tile % 2) * CONSUMERS + c
        mbarrier.wait(q_free.index(slot), (nth_tile // 2 + 1) % 2)
        drawn.index(slot).store(gl.full([1], -1, gl.int32, ONE))  # the end
        mbarrier.arrive(q_full.index(slot), count=1)


@gluon.jit(do_not_specialize=LENGTHS)
def _warp_specialized_forward_kernel(
    q,
    k,
    v,
    out,
    log_sum_exp_ptr,
    counter_ptr,
    T,
    S,
    H,
    GROUP,
    q_tiles,
    heads,
    section,
    num_tiles,
    scale,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    CONSUMERS: gl.constexpr,
    STAGES: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):
    KEYS: gl.constexpr = k.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    qs = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 1, 1, ROWS, D], q.layout)
    results = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, ROWS, D], q.layout)
    ks = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, KEYS, D], k.layout)
    vs = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, KEYS, D], k.layout)
    drawn = gl.allocate_shared_memory(gl.int32, [2 * CONSUMERS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full, q_free = barriers(2 * CONSUMERS), barriers(2 * CONSUMERS)
    turns = barriers(CONSUMERS)
    k_full, k_free = barriers(STAGES), barriers(STAGES)
    v_full, v_free = barriers(STAGES), barriers(STAGES)
    for slot in gl.static_range(2 * CONSUMERS):
        mbarrier.init(q_full.index(slot), count=1)
        mbarrier.init(q_free.index(slot), count=1)
    for c in gl.static_range(CONSUMERS):
        mbarrier.init(turns.index(c), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_full.index(slot), count=1)
        mbarrier.init(v_full.index(slot), count=1)
        mbarrier.init(k_free.index(slot), count=CONSUMERS)
        mbarrier.init(v_free.index(slot), count=CONSUMERS)
    fence_async_shared()
    for_consumers = (
        out, log_sum_exp_ptr, qs, ks, vs, results, drawn, q_full, q_free, k_full, k_free, v_full, v_free,
        turns, scale, T, S, H, q_tiles, heads, section,
    )  # fmt: skip
    for_producer = (
        q, k, v, qs, ks, vs, drawn, counter_ptr, q_full, q_free, k_full, k_free, v_full, v_free,
        T, S, H, GROUP, q_tiles, heads, section, num_tiles,
    )  # fmt: skip
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consume, (for_consumers, CAUSAL, RAGGED, 0)),
                (consume, (for_consumers, CAUSAL, RAGGED, 1)),
                (_produce, (for_producer, CAUSAL, KEYS, CONSUMERS)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (for_consumers, CAUSAL, RAGGED, 0)),
                (consume, (for_consumers, CAUSAL, RAGGED, 1)),
                (consume, (for_consumers, CAUSAL, RAGGED, 2)),
                (_produce, (for_producer, CAUSAL, KEYS, CONSUMERS)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )


def launch_forward(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """As `flash_attention_triton.launch_forward`, of what `flash_tiles_gluon.takes`."""
    (batch, heads, queries, size), (_, kv_heads, length, _) = q.shape, k.shape
    out, log_sum_exp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    consumers, group = CONSUMERS[size], heads // kv_heads
    q_tiles = triton.cdiv(queries, consumers * ROWS.value)
    # Without causality all tiles are equal, and those of one head may follow each other.
    section = max(1, L2_BYTES // (2 * length * size * k.element_size())) * group if scoring.causal else 1
    of_consumer, of_producer = REGISTERS[consumers]
    _warp_specialized_forward_kernel[(min(_processors(q), q_tiles * batch * heads),)](
        *(tiles_of(x, rows) for x, rows in ((q, ROWS.value), (k, BLOCK_K), (v, BLOCK_K), (out, ROWS.value))),
        log_sum_exp,
        q.new_zeros(1, dtype=torch.int32),
        queries,
        length,
        heads,
        group,
        q_tiles,
        batch * heads,
        min(section, batch * heads),
        q_tiles * batch * heads,
        scoring.scale * LOG2_E.value,
        CAUSAL=scoring.causal,
        RAGGED=length % BLOCK_K != 0,
        CONSUMERS=consumers,
        STAGES=STAGES[size],
        CONSUMER_REGISTERS=of_consumer,
        PRODUCER_REGISTERS=of_producer,
        num_warps=4,
    )
    return out, log_sum_exp


def _processors(like: Tensor) -> int:
    """Programs that run at once: each takes most of a multiprocessor's shared memory."""
    return torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 132
