"""What the consumers of `linear_split_gluon` do, whose plan stands there: products, and what follows them.

x is the left operand, 64 rows, a step's columns of it in registers, and the tile of weights in shared memory
the right one. Sums are (rows of x, outputs), as the result lies in memory.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from llmcourse.kernels.launch import wait_for_input
from llmcourse.kernels.linear_tiles_gluon import gathered, layout_of_rows
from llmcourse.kernels.split_rings import MOST_SPLIT_ROWS

BATCH = gl.constexpr(MOST_SPLIT_ROWS)  # rows of x that are multiplied; zeros where there are fewer


@gluon.constexpr_function
def _layout_of_products(rows, warps):
    """(BATCH, rows): each four warps have all of x, and their own part of the outputs."""
    groups = warps // 4
    shape = [16, rows // groups, 16]
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, groups], instr_shape=shape)


@gluon.jit
def _kept_gains(
    norm_ptr, begin, K: gl.constexpr, GAINS: gl.constexpr, COLUMNS: gl.constexpr, WARPS: gl.constexpr
):
    """Those of a program's columns, step by step in shared memory, which are there before x is."""
    BY_STEP: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    L: gl.constexpr = layout_of_rows(COLUMNS, WARPS)
    steps = gl.arange(0, GAINS, gl.SliceLayout(1, L))
    at = begin + steps[:, None] * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, L))[None, :]
    found = gl.load(norm_ptr + at, mask=at < K, other=0.0)
    gains = gl.allocate_shared_memory(
        found.dtype, [GAINS, COLUMNS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]), found
    )
    tl.debug_barrier()  # they are there
    return gains._reinterpret(gains.dtype, [GAINS, COLUMNS], BY_STEP)


@gluon.jit
def _weighted(x, gain):
    """Two numbers and their gains by one instruction, rounded once: the compiler would make several of it."""
    return gl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [x, gain], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def _taken(inputs, full, gains, step, squares, HAS_NORM: gl.constexpr, X: gl.constexpr):
    """The tile of x of a step in registers, by its gains; its squares are added to each row's."""
    SLOTS: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(step % SLOTS), step // SLOTS % 2)
    tile = inputs.index(step % SLOTS).load(X)
    if HAS_NORM:
        gain = gains.index(step).load(gl.SliceLayout(0, X))
        wide = tile.to(gl.float32)
        squares += gl.sum(wide * wide, axis=1)
        tile = _weighted(tile, gain[None, :])
    return tile, squares


