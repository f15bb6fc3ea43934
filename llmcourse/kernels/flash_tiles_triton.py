"""What the kernels of `flash_attention` have in common: tiles of rows, scores, and who sees whom.

A tensor comes as a tuple of its address and its strides of batch, head and row. Sequences that are packed
one after the other come so too: the place of a sequence in the batch is then its first row, and the stride
of the batch that of a row. Exponentials and logarithms are of base 2, which the hardware has.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.flash_attention import Packed, Scoring
from llmcourse.kernels.tiles import FlashTile

LOG2_E = tl.constexpr(math.log2(math.e))
# Triton would compile once more for a 1 and for a multiple of 16: not for every other length of a prompt.
LENGTHS = ["T", "S", "window", "GROUP", "sum_batch", "sum_head"]


@triton.jit
def sequence(place, length, cu_seqlens):
    """Where a sequence lies, in strides of the batch, and how many rows it has."""
    if cu_seqlens is not None:
        length = tl.load(cu_seqlens + place + 1) - tl.load(cu_seqlens + place)
        place = tl.load(cu_seqlens + place)
    return place, length


@triton.jit
def head_of(tensor, batch, head):
    """Where the rows of one head begin; 64 bits, since a batch may be larger than 32 bits can count."""
    return tensor[0] + batch.to(tl.int64) * tensor[1] + head.to(tl.int64) * tensor[2]


@triton.jit
def _places(tensor, batch, head, first, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Addresses of a tile, and which of them there are: rows from the first to the end, features below D."""
    row, d = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_D)[None, :]
    start = head_of(tensor, batch, head) + tl.cast(first, tl.int64) * tensor[3]
    return start + row * tensor[3] + d, (first + row < end) & (d < D)


@triton.jit
def load_rows(tensor, batch, head, first, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of rows, with zeros beyond the end."""
    places, real = _places(tensor, batch, head, first, end, ROWS, D, BLOCK_D)
    return tl.load(places, mask=real, other=0.0)


@triton.jit
def store_rows(
    tensor, batch, head, first, end, values, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    places, real = _places(tensor, batch, head, first, end, ROWS, D, BLOCK_D)
    tl.store(places, values.to(tensor[0].dtype.element_ty), mask=real)


@triton.jit
def product(a, b):
    """a bᵀ in fp32."""
    return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def scores_of(a, b, scale, cap, CAPPED: tl.constexpr):
    """Of the rows of a with those of b, in base 2 since scale and cap are."""
    scores = product(a, b) * scale
    if CAPPED:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)  # a tanh
    return scores


@triton.jit
def bias_of(bias, batch, head, query, key, T, S):
    """What is added to the scores of these queries with these keys, in base 2; bias has four strides."""
    places = head_of(bias, batch, head) + query.to(tl.int64) * bias[3] + key.to(tl.int64) * bias[4]
    return tl.load(places, mask=(query < T) & (key < S), other=0.0).to(tl.float32) * LOG2_E


@triton.jit
def visible(query, key, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Which keys a query sees: the queries are the last T of the S keys."""
    seen = key < S
    if CAUSAL:
        seen &= key <= query + (S - T)
    if WINDOWED:
        seen &= key > query + (S - T) - window
    return seen


@triton.jit
def keys_of(first, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Where the keys begin and end that some of the queries from the first may see."""
    begin, end = 0, S
    if CAUSAL:
        end = tl.minimum(S, first + BLOCK_Q + S - T)
    if WINDOWED:
        begin = tl.maximum(0, first + (S - T) - window + 1)
    return begin, end


@triton.jit
def queries_of(first, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where the queries begin and end that may see some of the keys from the first."""
    begin, end = 0, T
    if CAUSAL:
        begin = tl.maximum(0, first - (S - T))
    if WINDOWED:
        end = tl.minimum(T, first + BLOCK_K - 1 + window - (S - T))
    return begin, end


@triton.jit
def norm_of(log_sum_exp, query, T):
    """What to take from the scores of a head before the exponential; infinity for a query without keys."""
    norm = tl.load(log_sum_exp + query, mask=query < T, other=float("-inf"))
    return tl.where(norm == float("-inf"), float("inf"), norm)


@triton.jit
def step_back(a, b, grad_a, grad_b, norm, delta, seen, scale, cap, CAPPED: tl.constexpr):
    """P and dS of a tile: with queries as rows (a = Q, b = K, dO, V), or keys (a = K, b = Q, V, dO).

    dS comes twice: of scores with all that was added to them, and of scale · q · k.
    """
    scores = scores_of(a, b, scale, cap, CAPPED)
    weights = tl.where(seen, tl.exp2(scores - norm), 0.0)
    grad = weights * (product(grad_a, grad_b) - delta)
    inner = grad
    if CAPPED:
        inner *= 1 - (scores / cap) * (scores / cap)  # the slope of tanh
    return weights, grad, inner


def with_strides(tensor: Tensor, packed: Packed | None = None) -> tuple:
    """As kernels take a tensor of (B, H, rows, ...); packed sequences are one batch of all their rows."""
    batch, head, row = tensor.stride()[:3]
    return tensor, batch if packed is None else row, head, row


def arguments(
    q: Tensor,
    k: Tensor,
    log_sum_exp: Tensor,
    scoring: Scoring,
    tile: FlashTile,
    bias: Tensor | None,
    packed: Packed | None,
) -> dict:
    """What all kernels are told beside their tensors."""
    _, sum_batch, sum_head, _ = with_strides(log_sum_exp, packed)
    return {
        "bias": bias_with_strides(bias, q, k),
        "cu_seqlens_q": None if packed is None else packed.cu_seqlens_q,
        "cu_seqlens_k": None if packed is None else packed.cu_seqlens_k,
        "log_sum_exp": log_sum_exp,
        "sum_batch": sum_batch,
        "sum_head": sum_head,
        "T": q.shape[2],
        "S": k.shape[2],
        "scale": scoring.scale * LOG2_E.value,
        "cap": (scoring.softcap or 1.0) * LOG2_E.value,
        "window": scoring.window or 0,
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


def bias_with_strides(bias: Tensor | None, q: Tensor, k: Tensor) -> tuple | None:
    """With strides of 0 where one number is for all."""
    if bias is None:
        return None
    return bias, *bias.expand(*q.shape[:3], k.shape[2]).stride()
