"""The gradient of a bias: that of the scores, summed over all rows, heads and sequences that share it.

    dBias = Σ P ∘ (dP − δ)

One program makes a tile of it and walks through everything that the tile was added to; so no program adds
to what another one writes, and nothing larger than the bias itself is stored. The tile is made anew for it,
as in the other backward kernels, which therefore do not know of this one.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.flash_attention import Scoring
from llmcourse.kernels.flash_tiles_triton import (
    LENGTHS,
    arguments,
    bias_of,
    head_of,
    load_rows,
    norm_of,
    queries_of,
    step_back,
    visible,
    with_strides,
)
from llmcourse.kernels.tiles import flash_bias_tile


@triton.jit(do_not_specialize=[*LENGTHS, "sharing_batches", "sharing_heads"])
def _bias_gradient_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    grad_bias,
    sharing_batches,
    sharing_heads,
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
    ONE_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    bias_head, bias_batch = tl.program_id(1), tl.program_id(2)
    key_tiles = tl.cdiv(S, BLOCK_K)
    first_key = tl.program_id(0) % key_tiles * BLOCK_K
    key = first_key + tl.arange(0, BLOCK_K)
    begin, end = queries_of(first_key, T, S, window, CAUSAL, WINDOWED, BLOCK_K)
    first = tl.program_id(0) // key_tiles * BLOCK_Q
    row = first + tl.arange(0, BLOCK_Q)
    if not ONE_ROW:  # the queries of this tile, and none if none of them sees any of the keys
        end = tl.where(first + BLOCK_Q > begin, tl.minimum(first + 1, end), first)
        begin = first

    total = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for member in range(sharing_batches * sharing_heads):
        batch = bias_batch * sharing_batches + member // sharing_heads
        head = bias_head * sharing_heads + member % sharing_heads
        k_tile = load_rows(k, batch, head // GROUP, first_key, S, BLOCK_K, D, BLOCK_D)
        v_tile = load_rows(v, batch, head // GROUP, first_key, S, BLOCK_K, D, BLOCK_D)
        sums = head_of((log_sum_exp, sum_batch, sum_head), batch, head)
        for start in range(begin, end, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            q_tile = load_rows(q, batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            grad_out_tile = load_rows(grad_out, batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            out_tile = load_rows(out, batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            delta = tl.sum(out_tile.to(tl.float32) * grad_out_tile.to(tl.float32), axis=1)
            less = norm_of(sums, query, T)[:, None]
            less -= bias_of(bias, batch, head, query[:, None], key[None, :], T, S)
            seen = visible(query[:, None], key[None, :], T, S, window, CAUSAL, WINDOWED)
            _, grad, _ = step_back(
                q_tile, k_tile, grad_out_tile, v_tile, less, delta[:, None], seen, scale, cap, CAPPED
            )
            total += grad

    places = head_of(grad_bias, bias_batch, bias_head) + key[None, :]
    if ONE_ROW:
        tl.store(places, tl.sum(total, axis=0)[None, :], mask=key[None, :] < S)
    else:
        places += row[:, None].to(tl.int64) * grad_bias[3]
        tl.store(places, total, mask=(row[:, None] < T) & (key[None, :] < S))


def launch_bias_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    grad_out: Tensor,
    scoring: Scoring,
    bias: Tensor,
) -> Tensor:
    """Of the shape of the bias."""
    grad = bias.new_empty(bias.shape)
    batches, heads, rows, keys = bias.shape
    tile = flash_bias_tile(q.shape[3], q.element_size())
    tiles = triton.cdiv(rows, tile.queries) * triton.cdiv(keys, tile.keys)
    _bias_gradient_kernel[(tiles, heads, batches)](
        *(with_strides(x) for x in (q, k, v, out, grad_out, grad)),
        sharing_batches=q.shape[0] // batches,
        sharing_heads=q.shape[1] // heads,
        ONE_ROW=rows == 1,
        **arguments(q, k, log_sum_exp, scoring, tile, bias, None),
    )
    return grad
