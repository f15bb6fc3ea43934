"""The kernels of `flash_attention`: one forward, two backward, readable first.

A tensor comes as a tuple of its address and its strides of batch, head and row. The names are those of
`llmcourse.attention.online_softmax`; exponentials and logarithms are of base 2, which the hardware has.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.flash_attention import Scoring
from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.tiles import FlashTile, flash_backward_tile

LOG2_E = tl.constexpr(math.log2(math.e))
# Triton would compile once more for a 1 and for a multiple of 16: not for every other length of a prompt.
LENGTHS = ["T", "S", "window", "H", "GROUP"]


@triton.jit
def _head(tensor, batch, head):
    """Where the rows of one head begin; 64 bits, since a batch may be larger than 32 bits can count."""
    return tensor[0] + batch.to(tl.int64) * tensor[1] + head.to(tl.int64) * tensor[2]


@triton.jit
def _places(tensor, batch, head, first, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Addresses of a tile, and which of them there are: rows from the first to the end, features below D."""
    row, d = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_D)[None, :]
    start = _head(tensor, batch, head) + tl.cast(first, tl.int64) * tensor[3]
    return start + row * tensor[3] + d, (first + row < end) & (d < D)


@triton.jit
def _load(tensor, batch, head, first, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of rows, with zeros beyond the end."""
    places, real = _places(tensor, batch, head, first, end, ROWS, D, BLOCK_D)
    return tl.load(places, mask=real, other=0.0)


@triton.jit
def _store(
    tensor, batch, head, first, end, values, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    places, real = _places(tensor, batch, head, first, end, ROWS, D, BLOCK_D)
    tl.store(places, values.to(tensor[0].dtype.element_ty), mask=real)


@triton.jit
def _product(a, b):
    """a bᵀ in fp32."""
    return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def _scores(a, b, scale, cap, CAPPED: tl.constexpr):
    """Of the rows of a with those of b, in base 2 since scale and cap are."""
    scores = _product(a, b) * scale
    if CAPPED:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)  # a tanh
    return scores


@triton.jit
def _visible(query, key, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Which keys a query sees: the queries are the last T of the S keys."""
    seen = key < S
    if CAUSAL:
        seen &= key <= query + (S - T)
    if WINDOWED:
        seen &= key > query + (S - T) - window
    return seen


@triton.jit
def _keys_of(first, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Where the keys begin and end that some of the queries from the first may see."""
    begin, end = 0, S
    if CAUSAL:
        end = tl.minimum(S, first + BLOCK_Q + S - T)
    if WINDOWED:
        begin = tl.maximum(0, first + (S - T) - window + 1)
    return begin, end


@triton.jit
def _queries_of(first, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where the queries begin and end that may see some of the keys from the first."""
    begin, end = 0, T
    if CAUSAL:
        begin = tl.maximum(0, first - (S - T))
    if WINDOWED:
        end = tl.minimum(T, first + BLOCK_K - 1 + window - (S - T))
    return begin, end


@triton.jit(do_not_specialize=LENGTHS)
def _forward_kernel(
    q,
    k,
    v,
    out,
    log_sum_exp_ptr,
    T,
    S,
    scale,
    cap,
    window,
    H,
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
    query = first + tl.arange(0, BLOCK_Q)
    q_tile = _load(q, batch, head, first, T, BLOCK_Q, D, BLOCK_D)

    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    begin, end = _keys_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_Q)
    for start in range(begin, end, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        k_tile = _load(k, batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        scores = _scores(q_tile, k_tile, scale, cap, CAPPED)  # (BLOCK_Q, BLOCK_K)
        seen = _visible(query[:, None], key[None, :], T, S, window, CAUSAL, WINDOWED)
        scores = tl.where(seen, scores, float("-inf"))

        peak, total, fade, weights = join(scores, peak, total)
        v_tile = _load(v, batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * fade[:, None], input_precision="ieee")

    total = tl.where(total == 0, 1.0, total)  # a query without keys gets zeros, its peak being −inf
    _store(out, batch, head, first, T, mixed / total[:, None], BLOCK_Q, D, BLOCK_D)
    row = (batch * H + head).to(tl.int64)
    tl.store(log_sum_exp_ptr + row * T + query, peak + tl.log2(total), mask=query < T)


@triton.jit
def _norm_of(log_sum_exp_ptr, row, query, T):
    """What to take from scores before the exponential; infinity for a query without keys."""
    log_sum_exp = tl.load(log_sum_exp_ptr + row * T + query, mask=query < T, other=float("-inf"))
    return tl.where(log_sum_exp == float("-inf"), float("inf"), log_sum_exp)


@triton.jit
def _step_back(a, b, grad_a, grad_b, norm, delta, seen, scale, cap, CAPPED: tl.constexpr):
    """P and dS of a tile: with queries as rows (a = Q, b = K, dO, V), or keys (a = K, b = Q, V, dO)."""
    scores = _scores(a, b, scale, cap, CAPPED)
    weights = tl.where(seen, tl.exp2(scores - norm), 0.0)
    grad = weights * (_product(grad_a, grad_b) - delta)
    if CAPPED:
        grad *= 1 - (scores / cap) * (scores / cap)  # the slope of tanh
    return weights, grad


@triton.jit(do_not_specialize=LENGTHS)
def _backward_queries_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    grad_q,
    log_sum_exp_ptr,
    delta_ptr,
    T,
    S,
    scale,
    cap,
    window,
    H,
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
    query = first + tl.arange(0, BLOCK_Q)
    row = (batch * H + head).to(tl.int64)
    q_tile = _load(q, batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    grad_out_tile = _load(grad_out, batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    out_tile = _load(out, batch, head, first, T, BLOCK_Q, D, BLOCK_D)
    delta = tl.sum(out_tile.to(tl.float32) * grad_out_tile.to(tl.float32), axis=1)
    tl.store(delta_ptr + row * T + query, delta, mask=query < T)  # the other kernel reads it
    norm = _norm_of(log_sum_exp_ptr, row, query, T)

    grad = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    begin, end = _keys_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_Q)
    for start in range(begin, end, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        k_tile = _load(k, batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        v_tile = _load(v, batch, head // GROUP, start, S, BLOCK_K, D, BLOCK_D)
        seen = _visible(query[:, None], key[None, :], T, S, window, CAUSAL, WINDOWED)
        _, grad_scores = _step_back(
            q_tile, k_tile, grad_out_tile, v_tile, norm[:, None], delta[:, None], seen, scale, cap, CAPPED
        )
        grad = tl.dot(grad_scores.to(k_tile.dtype), k_tile, grad, input_precision="ieee")
    _store(grad_q, batch, head, first, T, grad * (scale / LOG2_E), BLOCK_Q, D, BLOCK_D)


@triton.jit(do_not_specialize=LENGTHS)
def _backward_keys_kernel(
    q,
    k,
    v,
    grad_out,
    grad_k,
    grad_v,
    log_sum_exp_ptr,
    delta_ptr,
    T,
    S,
    scale,
    cap,
    window,
    H,
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
    key = first + tl.arange(0, BLOCK_K)
    k_tile = _load(k, batch, kv_head, first, S, BLOCK_K, D, BLOCK_D)
    v_tile = _load(v, batch, kv_head, first, S, BLOCK_K, D, BLOCK_D)

    k_sum = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    v_sum = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    begin, end = _queries_of(first, T, S, window, CAUSAL, WINDOWED, BLOCK_K)
    for member in range(GROUP):  # every query head that shares these keys adds to their gradient
        head = kv_head * GROUP + member
        row = (batch * H + head).to(tl.int64)
        for start in range(begin, end, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            q_tile = _load(q, batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            grad_out_tile = _load(grad_out, batch, head, start, T, BLOCK_Q, D, BLOCK_D)
            norm = _norm_of(log_sum_exp_ptr, row, query, T)
            delta = tl.load(delta_ptr + row * T + query, mask=query < T, other=0.0)
            seen = _visible(query[None, :], key[:, None], T, S, window, CAUSAL, WINDOWED)
            weights, grad_scores = _step_back(
                k_tile, q_tile, v_tile, grad_out_tile, norm[None, :], delta[None, :], seen, scale, cap, CAPPED
            )  # (BLOCK_K, BLOCK_Q)
            v_sum = tl.dot(weights.to(q_tile.dtype), grad_out_tile, v_sum, input_precision="ieee")
            k_sum = tl.dot(grad_scores.to(q_tile.dtype), q_tile, k_sum, input_precision="ieee")
    _store(grad_k, batch, kv_head, first, S, k_sum * (scale / LOG2_E), BLOCK_K, D, BLOCK_D)
    _store(grad_v, batch, kv_head, first, S, v_sum, BLOCK_K, D, BLOCK_D)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, tile: FlashTile
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    out, log_sum_exp = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _forward_kernel[(triton.cdiv(queries, tile.queries), heads, batch)](
        *(_with_strides(x) for x in (q, k, v, out)), log_sum_exp, **_arguments(q, k, scoring, tile)
    )
    return out, log_sum_exp


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, grad_out: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, size = q.shape
    grads = [torch.empty_like(x) for x in (q, k, v)]
    delta = torch.empty_like(log_sum_exp)
    (q_, k_, v_, out_, grad_out_, *grads_) = (_with_strides(x) for x in (q, k, v, out, grad_out, *grads))
    by_queries, by_keys = flash_backward_tile(size, q.element_size())
    _backward_queries_kernel[(triton.cdiv(queries, by_queries.queries), heads, batch)](
        q_, k_, v_, out_, grad_out_, grads_[0], log_sum_exp, delta, **_arguments(q, k, scoring, by_queries)
    )
    _backward_keys_kernel[(triton.cdiv(k.shape[2], by_keys.keys), k.shape[1], batch)](
        q_, k_, v_, grad_out_, *grads_[1:], log_sum_exp, delta, **_arguments(q, k, scoring, by_keys)
    )
    return tuple(grads)


def _with_strides(tensor: Tensor) -> tuple:
    return tensor, *tensor.stride()[:3]


def _arguments(q: Tensor, k: Tensor, scoring: Scoring, tile: FlashTile) -> dict:
    """What all three kernels are told beside their tensors."""
    return {
        "T": q.shape[2],
        "S": k.shape[2],
        "scale": scoring.scale * LOG2_E.value,
        "cap": (scoring.softcap or 1.0) * LOG2_E.value,
        "window": scoring.window or 0,
        "H": q.shape[1],
        "GROUP": q.shape[1] // k.shape[1],
        "CAUSAL": scoring.causal,
        "WINDOWED": scoring.window is not None,
        "CAPPED": scoring.softcap is not None,
        "D": q.shape[3],
        "BLOCK_D": triton.next_power_of_2(q.shape[3]),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
