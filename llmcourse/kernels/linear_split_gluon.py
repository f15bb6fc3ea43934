"""Some dozens of rows of input times a matrix, on Hopper: what verifying a tree of drafts spends time on.

As in `linear_rows_gluon` tiles of weights come through a ring in shared memory, asked for before the kernel
waits for x. But here x is no longer small beside them: a program of R rows of weights reads 64 rows of x from
the L2 cache for every R of the matrix from memory. So a program takes 128 rows, as many as the tensor cores
have for two times four warps; and where that leaves multiprocessors without work, programs share the columns:

    y = Σₛ W[:, Kₛ] · x[:, Kₛ]ᵀ        s = 1 … splits

Each leaves its sums in memory, the last to arrive adds them up, always in the order of s, and does what
follows the product. The order in which they arrive changes nothing, not a bit of the result. An RMSNorm needs
all K numbers of a row: the squares of a slice are left beside its sums.

Gains are multiplied into the tile of x where it lies, so that it needs no second place; they come from memory
two steps ahead. x has a ring of its own: it comes from the cache, so fewer tiles under way are enough.
(PTX ISA, `cp.async.bulk.tensor` and `wgmma`; Osama et al. 2023, Stream-K, where this is "fixed-split".)
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
    layout_of_products,
    layout_of_x,
    places_of_outputs,
    tiles_of_rows,
    weighted_and_gated,
)
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.split_rings import SplitMemory, SplitRing
from llmcourse.kernels.tiles import ring_rows


@gluon.constexpr_function
def _layout_of_outputs(rows, warps):
    """Eight outputs a thread, side by side in memory, and as many threads side by side as there are rows."""
    return gl.BlockedLayout([8, 1], [rows // 8, 256 // rows], [1, warps], [0, 1])


@gluon.jit
def _ask(tensor, ring, full, step, begin, row, up_row, STEPS: gl.constexpr, HALVES: gl.constexpr):
    """The tiles of a step, to their slot in the ring; none beyond the last step."""
    SLOTS: gl.constexpr = full.shape[0]
    COLUMNS: gl.constexpr = ring.shape[2]
    slot = step % SLOTS
    mbarrier.expect(full.index(slot), HALVES * tensor.block_type.nbytes, pred=step < STEPS)
    for half in gl.static_range(HALVES):
        at = [up_row if half else row, begin + step * COLUMNS]
        tile = ring.index(slot * HALVES + half)
        tma.async_copy_global_to_shared(tensor, at, full.index(slot), tile, pred=step < STEPS)


@gluon.jit
def _leave(part_ptr, sums, up_sums, squares, HAS_NORM: gl.constexpr, GATED: gl.constexpr, C: gl.constexpr):
    """A program's sums and squares, to its own place in memory."""
    ROWS: gl.constexpr = sums.shape[0]
    BATCH: gl.constexpr = sums.shape[1]
    at = _places(ROWS, BATCH, C)
    gl.store(part_ptr + at, sums)
    if GATED:
        gl.store(part_ptr + ROWS * BATCH + at, up_sums)
    if HAS_NORM:
        of_rows = gl.sum(squares, axis=1)
        row = gl.arange(0, BATCH, of_rows.type.layout)
        gl.store(part_ptr + (2 if GATED else 1) * ROWS * BATCH + row, of_rows)


@gluon.jit
def _places(ROWS: gl.constexpr, BATCH: gl.constexpr, C: gl.constexpr):
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, C))
    return rows[:, None] * BATCH + gl.arange(0, BATCH, gl.SliceLayout(0, C))[None, :]


@gluon.jit
def _gathered(parts_ptr, at, SIZE: gl.constexpr, SPLITS: gl.constexpr):
    """What all programs of a tile have left at these places, added up in the order of their columns."""
    total = gl.load(parts_ptr + at, cache_modifier=".cg")
    for split in gl.static_range(1, SPLITS):
        total += gl.load(parts_ptr + split * SIZE + at, cache_modifier=".cg")
    return total


