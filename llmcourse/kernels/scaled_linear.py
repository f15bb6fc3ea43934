"""What layers have in common whose weights and activations are both codes of 8 bits, integers or floats.

    y = s_x S_W (Q_x Q_Wᵀ) + b

Weights have a scale for each output. Activations have one for each token, measured on the way, or one for
all, known from calibration. A format says what its codes are, and how they multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from llmcourse.kernels.arguments import check_dims
from llmcourse.kernels.backend import Backend
from llmcourse.kernels.quantized_linear import QuantizedLinear, same_columns, stacked_biases
from llmcourse.kernels.swiglu import swiglu


class ScaledLinear(QuantizedLinear):
    """y = x Wᵀ + b, of x in 16 or 32 bits, both rounded to codes before they are multiplied.

    Args:
        codes: `(N, K)`, of the format's dtype.
        scale: `(N,)` or `(N, 1)`, of each output, positive; kept in fp32.
        bias: `(N,)` or None.
        input_scale: of all activations, a number or a tensor of one; None measures one for each token.

    Attributes:
        codes_dtype: of the format, with
        codes_remedy, groups_remedy: what errors advise of codes in another one, and of scales for groups.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an input scale that is no positive number.
    """

    codes_dtype: ClassVar[torch.dtype]
    codes_remedy: ClassVar[str]
    groups_remedy: ClassVar[str]

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
        if codes.dtype != self.codes_dtype:
            wanted = str(self.codes_dtype).removeprefix("torch.")
            raise ValueError(f"codes must be in {wanted}, got {codes.dtype}; {self.codes_remedy}")
        if scale.shape not in ((len(codes),), (len(codes), 1)):
            raise ValueError(
                f"scale must have one number for each of the {len(codes)} outputs, got shape "
                f"{tuple(scale.shape)}; {self.groups_remedy}"
            )
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.reshape(-1).float().contiguous())
        self.register_buffer("input_scale", checked_input_scale(input_scale, codes.device))

    def multiplied(
        self,
        x: Float[Tensor, "B K"],
        norm: Float[Tensor, " K"] | None,
        eps: float,
        bias: Float[Tensor, " N"] | None,
        backend: Backend,
        pdl: bool,
    ) -> Float[Tensor, "B N"]:
        """RMSNorm, codes, product and bias; x is contiguous."""
        raise NotImplementedError

    def product(self, x: Float[Tensor, "B K"], backend: Backend = "auto") -> Float[Tensor, "B N"]:
        return self.multiplied(x.contiguous(), None, 0.0, None, backend, False)

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
        """As of every `QuantizedLinear`; norm and bias may cost no kernel of their own."""
        y = self.multiplied(x.contiguous(), norm, eps, self.bias, backend, pdl)
        if gated:
            y = swiglu(y, backend=backend, pdl=pdl)
        if residual is not None:
            y = y + residual
        return y if out is None else out.copy_(y)

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        y = self.layer(x.reshape(-1, self.in_features), backend=self.backend)
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def own_dtype(self) -> tuple[str, ...]:
        return ("codes", "scale", "input_scale")

    def dequantized(self) -> Float[Tensor, "N K"]:
        return self.codes.float() * self.scale[:, None]

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        same_columns(parts)
        static = same_input_scale(parts)
        codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(cls.codes_dtype)
        scale = torch.cat([part.scale for part in parts])
        return cls(codes, scale, stacked_biases(parts), input_scale=static)

    def become_rows(self, whole: QuantizedLinear, begin: int) -> None:
        """Its tensors become views of those of a stacked layer, whose rows from `begin` on are its own."""
        take_rows(self, whole, begin, ("codes", "scale", "bias"))


def take_rows(part: QuantizedLinear, whole: QuantizedLinear, begin: int, names: Sequence[str]) -> None:
    """Lets these tensors of a layer, where it has them, be the rows of another's from `begin` on."""
    for name in names:
        if getattr(part, name) is not None:
            setattr(part, name, getattr(whole, name)[begin : begin + part.out_features])


def checked_input_scale(scale: float | Tensor | None, device: torch.device) -> Tensor | None:
    """A tensor of one positive number, in fp32; NaN, Inf and 0 are refused by name."""
    if scale is None:
        return None
    number = torch.as_tensor(scale, dtype=torch.float32, device=device).reshape(-1)
    if number.numel() != 1 or not (number.is_meta or (number.isfinite().all() and (number > 0).all())):
        raise ValueError(
            f"input_scale must be one positive number, got {scale}; None measures a scale for each token"
        )
    return number


def same_input_scale(parts: Sequence[QuantizedLinear]) -> Tensor | None:
    """The largest of the parts', which all read the same activations; None if they are measured."""
    scales = [part.input_scale for part in parts if part.input_scale is not None]
    if scales and len(scales) != len(parts):
        raise ValueError(
            f"parts must all have an input_scale or none, got one for {len(scales)} of {len(parts)}; "
            "calibrate them together"
        )
    return torch.stack(scales).amax(0) if scales else None
