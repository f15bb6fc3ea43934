"""Number formats by the short names that datasheets use, and the bits that one number takes."""

from __future__ import annotations

import torch

# tf32 is a way to multiply: in memory it is an fp32.
BITS = {
    "fp64": 64,
    "fp32": 32,
    "tf32": 32,
    "bf16": 16,
    "fp16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "fp4": 4,
}
_TORCH_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.int8: "int8",
}
_SPELLINGS = {str(dtype).removeprefix("torch."): name for dtype, name in _TORCH_NAMES.items()}


def dtype_name(dtype: str | torch.dtype) -> str:
    """The short name of a format: `"bf16"` for `torch.bfloat16`, `"bfloat16"` or `"bf16"`.

    Raises:
        ValueError: it is none of `BITS`.
    """
    name = _TORCH_NAMES.get(dtype) if isinstance(dtype, torch.dtype) else _SPELLINGS.get(dtype, dtype)
    if name not in BITS:
        raise ValueError(
            f"dtype must be one of {', '.join(BITS)}, got {str(dtype)!r}; or give PyTorch's, torch.bfloat16"
        )
    return name
