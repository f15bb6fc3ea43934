"""A linear layer with what surrounds it, in one kernel: for the few rows that decoding has.

    y = f(W · RMSNorm(x) + b) + r,   f = identity, or SwiGLU over the two halves of W's rows

With one row of input this is bound by reading W once. Each program takes a block of W's rows and asks
for its first tile, or all of them, before it waits for x (see `launch`). The norm needs no kernel of its
own: W · (g ⊙ x / rms(x)) = (W · (g ⊙ x)) / rms(x), so every program sums x² on the way, to divide at the end.
Several rows in fp16 are normalised before: the tensor cores take g ⊙ x in that dtype, which may not hold it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.arguments import check_apart, check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import product
from llmcourse.kernels.split_rings import (
    LEAST_SPLIT_ROWS,
    MOST_SPLIT_ROWS,
    SplitMemory,
    SplitRing,
    measured_ring,
)
from llmcourse.kernels.tiles import (
    FEW_ROWS,
    FEW_ROWS_BYTES,
    MEASURED_RING_ROWS,
    MOST_RING_ROWS,
    SIXTEEN_ROWS,
    SPARE_BYTES,
    Ring,
    Strip,
    Tile,
    few_rows_tile,
    gemv_tile,
    matmul_tile,
    streamed_tile,
)

AnyTile = Tile | Strip | Ring | SplitRing
GluonTile = Strip | Ring | SplitRing
ROWS_OF = {
    Strip: (1, MOST_RING_ROWS),
    Ring: (2, MOST_RING_ROWS),
    SplitRing: (LEAST_SPLIT_ROWS, MOST_SPLIT_ROWS),
}


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
    tile: AnyTile | None = None,
    split_memory: SplitMemory | None = None,
) -> Float[Tensor, "B N"]:
    """RMSNorm, matrix, bias, SwiGLU and residual, whichever of them are given.

    Args:
        x, weight, norm, bias, residual: contiguous, all of one dtype.
        weight: `(N, K)`; gated, `(2 N, K)`: the rows of the gate, then those of up.
        norm: weights of an RMSNorm on x, with `eps`.
        bias: not together with `gated`.
        residual: added at the end; not the memory of `out`, which other programs may be writing.
        out: where the result goes, contiguous, in its own dtype; new memory in the dtype of x if None.
        backend: "auto" takes a kernel on CUDA where one was measured to be faster, the reference otherwise.
        pdl: launch before the previous kernel has ended; it must be one that takes part (see `launch`).
            Without effect before Hopper.
        tile: how the kernel cuts the matrix; None takes the measured or the default shape. A `Strip` is for
            up to 16 rows of input, a `Ring` for 2 to 16 and a `SplitRing` for 17 to 64, all in bfloat16 on
            Hopper; for one row a `Strip` also runs on what came later.
        split_memory: for a `SplitRing` whose programs share columns; None makes it, which a loop should not.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    num_outputs = _check(x, weight, norm, bias, residual, gated, out)
    if resolve(backend, x.device, x.dtype) == "reference":
        tile = None
    else:
        tile = tile or best_linear_tile(x, weight, gated, backend)
    if tile is None:
        y = linear_reference(x, weight, norm=norm, eps=eps, bias=bias, residual=residual, gated=gated)
        return y if out is None else out.copy_(y)
    if out is None:
        out = x.new_empty(x.shape[0], num_outputs)
    arguments = (x, weight, norm, eps, bias, residual, gated, out, tile, pdl)
    if isinstance(tile, GluonTile) and (obstacle := _gluon_obstacle(tile, x, weight, gated)):
        raise ValueError(f"tile must be one that fits, got {tile} {obstacle}; leave it at None")
    if isinstance(tile, Strip):
        from llmcourse.kernels import linear_gluon, linear_rows_strip_gluon

        (linear_gluon if x.shape[0] == 1 else linear_rows_strip_gluon).launch(*arguments)
        return out
    if isinstance(tile, Ring):
        from llmcourse.kernels import linear_rows_gluon

        linear_rows_gluon.launch(*arguments)
        return out
    if isinstance(tile, SplitRing):
        from llmcourse.kernels import linear_split_gluon

        if split_memory is not None:
            split_memory.check(tile.needs(x.shape[0], num_outputs, gated), x.device)
        linear_split_gluon.launch(*arguments, split_memory)
        return out
    from llmcourse.kernels import linear_triton

    if x.shape[0] == 1:
        linear_triton.launch_gemv(*arguments)
    else:
        linear_triton.launch_matmul(*arguments)
    return out


