"""A few rows of input times a matrix, on Hopper: what verifying drafts, and a small batch, spend time on.

As many rows as a verdict has tokens cost little more than one if the weights keep coming. Here the tensor
memory accelerator copies them through a ring of tiles in shared memory, asked for before the kernel waits for
x: while the kernel before ends, and while this one multiplies, a hundred kilobytes for every program are on
their way. Two programs fit on a multiprocessor, one of them of the next kernel.

The tensor cores take 64 rows of weights at a time, and a program has fewer. So a tile of (rows, columns) is
read as blocks of 64 columns one below the other, and the tile of x in the same way: their product holds every
block of weights with every block of x, and those of the same number are the ones that count. All others are
computed in vain, which takes time that there is.

    W = [W₁ W₂],  x = [x₁ x₂]      [W₁]             [W₁x₁ᵀ  W₁x₂ᵀ]
                                   [W₂] [x₁ᵀ x₂ᵀ] = [W₂x₁ᵀ  W₂x₂ᵀ]      W xᵀ = W₁x₁ᵀ + W₂x₂ᵀ

The norm's gains are multiplied into x in between, (W · (g ⊙ x)) / rms(x) as in the other kernels of `linear`.
(PTX ISA, `cp.async.bulk.tensor` and `wgmma`.)
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
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.launch import options, start_next, wait_for_input
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
def stacked(tile, BLOCKS: gl.constexpr):
    """A tile (rows, columns) in shared memory as its blocks of 64 columns, one below the other."""
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    return tile._reinterpret(tile.dtype, [BLOCKS * tile.shape[0], 64], LAYOUT)


@gluon.jit
def finished(sums, up_sums, GATED: gl.constexpr):
    if GATED:
        sums, up_sums = warpgroup_mma_wait(0, [sums, up_sums])
    else:
        sums = warpgroup_mma_wait(0, [sums])
    return sums, up_sums


@gluon.jit
def same_blocks(products, ROWS: gl.constexpr, BATCH: gl.constexpr, BLOCKS: gl.constexpr, Y: gl.constexpr):
    """The sum over blocks of weights with their own block of x: (ROWS, BATCH)."""
    if BLOCKS > 1:
        of_weights = gl.arange(0, BLOCKS * ROWS, gl.SliceLayout(1, products.type.layout)) // ROWS
        of_x = gl.arange(0, BLOCKS * BATCH, gl.SliceLayout(0, products.type.layout)) // BATCH
        products = gl.where(of_weights[:, None] == of_x[None, :], products, 0.0)
        parts = gl.reshape(products, [BLOCKS, ROWS, BLOCKS, BATCH])
        products = gl.sum(gl.sum(parts, axis=2), axis=0)
    return gl.convert_layout(products, Y)


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

    THREADS: gl.constexpr = min(COLUMNS // 8, 32)
    X: gl.constexpr = gl.BlockedLayout([1, 8], [32 // THREADS, THREADS], [num_warps, 1], [1, 0])
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, X))
    if HAS_NORM:
        weighted = gl.allocate_shared_memory(x.dtype, [2, BATCH, COLUMNS], x.layout)
        coming = gl.load(norm_ptr + columns, mask=columns < K, other=0.0)
    squares = gl.zeros([BATCH, COLUMNS], gl.float32, X)
    wait_for_input(PDL)
    for nth in gl.static_range(STAGES):
        _ask_for_input(x, inputs, inputs_full, nth, STEPS)

    C: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, BLOCKS * BATCH, 16]
    )
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

    LANES: gl.constexpr = min(ROWS, 32)
    Y: gl.constexpr = gl.BlockedLayout([1, 1], [LANES, 32 // LANES], [1, num_warps], [0, 1])
    y = same_blocks(sums, ROWS, BATCH, BLOCKS, Y)
    scale = gl.full([BATCH], 1.0, gl.float32, gl.SliceLayout(0, Y))
    if HAS_NORM:
        mean = gl.sum(squares, axis=1) / K
        scale = gl.convert_layout(1.0 / gl.sqrt(mean + eps), gl.SliceLayout(0, Y))
        y *= scale[None, :]
    if GATED:
        y = y / (1.0 + gl.exp(-y)) * (same_blocks(up_sums, ROWS, BATCH, BLOCKS, Y) * scale[None, :])
    rows = first + gl.arange(0, ROWS, gl.SliceLayout(1, Y))
    batch = gl.arange(0, BATCH, gl.SliceLayout(0, Y))
    at = batch[None, :].to(gl.int64) * num_outputs + rows[:, None]
    inside = (batch < num_rows)[None, :] & (rows < num_outputs)[:, None]
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


def tiles_of_rows(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return TensorDescriptor.from_tensor(x, [rows, columns], layout)
