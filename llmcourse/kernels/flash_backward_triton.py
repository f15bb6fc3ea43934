"""The backward kernels of `flash_attention`, readable first: one walks through keys, one through queries.

Tensors come as `flash_tiles_triton` says, names are those of `flash_attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.flash_attention import Packed, Scoring
from llmcourse.kernels.flash_tiles_triton import (
    LENGTHS,
    LOG2_E,
    arguments,
    bias_of,
    head_of,
    keys_of,
    load_rows,
    norm_of,
    queries_of,
    sequence,
    step_back,
    store_rows,
    visible,
    with_strides,
)
from llmcourse.kernels.tiles import flash_backward_tile


@triton.jit(do_not_specialize=LENGTHS)
def _backward_queries_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    grad_q,
    delta_ptr,
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
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    head, batch = tl.program_id(1), tl.program_id(2)
    q_batch, T = sequence(batch, T, cu_seqlens_q)
    k_batch, S = sequence(batch, S, cu_seqlens_k)
    if first >= T:
        return
    query = first + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(q, q_batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    grad_out_tile = load_rows(grad_out, q_batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    out_tile = load_rows(out, q_batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    delta = tl.sum(out_tile.to(tl.float32) * grad_out_tile.to(tl.float32), axis=1)
    deltas = head_of((delta_ptr, sum_batch, sum_head), q_batch, head)
    tl.store(deltas + query, delta, mask=query < T)  # the other kernel reads it
    norm = norm_of(head_of((log_sum_exp, sum_batch, sum_head), q_batch, head), query, T)[:, None]

    grad = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    begin, end = keys_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_Q)
    for start in range(begin, end, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        k_tile = load_rows(k, k_batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        v_tile = load_rows(v, k_batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        seen = visible(query[:, None], key[None, :], T, S, window, CAUSAL, WINDOWED)
        less = norm
        if bias is not None:
            less = norm - bias_of(bias, batch, head, query[:, None], key[None, :], T, S)
        _, _, grad_scores = step_back(
            q_tile, k_tile, grad_out_tile, v_tile, less, delta[:, None], seen, scale, cap, CAPPED
        )
        grad = tl.dot(grad_scores.to(k_tile.dtype), k_tile, grad, input_precision="ieee")
    store_rows(grad_q, q_batch, head, first, T, grad * (scale / LOG2_E), BLOCK_Q, D, BLOCK_D)


@triton.jit(do_not_specialize=LENGTHS)
def _backward_keys_kernel(
    q,
    k,
    v,
    grad_out,
    grad_k,
    grad_v,
    delta_ptr,
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
    first = tl.program_id(0) * BLOCK_K
    kv_head, batch = tl.program_id(1), tl.program_id(2)
    q_batch, T = sequence(batch, T, cu_seqlens_q)
    k_batch, S = sequence(batch, S, cu_seqlens_k)
    if first >= S:
        return
    key = first + tl.arange(0, BLOCK_K)
    k_tile = load_rows(k, k_batch, kv_head, first, S, BLOCK_K, D, BLOCK_D)
    v_tile = load_rows(v, k_batch, kv_head, first, S, BLOCK_K, D, BLOCK_D)

    k_sum = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    v_sum = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    begin, end = queries_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_K)
    for member in range(GROUP):  # every query head that shares these keys adds to their gradient
        head = kv_head * GROUP + member
        sums = head_of((log_sum_exp, sum_batch, sum_head), q_batch, head)
        deltas = head_of((delta_ptr, sum_batch, sum_head), q_batch, head)
        for start in range(begin, end, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            q_tile = load_rows(q, q_batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            grad_out_tile = load_rows(grad_out, q_batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            less = norm_of(sums, query, T)[None, :]
            if bias is not None:
                less -= bias_of(bias, batch, head, query[None, :], key[:, None], T, S)
            delta = tl.load(deltas + query, mask=query < T, other=0.0)
            seen = visible(query[None, :], key[:, None], T, S, window, CAUSAL, WINDOWED)
            weights, _, grad_scores = step_back(
                k_tile, q_tile, v_tile, grad_out_tile, less, delta[None, :], seen, scale, cap, CAPPED
            )  # (BLOCK_K, BLOCK_Q)
            v_sum = tl.dot(weights.to(q_tile.dtype), grad_out_tile, v_sum, input_precision="ieee")
            k_sum = tl.dot(grad_scores.to(q_tile.dtype), q_tile, k_sum, input_precision="ieee")
    store_rows(grad_k, k_batch, kv_head, first, S, k_sum * (scale / LOG2_E), BLOCK_K, D, BLOCK_D)
    store_rows(grad_v, k_batch, kv_head, first, S, v_sum, BLOCK_K, D, BLOCK_D)


def launch_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    grad_out: Tensor,
    scoring: Scoring,
    bias: Tensor | None = None,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.empty_like(x) for x in (q, k, v)]
    delta = torch.empty_like(log_sum_exp)
    (q_, k_, v_, out_, grad_out_, *grads_) = (
        with_strides(x, packed) for x in (q, k, v, out, grad_out, *grads)
    )
    batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
    if packed is not None:
        batch, queries, keys = len(packed), packed.max_seqlen_q, packed.max_seqlen_k
    by_queries, by_keys = flash_backward_tile(q.shape[3], q.element_size(), bias is not None)
    _backward_queries_kernel[(triton.cdiv(queries, by_queries.queries), q.shape[1], batch)](
        q_, k_, v_, out_, grad_out_, grads_[0], delta,
        **arguments(q, k, log_sum_exp, scoring, by_queries, bias, packed),
    )  # fmt: skip
    _backward_keys_kernel[(triton.cdiv(keys, by_keys.keys), k.shape[1], batch)](
        q_, k_, v_, grad_out_, *grads_[1:], delta,
        **arguments(q, k, log_sum_exp, scoring, by_keys, bias, packed),
    )  # fmt: skip
    return tuple(grads)
