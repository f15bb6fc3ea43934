"""A few rows of input times a small matrix, on Hopper: all of a program's weights are there before x is.

What `linear_gluon` does for one row, with the products of `linear_tiles_gluon`. Where a program's rows of the
matrix and all of x fit into shared memory there is no ring to go around: after the wait x is loaded once,
weighted and stored once, and all products are one chain. What a small matrix costs is the hand-over from
kernel to kernel, and every wait between its steps would lengthen it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
)

from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_tiles_gluon import (
    finished,
    layout_of_outputs,
    layout_of_products,
    layout_of_rows,
    norm_scale,
    places_of_outputs,
    stacked,
    tiles_of_rows,
    weighted_and_gated,
)
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.tiles import Strip, ring_rows


@gluon.jit
def _rows_strip_kernel(
    x_ptr,
    norm_ptr,
    matrix,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    eps,
    K: gl.constexpr,
    BATCH: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    CHUNKS: gl.constexpr = (K + COLUMNS - 1) // COLUMNS
    BLOCKS: gl.constexpr = COLUMNS // 64
    HALVES: gl.constexpr = 2 if GATED else 1
    first = gl.program_id(0) * ROWS
    weights = gl.allocate_shared_memory(matrix.dtype, [HALVES * CHUNKS, ROWS, COLUMNS], matrix.layout)
    inputs = gl.allocate_shared_memory(matrix.dtype, [CHUNKS, BATCH, COLUMNS], matrix.layout)
    arrived = barriers(1).index(0)
    mbarrier.init(arrived, count=1)
    mbarrier.expect(arrived, HALVES * CHUNKS * matrix.block_type.nbytes)
    for part in gl.static_range(HALVES * CHUNKS):  # beyond the matrix the accelerator writes zeros
        at_tile = [first + part // CHUNKS * num_outputs, part % CHUNKS * COLUMNS]
        tma.async_copy_global_to_shared(matrix, at_tile, arrived, weights.index(part))
    start_next(PDL)

    X: gl.constexpr = layout_of_rows(COLUMNS, num_warps)
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, X))
    x_rows = gl.arange(0, BATCH, gl.SliceLayout(1, X))[:, None]
    gains = ()
    if HAS_NORM:
        for chunk in gl.static_range(CHUNKS):
            at_gain = chunk * COLUMNS + columns
            gains += (gl.load(norm_ptr + at_gain, mask=at_gain < K, other=0.0),)
    Y: gl.constexpr = layout_of_outputs(ROWS, num_warps)
    rows, at, inside = places_of_outputs(first, num_rows, num_outputs, ROWS, BATCH, Y)
    if HAS_BIAS:
        bias = gl.load(bias_ptr + rows, mask=rows < num_outputs, other=0.0)
    wait_for_input(PDL)

    xs = ()
    for chunk in gl.static_range(CHUNKS):
        at_x = chunk * COLUMNS + columns[None, :]
        xs += (gl.load(x_ptr + x_rows * K + at_x, mask=(x_rows < num_rows) & (at_x < K), other=0.0),)
    if HAS_RESIDUAL:  # on its way together with x
        residual = gl.load(residual_ptr + at, mask=inside, other=0.0)
    squares = gl.zeros([BATCH, COLUMNS], gl.float32, X)
    for chunk in gl.static_range(CHUNKS):
        x = xs[chunk]
        if HAS_NORM:
            wide = x.to(gl.float32)
            squares += wide * wide
            x = (wide * gains[chunk].to(gl.float32)[None, :]).to(matrix.dtype)
        inputs.index(chunk).store(x)
    fence_async_shared()
    tl.debug_barrier()

    C: gl.constexpr = layout_of_products(BLOCKS * BATCH, num_warps)
    sums = warpgroup_mma_init(gl.zeros([BLOCKS * ROWS, BLOCKS * BATCH], gl.float32, C))
    up_sums = warpgroup_mma_init(gl.zeros([BLOCKS * ROWS, BLOCKS * BATCH], gl.float32, C))
    mbarrier.wait(arrived, 0)
    for chunk in gl.static_range(CHUNKS):
        right = stacked(inputs.index(chunk), BLOCKS).permute((1, 0))
        sums = warpgroup_mma(stacked(weights.index(chunk), BLOCKS), right, sums, is_async=True)
        if GATED:
            up = stacked(weights.index(CHUNKS + chunk), BLOCKS)
            up_sums = warpgroup_mma(up, right, up_sums, is_async=True)
    scale = norm_scale(squares, eps, K, Y)  # while the tensor cores are at work
    sums, up_sums = finished(sums, up_sums, GATED)
    y = weighted_and_gated(sums, up_sums, scale, ROWS, BATCH, BLOCKS, HAS_NORM, GATED, Y)
    if HAS_BIAS:
        y += bias.to(gl.float32)[:, None]
    if HAS_RESIDUAL:
        y += residual.to(gl.float32)
    gl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


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
    num_rows, num_outputs = out.shape
    matrix = tiles_of_rows(weight, strip.rows, strip.columns)
    _rows_strip_kernel[(triton.cdiv(num_outputs, strip.rows),)](
        *pointers(x, norm, matrix, bias, residual, out),
        num_rows,
        num_outputs,
        eps,
        K=x.shape[1],
        BATCH=ring_rows(num_rows),
        ROWS=strip.rows,
        COLUMNS=strip.columns,
        **switches(norm, bias, residual, gated),
        num_warps=strip.warps,
        **options(pdl),
    )
