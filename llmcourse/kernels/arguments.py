"""What a kernel is given, checked on the host before it is launched.

A kernel is handed addresses and takes the rest for granted: with a tensor of another shape, layout or dtype
it would read and write wrong memory without a word. The references are held to the same, so that what runs
on a laptop runs on a GPU. A recorded graph checks once, when it is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcourse.kernels.backend import KERNEL_DTYPES

REFERENCE_DTYPES = (*KERNEL_DTYPES, torch.float64)
WARPS = (1, 2, 4, 8, 16)


def is_count(value: object) -> bool:
    """Whether it is an integer of at least 1 that kernels can take; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def check_dims(name: str, tensor: Tensor, *axes: str) -> None:
    """Raises ValueError unless it is a tensor that has one dimension for each of the axes named."""
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{name} must be a tensor, ({', '.join(axes)}), got {type(tensor).__name__}; make it one"
        )
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name} must have {len(axes)} dimensions, ({', '.join(axes)}), got shape {tuple(tensor.shape)}; "
            "reshape it"
        )


def check_kind(name: str, tensor: Tensor, lead: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raises ValueError unless the tensor is of this dtype, that of `lead` if None, and on its device."""
    dtype = dtype or lead.dtype
    if tensor.dtype != dtype or tensor.device != lead.device:
        raise ValueError(
            f"{name} must be in {dtype} on {lead.device}, got {tensor.dtype} on {tensor.device}; "
            "make it so once, beforehand"
        )


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype] = REFERENCE_DTYPES) -> None:
    """Raises ValueError unless the tensor is in one of these dtypes, those of all references if not given."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(allowed))
        raise ValueError(f"{name} must be in one of {names}, got {tensor.dtype}; cast it, as by .bfloat16()")


def check_memory(
    name: str,
    tensor: Tensor | None,
    lead: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: str = "call .contiguous() once, before decoding",
) -> None:
    """Raises ValueError unless the tensor, where it is given, is contiguous and of this dtype and device.

    Args:
        lead: the argument whose device, and whose dtype if `dtype` is None, all others share.
        layout: the remedy for memory that is not contiguous.
    """
    if tensor is None:
        return
    check_kind(name, tensor, lead, dtype)
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {tensor.stride()} for {tuple(tensor.shape)}; {layout}"
        )


def check_tensor(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], lead: Tensor, remedy: str, **memory
) -> None:
    """Raises ValueError unless the tensor, where it is given, has this shape and passes `check_memory`."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}; {remedy}")
    check_memory(name, tensor, lead, **memory)


def check_apart(
    written: Tensor | None,
    *,
    name: str = "out",
    remedy: str = "leave it at None for new",
    **read: Tensor | None,
) -> None:
    """Raises ValueError where what is written is memory that other programs may still be reading.

    Args:
        written: contiguous, as all that is read.
        name: of that argument.
    """
    if written is None or written.is_meta:
        return
    begin, end = _extent(written)
    for other, tensor in read.items():
        if tensor is not None and begin < _extent(tensor)[1] and _extent(tensor)[0] < end:
            raise ValueError(f"{name} must be memory of its own, got that of {other}; {remedy}")


def _extent(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def check_power_of_2(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError unless it is one, of at least `least`."""
    if value < least or value & (value - 1):
        raise ValueError(
            f"{name} must be a power of 2 of at least {least}, got {value}; take one, such as {2 * least}"
        )


def check_warps(warps: int | None) -> None:
    """Raises ValueError unless a program can have so many; None leaves the choice to the kernel."""
    if warps is not None and warps not in WARPS:
        raise ValueError(f"warps must be one of {WARPS} or None, got {warps}; None takes the measured best")
