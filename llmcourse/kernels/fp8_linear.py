"""FP8: weights and activations multiplied as e4m3, by the library where the device has it.

    y = s_x S_W (E_x E_Wᵀ) + b        e4m3: 4 bits of exponent, 3 of mantissa, at most 448

(Micikevicius et al. 2022, FP8 Formats for Deep Learning, section 3.) Scales as of `Int8Linear`: one for each
output, and one for each token or one for all. `torch._scaled_mm` runs on the tensor cores from compute
capability 8.9 on; on Hopper and later with scales for each row, before that they follow the product.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from llmcourse.kernels.backend import Backend
from llmcourse.kernels.quantize_rows import LARGEST, LEAST_AMAX, quantize_rows
from llmcourse.kernels.scaled_linear import ScaledLinear

E4M3 = torch.float8_e4m3fn


def fp8_matmul_reference(
    codes: Shaped[Tensor, "T K"],
    scale: Float[Tensor, " T"],
    weight: Shaped[Tensor, "N K"],
    weight_scale: Float[Tensor, " N"],
    dtype: torch.dtype,
) -> Float[Tensor, "T N"]:
    """What `fp8_matmul` computes, in fp32."""
    return ((codes.float() @ weight.float().T) * scale[:, None] * weight_scale).to(dtype)


def fp8_matmul(
    codes: Shaped[Tensor, "T K"],
    scale: Float[Tensor, " T"],
    weight: Shaped[Tensor, "N K"],
    weight_scale: Float[Tensor, " N"],
    dtype: torch.dtype,
    backend: Backend = "auto",
) -> Float[Tensor, "T N"]:
    """The product of two matrices in e4m3 over their columns.

    Args:
        backend: "auto" takes the library where the device and the sizes allow it; "triton", which says the
            same of kernels, raises where they do not.

    Raises:
        ValueError: a backend that is none, or that cannot run.
    """
    obstacle = _obstacle(codes, weight)
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(
            f"backend must be 'auto', 'triton' or 'reference', got {backend!r}; leave it at 'auto'"
        )
    if backend == "triton" and obstacle:
        raise ValueError(f"backend must be one that can run, got 'triton' {obstacle}; use 'auto'")
    if backend == "reference" or obstacle:
        return fp8_matmul_reference(codes, scale, weight, weight_scale, dtype)
    if torch.cuda.get_device_capability(codes.device) >= (9, 0):
        scales = {"scale_a": scale[:, None], "scale_b": weight_scale[None, :]}
        return torch._scaled_mm(codes, weight.T, out_dtype=torch.bfloat16, **scales).to(dtype)
    one = torch.ones((), device=codes.device)
    sums = torch._scaled_mm(codes, weight.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return (sums * scale[:, None] * weight_scale).to(dtype)


class Fp8Linear(ScaledLinear):
    """y = x Wᵀ + b, multiplied in e4m3; arguments and errors as of `ScaledLinear`."""

    codes_dtype = E4M3
    codes_remedy = "`Fp8Linear.of` makes them"
    groups_remedy = "e4m3 has no groups here"

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "N K"],
        bias: Float[Tensor, " N"] | None = None,
        *,
        input_scale: float | Tensor | None = None,
    ) -> Fp8Linear:
        """Weights by a scale for each row, rounded to the nearest."""
        peak = weight.float().abs().amax(1, keepdim=True).clamp(min=LEAST_AMAX)
        codes = (weight.float() * (LARGEST[E4M3] / peak)).to(E4M3)
        return cls(codes, peak / LARGEST[E4M3], bias, input_scale=input_scale)

    def multiplied(
        self,
        x: Tensor,
        norm: Tensor | None,
        eps: float,
        bias: Tensor | None,
        backend: Backend,
        pdl: bool,
    ) -> Tensor:
        # The kernel that rounds to e4m3 has been compiled, and on no GPU compared yet: it is for who asks.
        quantizing = "triton" if backend == "triton" and not _rounding_obstacle(x) else "reference"
        codes, scale = quantize_rows(
            x,
            norm=norm,
            eps=eps,
            static=self.input_scale,
            codes=E4M3,
            backend=quantizing,
            pdl=pdl,
        )
        y = fp8_matmul(codes, scale, self.codes, self.scale, x.dtype, backend)
        return y if bias is None else y + bias


def _rounding_obstacle(x: Tensor) -> str | None:
    """Why no kernel can round to e4m3 where x is, or None."""
    return None if x.device.type == "cuda" and _has_fp8(x.device) else "before compute capability 8.9"


@functools.cache
def _has_fp8(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def _obstacle(codes: Tensor, weight: Tensor) -> str | None:
    """Why the library cannot multiply these, or None."""
    if codes.device.type != "cuda":
        return f"on {codes.device.type}, which needs a CUDA device"
    if not _has_fp8(codes.device):
        return "before compute capability 8.9"
    if weight.shape[0] % 16 or weight.shape[1] % 16 or not len(codes):
        return f"for a weight of {tuple(weight.shape)}; both must be multiples of 16, and there be rows"
    return None
