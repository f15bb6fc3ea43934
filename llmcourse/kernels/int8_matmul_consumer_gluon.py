"""What a consumer of `int8_matmul_gluon` does, whose plan stands there: products, and what dequantizes them.

The tensor cores add 32 columns of codes at a time to sums in int32, 64 rows by up to 256 outputs for four
warps. `nth_step` counts steps over all that the program does, and says which slot and which phase of its
barriers.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from llmcourse.kernels.launch import wait_for_input

STEP = gl.constexpr(128)  # columns of codes at a time: rows of 128 bytes
STEP_OF_16 = gl.constexpr(64)  # columns in 16 bits, as many bytes
PIECE = gl.constexpr(64)  # outputs of a result that go to memory at a time


@gluon.jit
def place_of(tile, num_rows, num_outputs, band, HIGH: gl.constexpr, WIDE: gl.constexpr):
    """The first row and the first output of a tile: through a band of rows, output by output."""
    high = (num_rows + HIGH - 1) // HIGH
    wide = (num_outputs + WIDE - 1) // WIDE
    begin = tile // (band * wide) * band
    height = gl.minimum(high - begin, band)
    tile -= begin * wide
    return (begin + tile % height) * HIGH, tile // height * WIDE


@gluon.jit
def extent(count_ptr, num_tiles, SIXTEEN: gl.constexpr, LIMIT: gl.constexpr):
    """Steps of columns in 16 bits, and how many tiles there are to do: none if there are too many columns."""
    steps = 0
    if SIXTEEN:
        count = gl.load(count_ptr)
        steps = (count + STEP_OF_16 - 1) // STEP_OF_16
        num_tiles = gl.where(count <= LIMIT, num_tiles, 0)
    return steps, num_tiles


@gluon.constexpr_function
def _layout_of_sums(wide, columns):
    """Of a group's sums: 16 rows to each warp, at most 128 outputs at a time, since Triton knows no 256."""
    shape = [16, min(wide, 128), columns]
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=shape)


