"""The forward kernel of `flash_attention`, readable first: a program for each tile of queries.

The names are those of `llmcourse.attention.online_softmax`; tensors come as `flash_tiles_triton` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.flash_attention import Packed, Scoring
from llmcourse.kernels.flash_tiles_triton import (
    LENGTHS,
    arguments,
    bias_of,
    head_of,
    keys_of,
    load_rows,
    scores_of,
    sequence,
    store_rows,
    visible,
    with_strides,
)
from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.tiles import FlashTile


@triton.jit(do_not_specialize=LENGTHS)
def _forward_kernel(
    q,
    k,
    v,
    out,
    bias,
    cu_seqlens_q,
    cu_seqlens_k,
    log_sum_exp,
    sum_batch,
    sum_head,
    T,
    S,
    scale,
    cap,
    window,
    GROUP,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # The last queries see most keys: they begin first, so that no long program is left over at the end.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    head, batch = tl.program_id(1), tl.program_id(2)
    q_batch, T = sequence(batch, T, cu_seqlens_q)
    k_batch, S = sequence(batch, S, cu_seqlens_k)
    if first >= T:  # the grid is made for the longest sequence
        return
    query = first + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(q, q_batch, head, first, T, BLOCK_Q, D, BLOCK_D)

    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    begin, end = keys_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_Q)
    for start in range(begin, end, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        k_tile = load_rows(k, k_batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        scores = scores_of(q_tile, k_tile, scale, cap, CAPPED)  # (BLOCK_Q, BLOCK_K)
        if bias is not None:
            scores += bias_of(bias, batch, head, query[:, None], key[None, :], T, S)
        seen = visible(query[:, None], key[None, :], T, S, window, CAUSAL, WINDOWED)
        scores = tl.where(seen, scores, float("-inf"))

        peak, total, fade, weights = join(scores, peak, total)
        v_tile = load_rows(v, k_batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * fade[:, None], input_precision="ieee")

    total = tl.where(total == 0, 1.0, total)  # a query without keys gets zeros, its peak being −inf
    store_rows(out, q_batch, head, first, T, mixed / total[:, None], BLOCK_Q, D, BLOCK_D)
    sums = head_of((log_sum_exp, sum_batch, sum_head), q_batch, head)
    tl.store(sums + query, peak + tl.log2(total), mask=query < T)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    tile: FlashTile,
    bias: Tensor | None = None,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor]:
    batch, queries = (q.shape[0], q.shape[2]) if packed is None else (len(packed), packed.max_seqlen_q)
    out, log_sum_exp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _forward_kernel[(triton.cdiv(queries, tile.queries), q.shape[1], batch)](
        *(with_strides(x, packed) for x in (q, k, v, out)),
        **arguments(q, k, log_sum_exp, scoring, tile, bias, packed),
    )
    return out, log_sum_exp
