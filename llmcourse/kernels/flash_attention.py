"""Attention of many queries at once, whose scores never leave the chip: for prefill and training.

The forward pass is `llmcourse.attention.tiled_attention`, a program for each tile of queries. It keeps the
log-sum-exp L of each row's scores, so that the backward pass makes the weights P = e^(S − L) again, tile by
tile, instead of reading them (Dao 2023, FlashAttention-2, algorithms 1 and 2):

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ∘ (dP − δ),   δ = rowsum(dO ∘ O)
    dQ = scale · dS K,   dK = scale · dSᵀ Q

One kernel goes through the keys of a tile of queries and makes dQ and δ, another through the queries of a
tile of keys and makes dK and dV: so no program adds to what another one writes. On Hopper, plain calls in 16
bits take kernels made for it: `flash_attention_gluon`, and `flash_backward_gluon`, which makes P and dS once
for all three.

Letters: B batch, T query length, S key length, H query heads, Hkv key/value heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmcourse.kernels.arguments import is_count
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.flash_arguments import check_attention, check_bias
from llmcourse.kernels.tiles import FlashTile, flash_tile


@dataclass(frozen=True)
class Scoring:
    """How scores are made of queries and keys, and which of them count.

    Attributes:
        scale: of q · k.
        causal: a query sees no later key, the queries being the last T of the S keys; if T > S, the first of
            them see none and get zeros.
        window: how many keys a query sees, its own and those before it (Mistral); None for all.
        softcap: c of c · tanh(score / c), which no score exceeds (Gemma 2); None for the score itself.

    Raises:
        ValueError: a window or a cap that is not positive, a window without causality, or what is no number.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None

    def __post_init__(self):
        if not isinstance(self.causal, bool):
            raise ValueError(f"causal must be True or False, got {self.causal!r}; pass one of them")
        if self.window is not None and not (is_count(self.window) and self.causal):
            raise ValueError(
                f"window must be an integer in [1, 2**31) and go with causal=True, got {self.window!r} with "
                f"causal={self.causal}; None lets a query see all"
            )
        for name, value in (("scale", self.scale), ("softcap", self.softcap)):
            if value is None and name == "softcap":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}; leave it at None")


@dataclass(frozen=True)
class Packed:
    """Sequences that lie one after the other, in place of a batch of equal lengths.

    To `flash_attention_forward` and `flash_attention_backward` they are a batch of one, of all rows.

    Attributes:
        cu_seqlens_q, cu_seqlens_k: where the queries and the keys of each sequence begin, and where the last
            of them end.
        max_seqlen_q, max_seqlen_k: of the longest sequence: what the grids are made for.
    """

    cu_seqlens_q: Int[Tensor, " R1"]
    cu_seqlens_k: Int[Tensor, " R1"]
    max_seqlen_q: int
    max_seqlen_k: int

    def __len__(self) -> int:
        return len(self.cu_seqlens_q) - 1