@gluon.jit
def _begin(tile_of_x, weights, full, step, sums, up_sums, GATED: gl.constexpr):
    """Issues the products of a step, when its weights are there."""
    SLOTS: gl.constexpr = full.shape[0]
    HALVES: gl.constexpr = 2 if GATED else 1
    slot = step % SLOTS
    mbarrier.wait(full.index(slot), step // SLOTS % 2)
    right = weights.index(slot * HALVES).permute((1, 0))
    sums = warpgroup_mma(tile_of_x, right, sums, is_async=True)
    if GATED:
        up_right = weights.index(slot * HALVES + 1).permute((1, 0))
        up_sums = warpgroup_mma(tile_of_x, up_right, up_sums, is_async=True)
    return sums, up_sums


@gluon.jit
def _finished(sums, up_sums, tile_of_x, GATED: gl.constexpr):
    """The sums when all products are added; the tensor cores have read x until then."""
    if GATED:
        sums, up_sums, tile_of_x = warpgroup_mma_wait(0, [sums, up_sums, tile_of_x])
    else:
        sums, tile_of_x = warpgroup_mma_wait(0, [sums, tile_of_x])
    return sums, up_sums


@gluon.jit
def _places(rows, ROWS: gl.constexpr, L: gl.constexpr):
    """Of the sums of a program, within what it leaves."""
    return rows[:, None] * ROWS + gl.arange(0, ROWS, gl.SliceLayout(0, L))[None, :]


@gluon.jit
def _leave(part_ptr, sums, up_sums, squares, num_rows, HAS_NORM: gl.constexpr, GATED: gl.constexpr):
    """A program's sums and squares, to its own place in memory; none of rows that there are not."""
    ROWS: gl.constexpr = sums.shape[1]
    C: gl.constexpr = sums.type.layout
    rows = gl.arange(0, BATCH, gl.SliceLayout(1, C))
    at = _places(rows, ROWS, C)
    there = (rows < num_rows)[:, None]
    gl.store(part_ptr + at, sums, mask=there)
    if GATED:
        gl.store(part_ptr + BATCH * ROWS + at, up_sums, mask=there)
    if HAS_NORM:
        row = gl.arange(0, BATCH, squares.type.layout)
        gl.store(part_ptr + (2 if GATED else 1) * BATCH * ROWS + row, squares, mask=row < num_rows)


@gluon.jit
def _ended(sums, up_sums, squares, eps, K: gl.constexpr, HAS_NORM: gl.constexpr, GATED: gl.constexpr):
    """The products over rms(x), and where they are gated silu of them times the other half."""
    if HAS_NORM:
        scale = (1.0 / gl.sqrt(squares / K + eps))[:, None]
        sums *= scale
        if GATED:
            up_sums *= scale
    if GATED:
        sums = sums / (1.0 + gl.exp(-sums)) * up_sums
    return sums


@gluon.jit
def _added(
    bias_ptr,
    residual_ptr,
    outputs,
    at,
    inside,
    num_outputs,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
):
    """What is added to the products in the end, (BATCH, ROWS); without either of them it is not asked for."""
    added = 0.0
    if HAS_RESIDUAL:
        added = gl.load(residual_ptr + at, mask=inside, other=0.0).to(gl.float32)
    if HAS_BIAS:
        bias = gl.load(bias_ptr + outputs, mask=outputs < num_outputs, other=0.0)
        added = added + bias.to(gl.float32)[None, :]
    return added


@gluon.jit
def _store(out_ptr, at, y, added, inside, HAS_MORE: gl.constexpr):
    if HAS_MORE:
        y += added
    gl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@gluon.jit
def consume(
    given,
    K: gl.constexpr,
    STEPS: gl.constexpr,
    GAINS: gl.constexpr,
    SPLITS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    WARPS: gl.constexpr,
):
    """The products, and what follows them: of one program, or of all that share a tile by its last."""
    (
        norm_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr, inputs, weights, inputs_full,
        weights_full, done, begin, first, num_rows, num_outputs, eps,
    ) = given  # fmt: skip
    HALVES: gl.constexpr = 2 if GATED else 1
    ROWS: gl.constexpr = weights.shape[1]
    COLUMNS: gl.constexpr = weights.shape[2]
    C: gl.constexpr = _layout_of_products(ROWS, WARPS)
    X: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=C, k_width=2)
    gains = inputs  # never read
    if HAS_NORM:
        gains = _kept_gains(norm_ptr, begin, K, GAINS, COLUMNS, WARPS)
    wait_for_input(PDL)
    squares = gl.zeros([BATCH], gl.float32, gl.SliceLayout(1, X))
    sums = gl.zeros([BATCH, ROWS], gl.float32, C)
    up_sums = gl.zeros([BATCH, ROWS], gl.float32, C)
    tile_of_x, squares = _taken(inputs, inputs_full, gains, 0, squares, HAS_NORM, X)
    for step in range(STEPS - 1):
        sums, up_sums = _begin(tile_of_x, weights, weights_full, step, sums, up_sums, GATED)
        next_tile, squares = _taken(inputs, inputs_full, gains, step + 1, squares, HAS_NORM, X)
        sums, up_sums = _finished(sums, up_sums, tile_of_x, GATED)
        tile_of_x = next_tile
        mbarrier.arrive(done.index(step % done.shape[0]), count=1)
    sums, up_sums = _begin(tile_of_x, weights, weights_full, STEPS - 1, sums, up_sums, GATED)

    # Another layout than the products have would cost a program shared memory, which the rings take.
    Y: gl.constexpr = C if SPLITS == 1 else layout_of_rows(ROWS, WARPS)
    rows = gl.arange(0, BATCH, gl.SliceLayout(1, Y))
    outputs = first + gl.arange(0, ROWS, gl.SliceLayout(0, Y))
    at = rows[:, None].to(gl.int64) * num_outputs + outputs[None, :]
    inside = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    if SPLITS == 1:
        added = _added(bias_ptr, residual_ptr, outputs, at, inside, num_outputs, HAS_BIAS, HAS_RESIDUAL)
        sums, up_sums = _finished(sums, up_sums, tile_of_x, GATED)
        squares = gl.convert_layout(squares, gl.SliceLayout(1, C))
        y = _ended(sums, up_sums, squares, eps, K, HAS_NORM, GATED)
        _store(out_ptr, at, y, added, inside, HAS_BIAS or HAS_RESIDUAL)
    else:
        SIZE: gl.constexpr = (HALVES * ROWS + 1) * BATCH  # of what a program leaves
        tile_ptr = parts_ptr + gl.program_id(0).to(gl.int64) * (SPLITS * SIZE)
        sums, up_sums = _finished(sums, up_sums, tile_of_x, GATED)
        _leave(tile_ptr + gl.program_id(1) * SIZE, sums, up_sums, squares, num_rows, HAS_NORM, GATED)
        tl.debug_barrier()  # all threads have stored before one of them says so
        arrived = gl.atomic_add(arrivals_ptr + gl.program_id(0), 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            gl.store(arrivals_ptr + gl.program_id(0), 0)
            added = _added(bias_ptr, residual_ptr, outputs, at, inside, num_outputs, HAS_BIAS, HAS_RESIDUAL)
            left = _places(rows, ROWS, Y)
            y = gathered(tile_ptr, left, inside, SIZE, SPLITS)
            up = y
            if GATED:
                up = gathered(tile_ptr + BATCH * ROWS, left, inside, SIZE, SPLITS)
            of_rows = gl.zeros([BATCH], gl.float32, gl.SliceLayout(1, Y))
            if HAS_NORM:
                of_rows = gathered(tile_ptr + HALVES * BATCH * ROWS, rows, rows < num_rows, SIZE, SPLITS)
            y = _ended(y, up, of_rows, eps, K, HAS_NORM, GATED)
            _store(out_ptr, at, y, added, inside, HAS_BIAS or HAS_RESIDUAL)
