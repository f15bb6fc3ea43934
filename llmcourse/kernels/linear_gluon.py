"""One row of input times a small matrix, on Hopper: all of a program's weights are there before the input is.

`linear_triton` holds the weights that it waits with in registers, and so no more than two kernels of a chain
fit on the chip at a time. Where a matrix is small, handing over from kernel to kernel takes longer than
reading it does, and the memory stands idle. Here each program asks for its whole strip of rows at once, by
the tensor memory accelerator into shared memory, before it waits: three or four kernels ahead, weights are on
their way, and what is left after the wait is a load of x, the products, and one store.

The language is Gluon, Triton's lower floor: layouts over threads and shared memory are the writer's choice.
(PTX ISA, `cp.async.bulk.tensor`; for the chain of launches see `launch`.)
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.tiles import STRIP_COLUMNS, Strip


@gluon.jit
def _strip_kernel(
    x_ptr,
    norm_ptr,
    strips,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_outputs,
    eps,
    K: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    TENSOR_CORES: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    CHUNKS: gl.constexpr = (K + COLUMNS - 1) // COLUMNS
    HALVES: gl.constexpr = 2 if GATED else 1
    first = gl.program_id(0) * ROWS
    held = gl.allocate_shared_memory(strips.dtype, [HALVES * CHUNKS, ROWS, COLUMNS], strips.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(arrived, count=1)
    mbarrier.expect(arrived, HALVES * CHUNKS * strips.block_type.nbytes)
    for part in gl.static_range(HALVES * CHUNKS):  # beyond the matrix the accelerator writes zeros
        at = [first + part // CHUNKS * num_outputs, part % CHUNKS * COLUMNS]
        tma.async_copy_global_to_shared(strips, at, arrived, held.index(part))
    start_next(PDL)

    # Where a thread's numbers of x lie in a chunk: (1, COLUMNS) like the weights that it multiplies, or
    # (blocks, 64), each block a column of the tensor cores' right operand.
    if TENSOR_CORES:
        X: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [num_warps, 1], [1, 0])
        block = gl.arange(0, COLUMNS // 64, gl.SliceLayout(1, X))
        at_x = block[:, None] * 64 + gl.arange(0, 64, gl.SliceLayout(0, X))[None, :]
        R: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    else:
        X: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [num_warps, 1], [1, 0])
        at_x = gl.arange(0, COLUMNS, gl.SliceLayout(0, X))[None, :]
        R: gl.constexpr = gl.SliceLayout(1, X)
    rows = first + gl.arange(0, ROWS, R)
    inside = rows < num_outputs
    gains = ()
    if HAS_NORM:
        for chunk in gl.static_range(CHUNKS):
            at = chunk * COLUMNS + at_x
            gains += (gl.load(norm_ptr + at, mask=at < K, other=0.0),)
    wait_for_input(PDL)

    xs = ()
    for chunk in gl.static_range(CHUNKS):
        at = chunk * COLUMNS + at_x
        xs += (gl.load(x_ptr + at, mask=at < K, other=0.0),)
    if HAS_RESIDUAL:  # on its way together with x
        residual = gl.load(residual_ptr + rows, mask=inside, other=0.0)
    scale = 1.0
    if HAS_NORM:
        squares = gl.zeros(at_x.shape, gl.float32, X)
        weighted = ()
        for chunk in gl.static_range(CHUNKS):
            x = xs[chunk].to(gl.float32)
            squares += x * x
            weighted += (x * gains[chunk].to(gl.float32),)
        scale = 1.0 / gl.sqrt(gl.sum(gl.sum(squares, axis=1), axis=0) / K + eps)
        xs = weighted

    mbarrier.wait(arrived, 0)
    if TENSOR_CORES:
        y = _by_tensor_cores(held, 0, xs, CHUNKS, ROWS, COLUMNS, R, num_warps)
    else:
        y = _by_threads(held, 0, xs, CHUNKS, X)
    y *= scale
    if GATED:
        if TENSOR_CORES:
            up = _by_tensor_cores(held, CHUNKS, xs, CHUNKS, ROWS, COLUMNS, R, num_warps)
        else:
            up = _by_threads(held, CHUNKS, xs, CHUNKS, X)
        y = y / (1.0 + gl.exp(-y)) * (up * scale)
    if HAS_BIAS:
        y += gl.load(bias_ptr + rows, mask=inside, other=0.0).to(gl.float32)
    if HAS_RESIDUAL:
        y += residual.to(gl.float32)
    gl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=inside)


@gluon.jit
def _by_threads(held, begin: gl.constexpr, xs, CHUNKS: gl.constexpr, X: gl.constexpr):
    """The products, each thread its own columns of a row: a warp adds a row up alone."""
    sums = held.index(begin).load(X).to(gl.float32) * xs[0].to(gl.float32)
    for chunk in gl.static_range(1, CHUNKS):
        sums += held.index(begin + chunk).load(X).to(gl.float32) * xs[chunk].to(gl.float32)
    return gl.sum(sums, axis=1)


@gluon.jit
def _by_tensor_cores(
    held,
    begin: gl.constexpr,
    xs,
    CHUNKS: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    R: gl.constexpr,
    num_warps: gl.constexpr,
):
    """The products, with x in as many columns as a chunk has blocks of 64.

    In shared memory the chunk lies block below block, (blocks · ROWS, 64). Times x as (64, blocks) that
    gives every block of weights with every block of x; those of the same number are the ones that count.
    """
    BLOCKS: gl.constexpr = COLUMNS // 64
    M: gl.constexpr = BLOCKS * ROWS
    C: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, 8]
    )
    flat: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    sums = gl.zeros([M, BLOCKS], gl.float32, C)
    for chunk in gl.static_range(CHUNKS):
        tile = held.index(begin + chunk)._reinterpret(held.dtype, [M, 64], flat)
        weights = tile.load(gl.DotOperandLayout(0, C, 2))
        x = gl.permute(xs[chunk].to(held.dtype), (1, 0))
        sums = mma_v2(weights, gl.convert_layout(x, gl.DotOperandLayout(1, C, 2)), sums)
    of_weights = gl.arange(0, M, gl.SliceLayout(1, C)) // ROWS
    same = of_weights[:, None] == gl.arange(0, BLOCKS, gl.SliceLayout(0, C))[None, :]
    partial = gl.sum(gl.where(same, sums, 0.0), axis=1)
    return gl.convert_layout(gl.sum(gl.reshape(partial, [BLOCKS, ROWS]), axis=0), R)


def launch(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor,
    strip: Strip,
    pdl: bool,
) -> None:
    block = [strip.rows, STRIP_COLUMNS]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    num_outputs = out.shape[1]
    _strip_kernel[(triton.cdiv(num_outputs, strip.rows),)](
        *pointers(x, norm, TensorDescriptor.from_tensor(weight, block, layout), bias, residual, out),
        num_outputs,
        eps,
        K=x.shape[1],
        ROWS=strip.rows,
        COLUMNS=STRIP_COLUMNS,
        TENSOR_CORES=strip.tensor_cores,
        **switches(norm, bias, residual, gated),
        num_warps=strip.warps,
        **options(pdl),
    )
