"""`flash_attention` of sequences of any lengths, packed one after the other, with no padding between.

A batch of R sequences is one tensor of all their tokens, and R + 1 bounds say where each begins: cu_seqlens,
the cumulated lengths (as in FlashAttention's own interface). A program finds its sequence by the bounds, and
one that would begin beyond its sequence's end returns at once: nothing is computed that is not used.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.flash_arguments import check_cu_seqlens, check_packed_attention, longest
from llmcourse.kernels.flash_attention import FlashAttention, Packed, Scoring, flash_attention_reference
from llmcourse.kernels.tiles import FlashTile


def flash_attention_varlen_reference(
    q: Float[Tensor, "total_q H D"],
    k: Float[Tensor, "total_k Hkv D"],
    v: Float[Tensor, "total_k Hkv D"],
    cu_seqlens_q: Int[Tensor, " R1"],
    cu_seqlens_k: Int[Tensor, " R1"],
    scoring: Scoring,
) -> tuple[Float[Tensor, "total_q H D"], Float[Tensor, "H total_q"]]:
    """The result and the log-sum-exp of each row's scores, sequence by sequence."""
    outs, sums = [], []
    bounds = (itertools.pairwise(bounds.tolist()) for bounds in (cu_seqlens_q, cu_seqlens_k))
    for (first_q, end_q), (first_k, end_k) in zip(*bounds, strict=True):
        rows = (q[first_q:end_q], k[first_k:end_k], v[first_k:end_k])
        out, log_sum_exp = flash_attention_reference(*(_as_batch(x) for x in rows), scoring)
        outs.append(out[0].transpose(0, 1))
        sums.append(log_sum_exp[0])
    return torch.cat(outs), torch.cat(sums, dim=1)


def flash_attention_varlen(
    q: Float[Tensor, "total_q H D"],
    k: Float[Tensor, "total_k Hkv D"],
    v: Float[Tensor, "total_k Hkv D"],
    cu_seqlens_q: Int[Tensor, " R1"],
    cu_seqlens_k: Int[Tensor, " R1"],
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
    tile: FlashTile | None = None,
) -> Float[Tensor, "total_q H D"]:
    """`flash_attention` of each sequence, its queries being the last of its keys.

    Args:
        q, k, v: of all sequences, one after the other.
        cu_seqlens_q, cu_seqlens_k: int32; where the queries, and the keys, of each sequence begin, and one
            more number, where they end. A sequence may have no queries, or no keys: then its rows get zeros.
        max_seqlen_q, max_seqlen_k: of the longest sequence, at least. None looks it up, which holds up a GPU
            until it has done all that was asked of it before; that is also when bounds on a GPU are checked.
        causal, scale, window, softcap, tile: as in `flash_attention`.

    Raises:
        ValueError: shapes, dtypes, devices, head sizes or memory that no kernel is made for; bounds that do
            not rise from 0 to the rows there are, or are farther apart than said; a backend that cannot run.
    """
    check_packed_attention(q, k, v)
    check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q)
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, q, len(cu_seqlens_q))
    packed = Packed(
        cu_seqlens_q,
        cu_seqlens_k,
        _max_seqlen("q", max_seqlen_q, cu_seqlens_q, len(q)),
        _max_seqlen("k", max_seqlen_k, cu_seqlens_k, len(k)),
    )
    scoring = Scoring(q.shape[-1] ** -0.5 if scale is None else scale, causal, window, softcap)
    if resolve(backend, q.device, q.dtype) == "reference":
        return flash_attention_varlen_reference(q, k, v, cu_seqlens_q, cu_seqlens_k, scoring)[0]
    out = FlashAttention.apply(*(_as_batch(x) for x in (q, k, v)), None, scoring, tile, packed)
    return out[0].transpose(0, 1)


def _max_seqlen(which: str, given: int | None, cu_seqlens: Tensor, total: int) -> int:
    """What was given, or else what is found; nobody looks on a GPU at what was given."""
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        raise ValueError(
            f"max_seqlen_{which} must be an integer, got {given!r}; leave it at None to look it up"
        )
    looked_at = given is None or cu_seqlens.is_cpu
    found = longest(f"cu_seqlens_{which}", cu_seqlens, total) if looked_at else 0
    if given is not None and given < found:
        raise ValueError(
            f"max_seqlen_{which} must be at least {found}, the longest sequence, got {given}; "
            "leave it at None to look it up"
        )
    return found if given is None else given


def _as_batch(rows: Tensor) -> Tensor:
    """(rows, heads, D) as a batch of one sequence, (1, heads, rows, D), in the same memory."""
    return rows.transpose(0, 1)[None]