def flash_attention_reference(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    scoring: Scoring,
    bias: Float[Tensor, "_ _ _ S"] | None = None,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T"]]:
    """The result, and the log-sum-exp of each row's scores, in fp32 or wider; makes all scores."""
    group = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    q_wide, k, v = q.to(wide), *(x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    scores = q_wide @ k.transpose(-1, -2) * scoring.scale  # (B, H, T, S)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    hidden = _hidden(q.shape[2], k.shape[2], scoring, q.device)
    if bias is not None:
        scores = scores + bias
        hidden = hidden | (scores == float("-inf"))
    scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).masked_fill(hidden, 0.0)  # a row without keys is 0/0 until here
    return (weights @ v).to(q.dtype), scores.logsumexp(dim=-1)


def _hidden(queries: int, keys: int, scoring: Scoring, device: torch.device) -> Tensor:
    """Which keys each query does not see, `(T, S)`."""
    behind = (
        torch.arange(queries, device=device)[:, None] + keys - queries - torch.arange(keys, device=device)
    )
    hidden = torch.zeros_like(behind, dtype=torch.bool)
    if scoring.causal:
        hidden |= behind < 0
    if scoring.window is not None:
        hidden |= behind >= scoring.window
    return hidden


def flash_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    bias: Float[Tensor, "_ _ _ S"] | None = None,
    backend: Backend = "auto",
    tile: FlashTile | None = None,
) -> Float[Tensor, "B H T D"]:
    """softmax(q kᵀ · scale + bias) v, of which gradients can be taken once.

    Any strides will do but for the last, so that heads split off a projection need no copy.

    Args:
        causal, window, softcap: as in `Scoring`.
        scale: None for 1 / √D.
        bias: added to the scores, after the cap: (B or 1, H or 1, T or 1, S), such as a slope of distances
            (ALiBi, Press et al. 2022), or 0 and −inf for keys that are seen and are not. A query that sees
            none gets zeros.
        tile: how the simple kernel's forward pass is cut; None takes the best kernel, and `best_flash_tile`.

    Raises:
        ValueError: shapes, dtypes, devices, head sizes or memory that no kernel is made for, or a backend
            that cannot run.
    """
    check_attention(q, k, v)
    check_bias(bias, q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scoring = Scoring(scale, causal, window, softcap)
    if resolve(backend, q.device, q.dtype) == "reference":
        return flash_attention_reference(q, k, v, scoring, bias)[0]
    return FlashAttention.apply(q, k, v, bias, scoring, tile, None)


def flash_attention_forward(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    scoring: Scoring,
    tile: FlashTile | None = None,
    bias: Float[Tensor, "_ _ _ S"] | None = None,
    packed: Packed | None = None,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T"]]:
    """`flash_attention_reference` by a kernel, which is chosen here and nowhere else.

    The log-sum-exp is of base 2, log2 Σ e^score: as scores are in the kernels, so that the backward pass
    takes it from them without another rounding.

    Args:
        tile: of the simple kernel; None leaves Hopper its own, where that is made for such a call.
    """
    if tile is None and _suits_hopper(scoring, bias, packed, q, k, v):
        from llmcourse.kernels import flash_attention_gluon

        return flash_attention_gluon.launch_forward(q, k, v, scoring)
    from llmcourse.kernels.flash_attention_triton import launch_forward

    return launch_forward(q, k, v, scoring, tile or best_flash_tile(q, bias), bias, packed)


def flash_attention_backward(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    out: Float[Tensor, "B H T D"],
    log_sum_exp: Float[Tensor, "B H T"],
    grad_out: Float[Tensor, "B H T D"],
    scoring: Scoring,
    bias: Float[Tensor, "_ _ _ S"] | None = None,
    packed: Packed | None = None,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
    """The gradients of q, k and v by kernels, which are chosen here and nowhere else.

    Those for Hopper add dQ up in whatever order programs end in, and two calls differ in the last bits;
    `torch.use_deterministic_algorithms(True)` takes the others, which give the same bits each time.

    Args:
        out, log_sum_exp: what `flash_attention_forward` gave.
        grad_out: features side by side, as q has them.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if not deterministic and _suits_hopper(scoring, bias, packed, q, k, v, grad_out):
        from llmcourse.kernels import flash_backward_gluon

        return flash_backward_gluon.launch_backward(q, k, v, out, log_sum_exp, grad_out, scoring)
    from llmcourse.kernels.flash_backward_triton import launch_backward

    return launch_backward(q, k, v, out, log_sum_exp, grad_out, scoring, bias, packed)


def _suits_hopper(scoring: Scoring, bias: Tensor | None, packed: Packed | None, *tensors: Tensor) -> bool:
    """Whether the GPU is one, and the kernels in Gluon that are made for it take these tensors."""
    from llmcourse.kernels.capabilities import runs_wgmma

    if bias is not None or packed is not None or not runs_wgmma():
        return False
    from llmcourse.kernels.flash_tiles_gluon import takes

    return takes(scoring, *tensors)


def best_flash_tile(like: Tensor, bias: Tensor | None = None) -> FlashTile:
    """For queries like these."""
    return flash_tile(like.shape[-1], like.element_size(), bias is not None)


class FlashAttention(torch.autograd.Function):
    """The two passes, of a batch or of packed sequences, whose arguments have been checked."""

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        scoring: Scoring,
        tile: FlashTile | None,
        packed: Packed | None,
    ) -> Tensor:
        out, log_sum_exp = flash_attention_forward(q, k, v, scoring, tile, bias, packed)
        ctx.save_for_backward(q, k, v, out, log_sum_exp, bias)
        ctx.scoring, ctx.packed = scoring, packed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        *saved, bias = ctx.saved_tensors
        # Summing up hands over one number under strides of 0, where a kernel looks for rows.
        grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
        grads = flash_attention_backward(*saved, grad_out, ctx.scoring, bias, ctx.packed)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            from llmcourse.kernels.flash_bias_triton import launch_bias_gradient

            grad_bias = launch_bias_gradient(*saved, grad_out, ctx.scoring, bias)
        return *grads, grad_bias, None, None, None
