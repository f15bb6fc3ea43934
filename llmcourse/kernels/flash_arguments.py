"""What the kernels of `flash_attention` take for granted of tensors, checked before anything is launched."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_dtype, check_kind, check_tensor

HEAD_DIMS = (32, 64, 96, 128, 256)


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ValueError unless these are (B, H, T, D) and twice (B, Hkv, S, D) as kernels can take them."""
    check_dims("q", q, "B", "H", "T", "D")
    check_dims("k", k, "B", "Hkv", "S", "D")
    batch, _, _, size = q.shape
    _check_head_size(size)
    if k.shape[0] != batch or k.shape[3] != size:
        raise ValueError(
            f"k must have shape ({batch}, Hkv, S, {size}) as q has, got {tuple(k.shape)}; "
            "take both from one batch of one model"
        )
    for name, tensor in (("q", q), ("k", k)):
        if 0 in (batch, tensor.shape[2]):
            raise ValueError(
                f"{name} must hold at least one sequence of at least one token, got shape "
                f"{tuple(tensor.shape)}; leave an empty batch out"
            )
    _check_heads(q, k, v)


def check_packed_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ValueError unless these are (total_q, H, D) and twice (total_k, Hkv, D)."""
    check_dims("q", q, "total_q", "H", "D")
    check_dims("k", k, "total_k", "Hkv", "D")
    _check_head_size(q.shape[2])
    if k.shape[2] != q.shape[2]:
        raise ValueError(
            f"k must have shape (total_k, Hkv, {q.shape[2]}) as q has, got {tuple(k.shape)}; "
            "take both from one model"
        )
    _check_heads(q, k, v)


def _check_head_size(size: int) -> None:
    if size not in HEAD_DIMS:
        raise ValueError(f"q must have a head size of {HEAD_DIMS}, got {size}; pad q, k and v with zeros")


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What holds whether sequences are in a batch or packed: heads, dtypes, devices and memory."""
    heads, kv_heads = q.shape[1], k.shape[1]
    if v.shape != k.shape:
        raise ValueError(
            f"v must have shape {tuple(k.shape)} as k has, got {tuple(v.shape)}; pass both alike"
        )
    if min(heads, kv_heads) == 0 or heads % kv_heads:
        raise ValueError(
            f"query heads must be a multiple of key/value heads, got {heads} and {kv_heads}; "
            "split the projection by the heads of the model's configuration"
        )
    check_dtype("q", q)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_kind(name, tensor, q)
        if tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must have features side by side, a last stride of 1, got strides {tensor.stride()}; "
                "call .contiguous()"
            )


def check_bias(bias: Tensor | None, q: Tensor, k: Tensor) -> None:
    """Raises ValueError unless bias, if there is one, can be added to the scores (B, H, T, S)."""
    if bias is None:
        return
    check_dims("bias", bias, "B or 1", "H or 1", "T or 1", "S")
    full = (*q.shape[:3], k.shape[2])
    if any(given not in (1, size) for given, size in zip(bias.shape, full, strict=True)) or (
        bias.shape[3] != full[3]
    ):
        raise ValueError(
            f"bias must have shape {full}, in which all but the last may be 1, got {tuple(bias.shape)}; "
            "give every key a number, and repeat none over queries, heads or sequences"
        )
    if bias.dtype == torch.bool:
        raise ValueError(
            "bias must hold numbers, got torch.bool; make a mask one of 0 for what is seen and −inf for what "
            "is not: torch.where(mask, 0.0, float('-inf'))"
        )
    check_dtype("bias", bias, (q.dtype, torch.float32))
    check_kind("bias", bias, q, bias.dtype)


def check_cu_seqlens(name: str, cu_seqlens: Tensor, rows: Tensor, size: int | None = None) -> None:
    """Raises ValueError unless these are R + 1 numbers that kernels can take; `longest` looks at them."""
    check_dims(name, cu_seqlens, "R + 1")
    if len(cu_seqlens) < 2:
        raise ValueError(
            f"{name} must bound at least one sequence, got {len(cu_seqlens)} numbers; "
            "leave an empty batch out"
        )
    shape = (len(cu_seqlens) if size is None else size,)
    remedy = "pass one for each sequence and the end, of the same sequences as cu_seqlens_q"
    check_tensor(name, cu_seqlens, shape, rows, remedy, dtype=torch.int32, layout="call .contiguous()")


def longest(name: str, cu_seqlens: Tensor, total: int) -> int:
    """Rows of the longest sequence; looks at what the tensor holds, for which a GPU has to finish its work.

    Raises:
        ValueError: bounds that do not begin with 0, fall, or do not end with the number of rows.
    """
    bounds = cu_seqlens.tolist()
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or min(lengths) < 0 or bounds[-1] != total:
        raise ValueError(
            f"{name} must rise from 0 to the {total} rows there are, got {bounds}; add up the lengths of "
            "the sequences, beginning with 0"
        )
    return max(lengths)
