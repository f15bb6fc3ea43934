"""What the consumers of `packed_gluon` do, whose plan stands there: products, and what follows them.

They are told what is there by `full` and `inputs_full`, and tell by `done` what may be asked for again.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from llmcourse.kernels.launch import wait_for_input
from llmcourse.kernels.linear_tiles_gluon import gathered, layout_of_outputs, layout_of_rows
from llmcourse.kernels.packed_codes_gluon import (
    BLOCK,
    blocks_of_input,
    flat,
    gains_of_step,
    layout_of_products,
    numbers_of_codes,
    pieces_of_codes,
    repeated,
    weighted,
)
from llmcourse.kernels.packed_end_gluon import ended


@gluon.jit
def _codes(
    codes,
    scale_ring,
    zero_ring,
    nth,
    BLOCKS: gl.constexpr,
    WARPS_K: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    C: gl.constexpr,
):
    """Of a step's tile, with their scales and zero points, in registers."""
    pieces = pieces_of_codes(codes, nth, BLOCKS, WARPS_K)
    scale, zero = pieces, pieces  # where there are none, never read
    if GROUPED:
        scale = scale_ring.index(nth).load(gl.SliceLayout(2, C))
    if HAS_ZEROS:
        zero = zero_ring.index(nth).load(gl.SliceLayout(2, C))
    return pieces, scale, zero