@gluon.jit
def _added(
    bias_ptr, residual_ptr, rows, at, inside, num_outputs, HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr
):
    """What is added to the products in the end, (ROWS, BATCH); without either of them it is not asked for."""
    added = 0.0
    if HAS_RESIDUAL:
        added = gl.load(residual_ptr + at, mask=inside, other=0.0).to(gl.float32)
    if HAS_BIAS:
        bias = gl.load(bias_ptr + rows, mask=rows < num_outputs, other=0.0)
        added = added + bias.to(gl.float32)[:, None]
    return added


@gluon.jit(do_not_specialize=["num_rows"])
def _split_ring_kernel(
    x,
    norm_ptr,
    matrix,
    bias_ptr,
    residual_ptr,
    out_ptr,
    parts_ptr,
    arrivals_ptr,
    num_rows,
    num_outputs,
    eps,
    K: gl.constexpr,
    BATCH: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    INPUT_STAGES: gl.constexpr,
    SPLITS: gl.constexpr,
    STEPS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    HALVES: gl.constexpr = 2 if GATED else 1
    first = gl.program_id(0) * ROWS
    up_first = first + num_outputs
    begin = gl.program_id(1) * (STEPS * COLUMNS)
    weights = gl.allocate_shared_memory(matrix.dtype, [STAGES * HALVES, ROWS, COLUMNS], matrix.layout)
    inputs = gl.allocate_shared_memory(x.dtype, [INPUT_STAGES, BATCH, COLUMNS], x.layout)
    weights_full, inputs_full = barriers(STAGES), barriers(INPUT_STAGES)
    for nth in gl.static_range(STAGES):
        mbarrier.init(weights_full.index(nth), count=1)
    for nth in gl.static_range(INPUT_STAGES):
        mbarrier.init(inputs_full.index(nth), count=1)
    fence_async_shared()
    for nth in gl.static_range(STAGES):
        _ask(matrix, weights, weights_full, nth, begin, first, up_first, STEPS, HALVES)
    start_next(PDL)

    X: gl.constexpr = layout_of_x(COLUMNS, num_warps)
    columns = begin + gl.arange(0, COLUMNS, gl.SliceLayout(0, X))
    if HAS_NORM:
        coming = gl.load(norm_ptr + columns, mask=columns < K, other=0.0)
        after = gl.load(norm_ptr + COLUMNS + columns, mask=COLUMNS + columns < K, other=0.0)
    squares = gl.zeros([BATCH, COLUMNS], gl.float32, X)
    wait_for_input(PDL)
    for nth in gl.static_range(INPUT_STAGES):
        _ask(x, inputs, inputs_full, nth, begin, 0, 0, STEPS, 1)

    C: gl.constexpr = layout_of_products(BATCH, num_warps)
    sums = warpgroup_mma_init(gl.zeros([ROWS, BATCH], gl.float32, C))
    up_sums = warpgroup_mma_init(gl.zeros([ROWS, BATCH], gl.float32, C))
    for step in range(STEPS):
        slot = step % STAGES
        tile_of_x = inputs.index(step % INPUT_STAGES)
        mbarrier.wait(inputs_full.index(step % INPUT_STAGES), step // INPUT_STAGES % 2)
        if HAS_NORM:
            gain, coming = coming, after
            at_gain = (step + 2) * COLUMNS + columns
            after = gl.load(norm_ptr + at_gain, mask=at_gain < K, other=0.0)
            wide = tile_of_x.load(X).to(gl.float32)
            squares += wide * wide
            tile_of_x.store((wide * gain.to(gl.float32)[None, :]).to(x.dtype))
            fence_async_shared()
        mbarrier.wait(weights_full.index(slot), step // STAGES % 2)
        # The products of the step before went on while x was weighted.
        sums, up_sums = finished(sums, up_sums, GATED)
        tl.debug_barrier()  # x is written; and all are done with the step before, whose slots are free
        right = tile_of_x.permute((1, 0))
        sums = warpgroup_mma(weights.index(slot * HALVES), right, sums, is_async=True)
        if GATED:
            up_sums = warpgroup_mma(weights.index(slot * HALVES + 1), right, up_sums, is_async=True)
        if step > 0:
            _ask(matrix, weights, weights_full, step - 1 + STAGES, begin, first, up_first, STEPS, HALVES)
            _ask(x, inputs, inputs_full, step - 1 + INPUT_STAGES, begin, 0, 0, STEPS, 1)

    Y: gl.constexpr = _layout_of_outputs(ROWS, num_warps)
    rows, at, inside = places_of_outputs(first, num_rows, num_outputs, ROWS, BATCH, Y)
    if SPLITS == 1:
        added = _added(bias_ptr, residual_ptr, rows, at, inside, num_outputs, HAS_BIAS, HAS_RESIDUAL)
        sums, up_sums = finished(sums, up_sums, GATED)
        of_rows = gl.convert_layout(gl.sum(squares, axis=1), gl.SliceLayout(0, C))
    else:
        SIZE: gl.constexpr = (HALVES * ROWS + 1) * BATCH  # of what a program leaves
        tile_ptr = parts_ptr + gl.program_id(0).to(gl.int64) * (SPLITS * SIZE)
        sums, up_sums = finished(sums, up_sums, GATED)
        _leave(tile_ptr + gl.program_id(1) * SIZE, sums, up_sums, squares, HAS_NORM, GATED, C)
        tl.debug_barrier()  # all threads have stored before one of them says so
        arrived = gl.atomic_add(arrivals_ptr + gl.program_id(0), 1, sem="acq_rel")
        if arrived != SPLITS - 1:
            return
        gl.store(arrivals_ptr + gl.program_id(0), 0)
        added = _added(bias_ptr, residual_ptr, rows, at, inside, num_outputs, HAS_BIAS, HAS_RESIDUAL)
        left = _places(ROWS, BATCH, C)
        sums = _gathered(tile_ptr, left, SIZE, SPLITS)
        if GATED:
            up_sums = _gathered(tile_ptr + ROWS * BATCH, left, SIZE, SPLITS)
        if HAS_NORM:
            row = gl.arange(0, BATCH, gl.SliceLayout(0, C))
            of_rows = _gathered(tile_ptr + HALVES * ROWS * BATCH, row, SIZE, SPLITS)
    scale = 1.0
    if HAS_NORM:
        scale = 1.0 / gl.sqrt(of_rows / K + eps)
    y = weighted_and_gated(sums, up_sums, scale, ROWS, BATCH, 1, HAS_NORM, GATED, C)
    y = gl.convert_layout(y, Y)
    if HAS_BIAS or HAS_RESIDUAL:
        y += added
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
    ring: SplitRing,
    pdl: bool,
    memory: SplitMemory | None,
) -> None:
    num_rows, num_outputs = out.shape
    batch, steps = ring_rows(num_rows), ring.steps(x.shape[1])
    has = switches(norm, bias, residual, gated)
    _, norm, _, bias, residual, out = pointers(x, norm, weight, bias, residual, out)
    if ring.splits == 1:
        parts, arrivals = out, out  # never read
    else:
        memory = memory or SplitMemory.of([ring.needs(num_rows, num_outputs, gated)], x.device)
        parts, arrivals = memory.parts, memory.arrivals
    _split_ring_kernel[(triton.cdiv(num_outputs, ring.rows), ring.splits)](
        tiles_of_rows(x, batch, ring.columns),
        norm,
        tiles_of_rows(weight, ring.rows, ring.columns),
        bias,
        residual,
        out,
        parts,
        arrivals,
        num_rows,
        num_outputs,
        eps,
        K=x.shape[1],
        BATCH=batch,
        ROWS=ring.rows,
        COLUMNS=ring.columns,
        STAGES=min(ring.stages, steps),
        INPUT_STAGES=min(ring.input_stages, steps),
        SPLITS=ring.splits,
        STEPS=steps,
        **has,
        num_warps=ring.warps,
        **options(pdl),
    )
