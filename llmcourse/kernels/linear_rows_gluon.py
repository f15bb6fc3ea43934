"""A few rows of input times a matrix, on Hopper: what verifying drafts, and a small batch, spend time on.

As many rows as a verdict has tokens cost little more than one if the weights keep coming. Here the tensor
memory accelerator copies them through a ring of tiles in shared memory, asked for before the kernel waits for
x: while the kernel before ends, and while this one multiplies, a hundred kilobytes for every program are on
their way. Two programs fit on a multiprocessor, one of them of the next kernel.

(PTX ISA, `cp.async.bulk.tensor`.)
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
from llmcourse.kernels.tiles import Ring, ring_rows


@gluon.jit
def _ask_for_weights(matrix, ring, full, step, first, up_first, STEPS: gl.constexpr, HALVES: gl.constexpr):
    """The tiles of a step, to their slot in the ring; none beyond the last step."""
    STAGES: gl.constexpr = full.shape[0]
    COLUMNS: gl.constexpr = ring.shape[2]
    slot = step % STAGES
    mbarrier.expect(full.index(slot), HALVES * matrix.block_type.nbytes, pred=step < STEPS)
    for half in gl.static_range(HALVES):
        row = up_first if half else first
        tma.async_copy_global_to_shared(
            matrix, [row, step * COLUMNS], full.index(slot), ring.index(slot * HALVES + half), step < STEPS
        )


@gluon.jit
def _ask_for_input(x, ring, full, step, STEPS: gl.constexpr):
    STAGES: gl.constexpr = full.shape[0]
    COLUMNS: gl.constexpr = ring.shape[2]
    slot = step % STAGES
    mbarrier.expect(full.index(slot), x.block_type.nbytes, pred=step < STEPS)
    tma.async_copy_global_to_shared(
        x, [0, step * COLUMNS], full.index(slot), ring.index(slot), pred=step < STEPS
    )


@gluon.jit
def _ring_kernel(
    x,
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
    STAGES: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    STEPS: gl.constexpr = (K + COLUMNS - 1) // COLUMNS
    BLOCKS: gl.constexpr = COLUMNS // 64
    HALVES: gl.constexpr = 2 if GATED else 1
    first = gl.program_id(0) * ROWS
    up_first = first + num_outputs
    weights = gl.allocate_shared_memory(matrix.dtype, [STAGES * HALVES, ROWS, COLUMNS], matrix.layout)
    inputs = gl.allocate_shared_memory(x.dtype, [STAGES, BATCH, COLUMNS], x.layout)
    weights_full, inputs_full = barriers(STAGES), barriers(STAGES)
    for nth in gl.static_range(STAGES):
        mbarrier.init(weights_full.index(nth), count=1)
        mbarrier.init(inputs_full.index(nth), count=1)
    for nth in gl.static_range(STAGES):
        _ask_for_weights(matrix, weights, weights_full, nth, first, up_first, STEPS, HALVES)
    start_next(PDL)

    X: gl.constexpr = layout_of_rows(COLUMNS, num_warps)
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, X))
    if HAS_NORM:
        weighted = gl.allocate_shared_memory(x.dtype, [2, BATCH, COLUMNS], x.layout)
        coming = gl.load(norm_ptr + columns, mask=columns < K, other=0.0)
    squares = gl.zeros([BATCH, COLUMNS], gl.float32, X)
    wait_for_input(PDL)
    for nth in gl.static_range(STAGES):
        _ask_for_input(x, inputs, inputs_full, nth, STEPS)

    C: gl.constexpr = layout_of_products(BLOCKS * BATCH, num_warps)
    sums = warpgroup_mma_init(gl.zeros([BLOCKS * ROWS, BLOCKS * BATCH], gl.float32, C))
    up_sums = warpgroup_mma_init(gl.zeros([BLOCKS * ROWS, BLOCKS * BATCH], gl.float32, C))
    for step in range(STEPS):
        slot, phase = step % STAGES, step // STAGES % 2
        mbarrier.wait(inputs_full.index(slot), phase)
        if HAS_NORM:
            gain = coming
            at = (step + 1) * COLUMNS + columns
            coming = gl.load(norm_ptr + at, mask=at < K, other=0.0)
            wide = inputs.index(slot).load(X).to(gl.float32)
            squares += wide * wide
            tile_of_x = weighted.index(step % 2)
            tile_of_x.store((wide * gain.to(gl.float32)[None, :]).to(x.dtype))
            fence_async_shared()
        else:
            tile_of_x = inputs.index(slot)
        mbarrier.wait(weights_full.index(slot), phase)
        # The products of the step before went on while x was weighted.
        sums, up_sums = finished(sums, up_sums, GATED)
        tl.debug_barrier()  # x is written; and all are done with the step before, whose slot is free
        right = stacked(tile_of_x, BLOCKS).permute((1, 0))
        sums = warpgroup_mma(stacked(weights.index(slot * HALVES), BLOCKS), right, sums, is_async=True)
        if GATED:
            up = stacked(weights.index(slot * HALVES + 1), BLOCKS)
            up_sums = warpgroup_mma(up, right, up_sums, is_async=True)
        if step > 0:
            ahead = step - 1 + STAGES
            _ask_for_weights(matrix, weights, weights_full, ahead, first, up_first, STEPS, HALVES)
            _ask_for_input(x, inputs, inputs_full, ahead, STEPS)
    sums, up_sums = finished(sums, up_sums, GATED)

    Y: gl.constexpr = layout_of_outputs(ROWS, num_warps)
    scale = norm_scale(squares, eps, K, Y)
    y = weighted_and_gated(sums, up_sums, scale, ROWS, BATCH, BLOCKS, HAS_NORM, GATED, Y)
    rows, at, inside = places_of_outputs(first, num_rows, num_outputs, ROWS, BATCH, Y)
    if HAS_BIAS:
        y += gl.load(bias_ptr + rows, mask=rows < num_outputs, other=0.0).to(gl.float32)[:, None]
    if HAS_RESIDUAL:
        y += gl.load(residual_ptr + at, mask=inside, other=0.0).to(gl.float32)
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
    ring: Ring,
    pdl: bool,
) -> None:
    num_rows, num_outputs = out.shape
    batch = ring_rows(num_rows)
    has = switches(norm, bias, residual, gated)
    _, norm, _, bias, residual, out = pointers(x, norm, weight, bias, residual, out)
    _ring_kernel[(triton.cdiv(num_outputs, ring.rows),)](
        tiles_of_rows(x, batch, ring.columns),
        norm,
        tiles_of_rows(weight, ring.rows, ring.columns),
        bias,
        residual,
        out,
        num_rows,
        num_outputs,
        eps,
        K=x.shape[1],
        BATCH=batch,
        ROWS=ring.rows,
        COLUMNS=ring.columns,
        STAGES=min(ring.stages, triton.cdiv(x.shape[1], ring.columns)),
        **has,
        num_warps=ring.warps,
        **options(pdl),
    )