@gluon.jit
def _taken(
    rings,
    step,
    squares,
    BLOCKS: gl.constexpr,
    WARPS_K: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    GATED: gl.constexpr,
    C: gl.constexpr,
):
    """All that a step multiplies, in registers; its squares are added to each row's."""
    codes, inputs, scale_ring, zero_ring, gain_ring, full, inputs_full = rings
    HALVES: gl.constexpr = 2 if GATED else 1
    slot, input_slot = step % full.shape[0], step % inputs_full.shape[0]
    mbarrier.wait(full.index(slot), step // full.shape[0] % 2)
    gate = _codes(codes, scale_ring, zero_ring, slot * HALVES, BLOCKS, WARPS_K, GROUPED, HAS_ZEROS, C)
    up = gate
    if GATED:
        up = _codes(codes, scale_ring, zero_ring, slot * HALVES + 1, BLOCKS, WARPS_K, GROUPED, HAS_ZEROS, C)
    mbarrier.wait(inputs_full.index(input_slot), step // inputs_full.shape[0] % 2)
    of_x = blocks_of_input(inputs, input_slot, BLOCKS, WARPS_K, C)
    gains = of_x  # never read
    if HAS_NORM:
        gains = gains_of_step(gain_ring, slot, BLOCKS, WARPS_K)
        wide = flat(inputs.index(input_slot)).load(squares.type.layout).to(gl.float32)
        squares += wide * wide
    return of_x, gains, gate, up, squares


@gluon.jit
def _added(
    sums,
    of_x,
    codes,
    BLOCKS: gl.constexpr,
    OF_WARPS: gl.constexpr,
    WIDTH: gl.constexpr,
    LARGER: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
):
    """The sums, (blocks, rows, batch), and the products of a step.

    Codes of four bits may be left 136 too large:  Σ q x = Σ (136 + q) x − 136 Σ x,  whose last sum is the
    same for all rows, so that it is made for 16 of a warp, `OF_WARPS` in all, and for both halves once. What
    float32 loses so is a hundredth of what rounding the result loses.
    """
    pieces, scale, zero = codes
    C: gl.constexpr = sums.type.layout
    A: gl.constexpr = gl.DotOperandLayout(0, C, 16)
    ROWS: gl.constexpr = sums.shape[1]
    BATCH: gl.constexpr = sums.shape[2]
    weights = numbers_of_codes(pieces, BLOCKS, WIDTH, LARGER, C)
    if GROUPED:
        less = gl.zeros([BLOCKS, ROWS, BATCH], gl.float32, C)
        if LARGER:
            of_136 = gl.full([BLOCKS, OF_WARPS, BLOCK], -136.0, gl.bfloat16, A)
            less = mma_v2(of_136, of_x, gl.zeros([BLOCKS, OF_WARPS, BATCH], gl.float32, C))
            less = repeated(less, ROWS // OF_WARPS)
        products = mma_v2(weights, of_x, less)
        if HAS_ZEROS:
            ones = gl.full([BLOCKS, ROWS, BLOCK], 1.0, gl.bfloat16, A)
            of_ones = mma_v2(ones, of_x, gl.zeros(sums.shape, gl.float32, C))
            products -= zero.to(gl.float32)[:, :, None] * of_ones
        sums += products * scale.to(gl.float32)[:, :, None]
    else:
        sums = mma_v2(weights, of_x, sums)
    return sums


@gluon.jit
def consume(
    given,
    K: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCKS: gl.constexpr,
    WARPS_K: gl.constexpr,
    SPLITS: gl.constexpr,
    STEPS: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    WARPS: gl.constexpr,
):
    """The products, and what follows them: of one program, or of all that share a tile by its last."""
    (
        scales_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr, codes, inputs, scale_ring,
        zero_ring, gain_ring, full, inputs_full, done, first, num_rows, num_outputs, eps,
    ) = given  # fmt: skip
    HALVES: gl.constexpr = 2 if GATED else 1
    ROWS: gl.constexpr = codes.shape[2]
    BATCH: gl.constexpr = inputs.shape[2]
    OF_WARPS: gl.constexpr = 16 * WARPS // WARPS_K
    LARGER: gl.constexpr = WIDTH == 4 and GROUPED and HALVES * ROWS >= 2 * OF_WARPS and BATCH == 8
    C: gl.constexpr = layout_of_products(WARPS_K, WARPS)
    rings = (codes, inputs, scale_ring, zero_ring, gain_ring, full, inputs_full)
    sums = gl.zeros([BLOCKS, ROWS, BATCH], gl.float32, C)
    up_sums = gl.zeros([BLOCKS, ROWS, BATCH], gl.float32, C)
    squares = gl.zeros([2 * BLOCKS * BATCH, 64], gl.float32, layout_of_rows(64, WARPS))
    wait_for_input(PDL)  # before anything is written
    for step in range(STEPS):
        of_x, gains, gate, up, squares = _taken(
            rings, step, squares, BLOCKS, WARPS_K, GROUPED, HAS_ZEROS, HAS_NORM, GATED, C
        )  # fmt: skip
        if HAS_NORM:
            of_x = weighted(of_x, gains)
        sums = _added(sums, of_x, gate, BLOCKS, OF_WARPS, WIDTH, LARGER, GROUPED, HAS_ZEROS)
        if GATED:
            up_sums = _added(up_sums, of_x, up, BLOCKS, OF_WARPS, WIDTH, LARGER, GROUPED, HAS_ZEROS)
        mbarrier.arrive(done.index(step % done.shape[0]), count=1)

    Y: gl.constexpr = layout_of_outputs(ROWS, WARPS)
    Z: gl.constexpr = gl.SliceLayout(0, Y)
    y = gl.convert_layout(gl.sum(sums, axis=0), Y)
    up = y
    if GATED:
        up = gl.convert_layout(gl.sum(up_sums, axis=0), Y)
    of_rows = gl.zeros([BATCH], gl.float32, Z)
    if HAS_NORM:
        of_parts = gl.reshape(gl.sum(squares, axis=1), [2 * BLOCKS, BATCH])
        of_rows = gl.convert_layout(gl.sum(of_parts, axis=0), Z)
    if SPLITS == 1:
        ended(
            y, up, of_rows, scales_ptr, bias_ptr, residual_ptr, out_ptr, first, num_rows, num_outputs, eps,
            K, GROUPED, HAS_NORM, HAS_BIAS, HAS_RESIDUAL, GATED,
        )  # fmt: skip
    else:
        SIZE: gl.constexpr = (HALVES * ROWS + 1) * BATCH  # of what a program leaves
        tile_ptr = parts_ptr + gl.program_id(0).to(gl.int64) * (SPLITS * SIZE)
        part_ptr = tile_ptr + gl.program_id(1) * SIZE
        row = gl.arange(0, ROWS, gl.SliceLayout(1, Y))
        nth_row = gl.arange(0, BATCH, Z)
        left = nth_row[None, :] * ROWS + row[:, None]
        there = (nth_row < num_rows)[None, :] & (row < ROWS)[:, None]
        gl.store(part_ptr + left, y, mask=there)
        if GATED:
            gl.store(part_ptr + ROWS * BATCH + left, up, mask=there)
        if HAS_NORM:
            gl.store(part_ptr + HALVES * ROWS * BATCH + nth_row, of_rows, mask=nth_row < num_rows)
        tl.debug_barrier()  # all threads have stored before one of them says so
        arrived = gl.atomic_add(arrivals_ptr + gl.program_id(0), 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            gl.store(arrivals_ptr + gl.program_id(0), 0)
            y = gathered(tile_ptr, left, there, SIZE, SPLITS)
            up = y
            if GATED:
                up = gathered(tile_ptr + ROWS * BATCH, left, there, SIZE, SPLITS)
            of_rows = gl.zeros([BATCH], gl.float32, Z)
            if HAS_NORM:
                at_rows = tile_ptr + HALVES * ROWS * BATCH
                of_rows = gathered(at_rows, nth_row, nth_row < num_rows, SIZE, SPLITS)
            ended(
                y, up, of_rows, scales_ptr, bias_ptr, residual_ptr, out_ptr, first, num_rows, num_outputs,
                eps, K, GROUPED, HAS_NORM, HAS_BIAS, HAS_RESIDUAL, GATED,
            )  # fmt: skip
