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

from llmcourse.kernels.arguments import check_apart, check_dims, check_memory, check_prefetch, check_tensor
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
        x, weight, norm, bias, residual: contiguous, all of one dtype.
        weight: `(N, K)`; gated, `(2 N, K)`: the rows of the gate, then those of up.
        norm: weights of an RMSNorm on x, with `eps`.
        bias: not together with `gated`.
        residual: added at the end; not the memory of `out`, which other programs may be writing.
        out: where the result goes, contiguous, in its own dtype; new memory in the dtype of x if None.
        backend: "auto" takes the kernel for one row of input on CUDA, the reference otherwise.
        pdl: launch before the previous kernel has ended; it must be one that takes part (see `launch`).
            Without effect before Hopper.
        tile: how the kernel cuts the matrix; None takes the measured or the default shape.
        prefetch: contiguous memory that a later kernel reads, asked for while this one runs; a hint, for
            one row of input, on Hopper or later.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    num_outputs = _check(x, weight, norm, bias, residual, gated, out, prefetch)
    chosen = resolve(backend, x.device, x.dtype)
    # With two rows or more PyTorch's products were faster than the kernel in every recorded run: at 2 to 64
    # rows a step of Llama-3-8B took 0.5 to 0.7 of the best tile's time (benchmarks/results/raw).
    if chosen == "reference" or (backend == "auto" and x.shape[0] > 1):
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


def _check(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor | None,
    prefetch: Tensor | None,
) -> int:
    """The number of outputs, of arguments that fit each other."""
    check_dims("x", x, "B", "K")
    check_dims("weight", weight, "rows", "K")
    batch, (rows, num_inputs) = x.shape[0], weight.shape
    if gated and (rows % 2 or bias is not None):
        has = "no bias" if bias is None else "a bias"
        raise ValueError(
            f"a gated weight must have an even number of rows and no bias, got {rows} rows and {has}; "
            "stack gate and up below each other, and add a bias yourself"
        )
    num_outputs = rows // 2 if gated else rows
    wide = (batch, num_outputs)
    check_memory("weight", weight, x)
    check_tensor("x", x, (batch, num_inputs), x, "it needs the columns that weight has")
    check_tensor("norm", norm, (num_inputs,), x, "pass a weight for each column of x, or None")
    check_tensor("bias", bias, (num_outputs,), x, "pass a number for each output, or None")
    check_tensor("residual", residual, wide, x, "pass a number for each output, or None")
    memory = "leave it at None for new memory"
    own = out.dtype if out is not None and out.is_floating_point() else None
    check_tensor("out", out, wide, x, memory, dtype=own, layout=memory)
    check_apart(out, x=x, residual=residual)
    check_prefetch(prefetch, x)
    return num_outputs