@gluon.jit
def _multiplied(lefts, rights, full, free, nth_step, steps, HIGH: gl.constexpr, ME: gl.constexpr):
    """Σ q Q of all steps of codes, (ROWS, WIDE) in int32."""
    STAGES: gl.constexpr = full.shape[0]
    ROWS: gl.constexpr = lefts.shape[1]
    WIDE: gl.constexpr = rights.shape[1]
    sums = gl.zeros([ROWS, WIDE], gl.int32, _layout_of_sums(WIDE, 32))
    for step in range(steps):
        slot = nth_step % STAGES
        mbarrier.wait(full.index(slot), nth_step // STAGES % 2)
        left = lefts.index(slot * HIGH + (ME if HIGH > 1 else 0))
        sums = warpgroup_mma(left, rights.index(slot).permute((1, 0)), sums, is_async=True)
        sums = warpgroup_mma_wait(1, [sums])  # the step before is done
        mbarrier.arrive(free.index((nth_step + STAGES - 1) % STAGES), count=1, pred=step > 0)
        nth_step += 1
    sums = warpgroup_mma_wait(0, [sums])
    mbarrier.arrive(free.index((nth_step + STAGES - 1) % STAGES), count=1)
    return sums, nth_step


@gluon.jit
def _added_in_16(
    y, lefts, rights, full, free, nth_step, steps, DTYPE: gl.constexpr, HIGH: gl.constexpr, ME: gl.constexpr
):
    """y and the product of the columns in 16 bits, which lie in the slots of codes."""
    STAGES: gl.constexpr = full.shape[0]
    ROWS: gl.constexpr = lefts.shape[1]
    WIDE: gl.constexpr = rights.shape[1]
    BY_16: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    y = gl.convert_layout(y, _layout_of_sums(WIDE, 16))
    for _ in range(steps):
        slot = nth_step % STAGES
        mbarrier.wait(full.index(slot), nth_step // STAGES % 2)
        left = lefts.index(slot * HIGH + (ME if HIGH > 1 else 0))._reinterpret(
            DTYPE, [ROWS, STEP_OF_16], BY_16
        )
        right = rights.index(slot)._reinterpret(DTYPE, [WIDE, STEP_OF_16], BY_16)
        y = warpgroup_mma(left, right.permute((1, 0)), y, is_async=True)
        y = warpgroup_mma_wait(0, [y])
        mbarrier.arrive(free.index(slot), count=1)
        nth_step += 1
    return gl.convert_layout(y, _layout_of_sums(WIDE, 32)), nth_step


@gluon.jit
def _halves(y):
    """The left and the right half of the outputs, which every thread has both of."""
    ROWS: gl.constexpr = y.shape[0]
    HALF: gl.constexpr = y.shape[1] // 2
    left, right = gl.split(gl.permute(gl.reshape(y, [ROWS, 2, HALF]), [0, 2, 1]))
    L: gl.constexpr = _layout_of_sums(HALF, 32)
    return gl.convert_layout(left, L), gl.convert_layout(right, L)


@gluon.jit
def _store(
    out,
    results,
    nth_piece,
    y,
    row,
    output,
    weight_scale_ptr,
    bias_ptr,
    num_outputs,
    HAS_BIAS: gl.constexpr,
    SCALED: gl.constexpr,
    GROUPS: gl.constexpr,
    ME: gl.constexpr,
):
    """Scales a piece of the result, unless that was done, and sends it to memory by way of its buffer."""
    BUFFERS: gl.constexpr = results.shape[0] // GROUPS
    outputs = output + gl.arange(0, PIECE, gl.SliceLayout(0, y.type.layout))
    if not SCALED:
        y = y * gl.load(weight_scale_ptr + outputs, mask=outputs < num_outputs, other=0.0)[None, :]
    if HAS_BIAS:
        bias = gl.load(bias_ptr + outputs, mask=outputs < num_outputs, other=0.0)
        y = y + bias.to(gl.float32)[None, :]
    buffer = results.index(ME * BUFFERS + nth_piece % BUFFERS)
    tma.store_wait(BUFFERS - 1)
    tl.debug_barrier()
    buffer.store(y.to(out.dtype))
    fence_async_shared()
    tl.debug_barrier()
    tma.async_copy_shared_to_global(out, [row, output], buffer)


@gluon.jit
def consume(
    given,
    HAS_BIAS: gl.constexpr,
    SIXTEEN: gl.constexpr,
    KEPT: gl.constexpr,
    LIMIT: gl.constexpr,
    TURNS: gl.constexpr,
    PDL: gl.constexpr,
    ME: gl.constexpr,
):
    """A group's rows of each tile, or each of its tiles where groups take turns."""
    (
        out, scale_ptr, weight_scale_ptr, bias_ptr, count_ptr, lefts, rights, results, full, free, turns,
        num_rows, num_outputs, steps, num_tiles, band,
    ) = given  # fmt: skip
    GROUPS: gl.constexpr = turns.shape[0]
    HIGH: gl.constexpr = 1 if TURNS else GROUPS
    ROWS: gl.constexpr = lefts.shape[1]
    WIDE: gl.constexpr = rights.shape[1]
    SUMS: gl.constexpr = _layout_of_sums(WIDE, 32)
    wait_for_input(PDL)
    steps_of_16, num_tiles = extent(count_ptr, num_tiles, SIXTEEN, LIMIT)
    programs = gl.num_programs(0)
    begin = gl.program_id(0)
    stride = programs
    nth_step = 0
    passed = 0  # steps of other groups' tiles between two of this group's
    if TURNS:
        begin += ME * programs
        stride = GROUPS * programs
        nth_step += ME * (steps + steps_of_16)
        passed += (GROUPS - 1) * (steps + steps_of_16)
    phase = 1 if ME == 0 else 0  # of turns: nobody is before the first
    for tile in range(begin, num_tiles, stride):
        row, output = place_of(tile, num_rows, num_outputs, band, HIGH * ROWS, WIDE)
        if not TURNS:
            row += ME * ROWS
        if TURNS:
            mbarrier.wait(turns.index(ME), phase)
        sums, nth_step = _multiplied(lefts, rights, full, free, nth_step, steps, HIGH, ME)
        if TURNS:
            mbarrier.arrive(turns.index((ME + 1) % GROUPS), count=1)
        rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
        scale = gl.load(scale_ptr + rows, mask=rows < num_rows, other=0.0)
        y = sums.to(gl.float32) * scale[:, None]
        if KEPT:
            outputs = output + gl.arange(0, WIDE, gl.SliceLayout(0, SUMS))
            y = y * gl.load(weight_scale_ptr + outputs, mask=outputs < num_outputs, other=0.0)[None, :]
        if SIXTEEN:
            y, nth_step = _added_in_16(
                y, lefts, rights, full, free, nth_step, steps_of_16, out.dtype, HIGH, ME
            )
        half, other = _halves(y)
        pieces = (half, other)
        if WIDE == 256:
            first, second = _halves(half)
            third, fourth = _halves(other)
            pieces = (first, second, third, fourth)
        for piece in gl.static_range(WIDE // PIECE):
            _store(
                out, results, piece, pieces[piece], row, output + piece * PIECE, weight_scale_ptr, bias_ptr,
                num_outputs, HAS_BIAS, KEPT, GROUPS, ME,
            )  # fmt: skip
        nth_step += passed
        phase = 1 - phase
    tma.store_wait(0)
