"""W8A8: a linear layer whose weights and activations are both multiplied as int8.

    y = s_x S_W (Q_x Q_Wᵀ) + b

Weights have a scale for each output. Activations have one for each token, measured on the way, or one for
all, known from calibration (Xiao et al. 2023, SmoothQuant, table 2: "per-token dynamic" and "per-tensor
static"). Two kernels: one quantizes, with the norm before it if there is one; the other multiplies, and
dequantizes as it ends.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.backend import Backend
from llmcourse.kernels.int8_matmul import int8_matmul
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile
from llmcourse.kernels.quantize_rows import quantize_rows
from llmcourse.kernels.scaled_linear import ScaledLinear


class Int8Linear(ScaledLinear):
    """y = x Wᵀ + b, of x in 16 or 32 bits, multiplied in int8; arguments and errors as of `ScaledLinear`."""

    codes_dtype = torch.int8
    codes_remedy = "codes of 8 bits and fewer fit"
    groups_remedy = "activations in int8 ask for weights without groups"

    def product(
        self,
        x: Float[Tensor, "B K"],
        backend: Backend = "auto",
        *,
        tile: Int8Tile | WideTile | None = None,
        pdl: bool = False,
    ) -> Float[Tensor, "B N"]:
        return self.multiplied(x.contiguous(), None, 0.0, None, backend, pdl, tile)

    def multiplied(
        self,
        x: Tensor,
        norm: Tensor | None,
        eps: float,
        bias: Tensor | None,
        backend: Backend,
        pdl: bool,
        tile: Int8Tile | WideTile | None = None,
    ) -> Tensor:
        codes, scale = quantize_rows(x, norm=norm, eps=eps, static=self.input_scale, backend=backend, pdl=pdl)
        given = {"bias": bias, "backend": backend, "pdl": pdl, "tile": tile}
        return int8_matmul(codes, scale, self.codes, self.scale, x.dtype, **given)
