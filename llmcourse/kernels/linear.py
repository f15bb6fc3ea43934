"""A linear layer with what surrounds it, in one kernel: for the few rows that decoding has.

    y = f(W · RMSNorm(x) + b) + r,   f = identity, or SwiGLU over the two halves of W's rows

With one row of input this is bound by reading W once. Each program takes a block of W's rows and
requests its first tile before it waits for x (see `launch`). The norm needs no kernel of its own:
W · (g ⊙ x / rms(x)) = (W · (g ⊙ x)) / rms(x), so every program sums x² on the way and divides at the end.
Several rows in fp16 are normalised before: the tensor cores take g ⊙ x in that dtype, which may not hold it.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import product
from llmcourse.kernels.tiles import Tile, gemv_tile, matmul_tile


def linear_reference(
    x: Float[Tensor, "B K"],
    weight: Float[Tensor, "rows K"],
    *,
    norm: Float[Tensor, " K"] | None = None,
    eps: float = 1e-6,
    bias: Float[Tensor, " N"] | None = None,
    residual: Float[Tensor, "B N"] | None = None,
    gated: bool = False,
) -> Float[Tensor, "B N"]:
    """What `linear` computes, operation by operation."""
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm, eps)
    y = product(x, weight, bias)
    if gated:
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate).mul_(up)
    return y if residual is None else y.add_(residual)


def linear(
    x: Float[Tensor, "B K"],
    weight: Float[Tensor, "rows K"],
    *,
    norm: Float[Tensor, " K"] | None = None,
    eps: float = 1e-6,
    bias: Float[Tensor, " N"] | None = None,
    residual: Float[Tensor, "B N"] | None = None,
    gated: bool = False,
    out: Float[Tensor, "B N"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
    tile: Tile | None = None,
    prefetch: Tensor | None = None,
) -> Float[Tensor, "B N"]:
    """RMSNorm, matrix, bias, SwiGLU and residual, whichever of them are given.

    Args:
        weight: `(N, K)`; gated, `(2 N, K)`: the rows of the gate, then those of up.
        norm: weights of an RMSNorm on x, with `eps`.
        bias: not together with `gated`.
        residual: added at the end; not the memory of `out`, which other programs may be writing.
        out: where the result goes, in its own dtype; new memory in the dtype of x if None.
        pdl: launch before the previous kernel has ended; it must be one that takes part (see `launch`).
            Without effect before Hopper.
        tile: how the kernel cuts the matrix; None takes the measured or the default shape.
        prefetch: contiguous memory that a later kernel reads, asked for while this one runs; a hint, for
            one row of input, on Hopper or later.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run.
    """
    num_outputs = _check_shapes(x, weight, bias, residual, gated)
    if resolve(backend, x.device, x.dtype) == "reference":
        y = linear_reference(x, weight, norm=norm, eps=eps, bias=bias, residual=residual, gated=gated)
        return y if out is None else out.copy_(y)
    from llmcourse.kernels import linear_triton

    if out is None:
        out = x.new_empty(x.shape[0], num_outputs)
    if x.shape[0] == 1:
        tile = tile or gemv_tile(num_outputs, x.shape[1], gated)
        linear_triton.launch_gemv(x, weight, norm, eps, bias, residual, gated, out, tile, pdl, prefetch)
    else:
        tile = tile or matmul_tile(num_outputs, x.shape[1], gated, x.element_size())
        linear_triton.launch_matmul(x, weight, norm, eps, bias, residual, gated, out, tile, pdl)
    return out


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gated: bool
) -> int:
    """The number of outputs."""
    rows, num_inputs = weight.shape
    if x.shape[1] != num_inputs:
        raise ValueError(f"x must have {num_inputs} columns as weight has, got {x.shape[1]}")
    if not (weight.is_contiguous() and x.is_contiguous()):
        raise ValueError("x and weight must be contiguous; call .contiguous() once, before decoding")
    if gated and (rows % 2 or bias is not None):
        raise ValueError(f"a gated weight must have an even number of rows and no bias, got {rows} rows")
    num_outputs = rows // 2 if gated else rows
    if bias is not None and bias.shape != (num_outputs,):
        raise ValueError(f"bias must have shape ({num_outputs},), got {tuple(bias.shape)}")
    if residual is not None and residual.shape != (x.shape[0], num_outputs):
        raise ValueError(f"residual must have shape {(x.shape[0], num_outputs)}, got {tuple(residual.shape)}")
    return num_outputs