def best_linear_tile(x: Tensor, weight: Tensor, gated: bool, backend: Backend) -> AnyTile | None:
    """How the kernel is to cut the matrix; None where PyTorch's operations run.

    Up to eight rows in bfloat16 on Hopper are streamed, by a `Ring` or a `Strip`. That was measured in passes
    over several tokens, in which every kernel starts before its predecessor has ended: these ask for
    "triton", and have any matrix streamed. "auto" is a batch of rows too, without early starts, and takes
    such tiles only for the matrices in `tiles.FEW_ROWS`. For more rows, up to 64, "triton" has those streamed
    for which that was measured to be faster (`tiles.SIXTEEN_ROWS`, `split_rings.SPLIT_RINGS`).

    Otherwise "auto" leaves several rows to PyTorch's operations, which are taken to be faster, except in 16
    bits on a GPU of as much shared memory as Hopper (see `tiles.few_rows_tile`; measured in bfloat16 on an
    H200).
    """
    if resolve(backend, x.device, x.dtype) == "reference":
        return None
    from llmcourse.kernels.capabilities import shared_bytes

    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // (2 if gated else 1)
    if num_rows == 1:
        tile = gemv_tile(num_outputs, num_inputs, gated, strips=True)
        if isinstance(tile, Strip) and _gluon_obstacle(tile, x, weight, gated):
            return gemv_tile(num_outputs, num_inputs, gated)
        return tile
    measured = (num_outputs, num_inputs, gated) in FEW_ROWS
    if num_rows <= MEASURED_RING_ROWS and (measured or backend == "triton"):
        streamed = streamed_tile(num_rows, num_outputs, num_inputs, gated)
        if not _gluon_obstacle(streamed, x, weight, gated):
            return streamed
    if backend == "triton" and (ring := window_ring(x, weight, gated)):
        return ring
    if x.element_size() == 2 and shared_bytes() >= FEW_ROWS_BYTES:
        tile = few_rows_tile(num_rows, num_outputs, gated)
        if tile is not None:
            return tile
    return matmul_tile(num_outputs, num_inputs, gated, x.element_size()) if backend == "triton" else None


def window_ring(x: Tensor, weight: Tensor, gated: bool) -> Ring | SplitRing | None:
    """For 9 to 64 rows in a pass over several tokens: what was measured to be faster there, if anything."""
    num_rows, shape = len(x), (weight.shape[0] // (1 + gated), x.shape[1], gated)
    ring = measured_ring(num_rows, *shape)
    if MEASURED_RING_ROWS < num_rows <= MOST_RING_ROWS:
        ring = SIXTEEN_ROWS.get(shape)
    return None if ring is None or _gluon_obstacle(ring, x, weight, gated) else ring


def _gluon_obstacle(tile: GluonTile, x: Tensor, weight: Tensor, gated: bool) -> str | None:
    """Why no kernel in Gluon can run with such a tile, or None."""
    from llmcourse.kernels.capabilities import runs_gluon, runs_wgmma, shared_bytes

    least, most = ROWS_OF[type(tile)]
    if not least <= x.shape[0] <= most or x.dtype != torch.bfloat16 or x.shape[1] % 8:
        takes = f"{least} to {most} rows, a multiple of 8 numbers each, in bfloat16"
        return f"for {tuple(x.shape)} numbers in {x.dtype}; it takes {takes}"
    if x.shape[0] > 1 and (obstacle := _several_rows_obstacle(tile)):
        return f"for {x.shape[0]} rows: {obstacle}"
    if x.shape[0] == 1 and not runs_gluon(90):
        return "without a GPU of Hopper or later, or with a Triton that has no Gluon"
    if x.shape[0] > 1 and not runs_wgmma():
        return "for several rows without a GPU of Hopper, or with a Triton before 3.6"
    if not x.is_meta and (weight.data_ptr() % 16 or x.data_ptr() % 16):
        return "for a weight or x that does not begin at a multiple of 16 bytes"
    held, room = tile.held_bytes(*x.shape, gated), shared_bytes() - SPARE_BYTES
    return f"with {held} bytes for a program, which has room for {room}" if held > room else None


def _several_rows_obstacle(tile: GluonTile) -> str | None:
    """What in the tile's numbers only one row of input can do with, or None.

    With eight warps at most the tensor cores never get more than 256 columns at a time, which is their limit:
    a strip's piece has at most 16 blocks of 64 columns, each with at most 16 rows of input.
    """
    if tile.warps not in (4, 8):
        return f"warps must be 4 or 8, which multiply together, got {tile.warps}"
    if isinstance(tile, Strip) and not tile.tensor_cores:
        return "tensor_cores must be True, since nothing else multiplies several rows, got False"
    return None


def _check(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor | None,
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
    return num_outputs
