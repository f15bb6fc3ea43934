"""Which implementation runs: the Triton kernel, or the reference beside it."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch

Backend = Literal["auto", "triton", "reference"]
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> Literal["triton", "reference"]:
    """The implementation to run: for "auto" Triton where it can, the reference elsewhere.

    Raises:
        ValueError: an unknown name, or "triton" where Triton cannot run.
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(
            f"backend must be 'auto', 'triton' or 'reference', got {backend!r}; leave it at 'auto'"
        )
    if backend == "reference":
        return "reference"
    obstacle = _obstacle(device, dtype)
    if backend == "triton" and obstacle:
        raise ValueError(f"backend must be one that can run, got 'triton' {obstacle}; use 'auto'")
    return "reference" if obstacle or (backend == "auto" and device.type != "cuda") else "triton"


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU: a tool for tests, never chosen by "auto"."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if not _has_triton():
        return "without the package triton (made for Linux only: pip install triton)"
    if device.type != "cuda" and not interpreted():
        return f"on {device.type}, which needs a CUDA device"
    if dtype not in KERNEL_DTYPES:
        return f"in {str(dtype).removeprefix('torch.')}, which needs float16, bfloat16 or float32"
    return None
