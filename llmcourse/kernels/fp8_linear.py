"""FP8: weights and activations multiplied as e4m3, by the library where the device has it.

    y = s_x S_W (E_x E_Wᵀ) + b        e4m3: 4 bits of exponent, 3 of mantissa, at most 448

(Micikevicius et al. 2022, FP8 Formats for Deep Learning, section 3.) Scales as of `Int8Linear`: one for each
output, and one for each token or one for all. `torch._scaled_mm` runs on the tensor cores from compute
capability 8.9 on; on Hopper and later with scales for each row, before that they follow the product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from llmcourse.kernels.arguments import check_dims
from llmcourse.kernels.backend import Backend
from llmcourse.kernels.int8_linear import checked_input_scale, ended, same_input_scale, take_rows
from llmcourse.kernels.quantize_rows import LARGEST, LEAST_AMAX, quantize_rows
from llmcourse.kernels.quantized_linear import QuantizedLinear, same_columns, stacked_biases

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


class Fp8Linear(QuantizedLinear):
    """y = x Wᵀ + b, multiplied in e4m3.

    Args:
        codes: `(N, K)`, float8_e4m3fn.
        scale: `(N,)` or `(N, 1)`, of each output; kept in fp32.
        bias: `(N,)` or None.
        input_scale: of all activations; None measures one for each token.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an input scale that is no positive number.
    """

    def __init__(
        self,
        codes: Shaped[Tensor, "N K"],
        scale: Tensor,
        bias: Float[Tensor, " N"] | None = None,
        *,
        input_scale: float | Tensor | None = None,
    ):
        check_dims("codes", codes, "N", "K")
        super().__init__(codes.shape[1], codes.shape[0], bias)
        if codes.dtype != E4M3:
            raise ValueError(f"codes must be in float8_e4m3fn, got {codes.dtype}; `Fp8Linear.of` makes them")
        if scale.shape not in ((len(codes),), (len(codes), 1)):
            raise ValueError(
                f"scale must have one number for each of the {len(codes)} outputs, got shape "
                f"{tuple(scale.shape)}; e4m3 has no groups here"
            )
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.reshape(-1).float().contiguous())
        self.register_buffer("input_scale", checked_input_scale(input_scale, codes.device))

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

    def product(self, x: Float[Tensor, "B K"], backend: Backend = "auto") -> Float[Tensor, "B N"]:
        return self._multiplied(x, None, 0.0, backend, False)

    def layer(
        self,
        x: Float[Tensor, "B K"],
        *,
        norm: Float[Tensor, " K"] | None = None,
        eps: float = 1e-6,
        residual: Float[Tensor, "B N"] | None = None,
        gated: bool = False,
        out: Float[Tensor, "B N"] | None = None,
        backend: Backend = "auto",
        pdl: bool = False,
    ) -> Float[Tensor, "B N"]:
        """As of every `QuantizedLinear`; the norm costs no kernel of its own."""
        y = self._multiplied(x, norm, eps, backend, pdl)
        if self.bias is not None:
            y = y + self.bias
        return ended(y, residual, gated, out, backend, pdl)

    @property
    def own_dtype(self) -> tuple[str, ...]:
        return ("codes", "scale", "input_scale")

    def dequantized(self) -> Float[Tensor, "N K"]:
        return self.codes.float() * self.scale[:, None]

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        same_columns(parts)
        codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(E4M3)
        scale = torch.cat([part.scale for part in parts])
        return cls(codes, scale, stacked_biases(parts), input_scale=same_input_scale(parts))

    def become_rows(self, whole: QuantizedLinear, begin: int) -> None:
        take_rows(self, whole, begin, ("codes", "scale", "bias"))

    def _multiplied(self, x: Tensor, norm: Tensor | None, eps: float, backend: Backend, pdl: bool) -> Tensor:
        # The kernel that rounds to e4m3 has been compiled, and on no GPU compared yet: it is for who asks.
        quantizing = "triton" if backend == "triton" and not _rounding_obstacle(x) else "reference"
        codes, scale = quantize_rows(
            x.contiguous(),
            norm=norm,
            eps=eps,
            static=self.input_scale,
            codes=E4M3,
            backend=quantizing,
            pdl=pdl,
        )
        return fp8_matmul(codes, scale, self.codes, self.scale, x.dtype, backend)


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
