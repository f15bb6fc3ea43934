"""The kernel of `ranked_drafts`: the best of each chunk of the vocabulary, then the best of those.

Both take the largest again and again, and strike it out. They compare integers of 32 bits, of which a warp
finds the largest by one instruction where numbers in floating point take it five rounds of shuffles.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.ranked_drafts import Ranking

STRUCK = -(2**31)  # in the order, below every logit


@triton.jit
def _order_of(logits):
    """Integers in the order of the logits; NaN is infinite (see `tokens_triton`).

    The bits of a positive fp32 number are ordered as an integer, those of a negative one by its magnitude.
    """
    bits = tl.where(logits != logits, float("inf"), logits).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # −0 is 0


@triton.jit
def _first(order, tokens):
    """The largest, and of equal ones the lower token."""
    largest = tl.max(order, axis=0)
    return largest, tl.min(tl.where(order == largest, tokens, 0x7FFFFFFF), axis=0)


@triton.jit
def _draft_ranked_kernel(
    logits_ptr,
    text_ptr,
    positions_ptr,
    heads_ptr,
    ranks_ptr,
    order_ptr,
    tokens_ptr,
    arrivals_ptr,
    vocab_size,
    stride,
    num_nodes,
    num_heads,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_FOUND: tl.constexpr,
    BLOCK_NODES: tl.constexpr,
    OUT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (B · K, chunks): the best of each chunk; the program of a row's head that is last writes nodes."""
    start_next(PDL)
    place, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held = tokens < vocab_size
    wait_for_input(PDL)
    logits = tl.load(logits_ptr + place * vocab_size + tokens, mask=held, other=0.0).to(tl.float32)
    order = tl.where(held, _order_of(logits), OUT)
    begin = (place * CHUNKS + chunk) * WIDTH
    for rank in range(WIDTH):
        largest, token = _first(order, tokens)
        tl.store(order_ptr + begin + rank, largest)
        tl.store(tokens_ptr + begin + rank, token)
        order = tl.where(tokens == token, OUT, order)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel") != CHUNKS - 1:
        return
    tl.store(arrivals_ptr + place, 0)

    at = place * CHUNKS * WIDTH + tl.arange(0, BLOCK_FOUND)
    found = tl.arange(0, BLOCK_FOUND) < CHUNKS * WIDTH
    order = tl.load(order_ptr + at, mask=found, other=OUT, cache_modifier=".cg")
    tokens = tl.load(tokens_ptr + at, mask=found, other=-1, cache_modifier=".cg")
    row, head, node = place // num_heads, place % num_heads, tl.arange(0, BLOCK_NODES)
    own = tl.load(heads_ptr + node, mask=node < num_nodes, other=-1) == head
    ranks = tl.load(ranks_ptr + node, mask=node < num_nodes, other=-1)
    slots = text_ptr + row * stride + tl.load(positions_ptr + row) + 1 + node
    for rank in range(WIDTH):
        _, token = _first(order, tokens)
        tl.store(slots, token.to(tl.int64), mask=own & (ranks == rank))
        order = tl.where(tokens == token, OUT, order)


def launch(logits: Tensor, text: Tensor, positions: Tensor, ranking: Ranking, pdl: bool) -> None:
    rows, kept = ranking.order.shape
    block = triton.next_power_of_2(kept)
    if rows:
        _draft_ranked_kernel[(rows, ranking.num_chunks)](
            logits,
            text,
            positions,
            ranking.heads,
            ranking.ranks,
            ranking.order,
            ranking.tokens,
            ranking.arrivals,
            ranking.vocab_size,
            text.stride(0),
            len(ranking.heads),
            ranking.num_heads,
            WIDTH=ranking.width,
            CHUNKS=ranking.num_chunks,
            CHUNK_SIZE=ranking.chunk,
            BLOCK_FOUND=block,
            BLOCK_NODES=triton.next_power_of_2(len(ranking.heads)),
            OUT=STRUCK,
            num_warps=min(max(ranking.chunk, block) // 512, 8),
            **options(pdl),
        )
