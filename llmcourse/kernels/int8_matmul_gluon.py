"""The kernel of `int8_matmul` for many rows on Hopper: tensor cores multiply while tiles come and results go.

What is computed is what `int8_matmul_triton` computes, which is to be read first; `flash_tiles_gluon` says
what producers, consumers, slots and barriers are. There are as many programs as multiprocessors, and each
takes one tile of the result after the other. In a program

    the producer        (`_produce`, one warp) asks for 128 columns of codes at a time, of the tile's rows and
                        of its outputs, as far ahead as there are slots
    the consumers       (`consume` in `int8_matmul_consumer_gluon`, groups of four warps) multiply them, one
                        group below the other; sums never leave their registers

    full, free          a slot: the codes of a step, of all groups' rows and of the outputs
    turns[g]            where groups take turns, each has tiles of its own, and it is the turn of g to
                        multiply, while others dequantize and store

Arithmetic, for an H200: a tile of 128 rows by 256 outputs reads 48 kB for each 128 columns, in the 512 clock
cycles that its products take, at best. That is 12 TB/s for all multiprocessors at once, more than the L2
cache has: tiles are as large as the registers, and close programs read the same rows or outputs together.

Columns in 16 bits are gathered before, (T, C) and (N, C), so that 64 of them are one more step, of as many
bytes as 128 codes: the sums are made floats by then, and the tensor cores add to these. Where there are more
than C, which only the device knows, this kernel computes nothing, and the one in Triton computes all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels import int8_matmul_triton
from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.int8_matmul import InSixteenBits
from llmcourse.kernels.int8_matmul_consumer_gluon import (
    PIECE,
    STEP,
    STEP_OF_16,
    consume,
    extent,
    place_of,
)
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile
from llmcourse.kernels.launch import options, start_next, wait_for_input

REGISTERS = {2: (240, 24), 3: (160, 32)}  # of a consumer's thread and a producer's; 64 Ki in all
GATHERED_ROWS = 32  # for one program
BEYOND = Int8Tile(128, 64, 128, 4, 4)  # of the kernel that takes what is too much for this one


@gluon.jit
def _fill(left, right, lefts, rights, full, free, nth_step, row, output, column):
    """Asks for the codes of a step into its slot, or for 16-bit numbers of as many bytes, when it is free."""
    STAGES: gl.constexpr = full.shape[0]
    HIGH: gl.constexpr = lefts.shape[0] // STAGES
    ROWS: gl.constexpr = left.block_type.shape[0]
    slot = nth_step % STAGES
    mbarrier.wait(free.index(slot), (nth_step // STAGES + 1) % 2)
    mbarrier.expect(full.index(slot), left.block_type.nbytes * HIGH + right.block_type.nbytes)
    for high in gl.static_range(HIGH):
        tile = lefts.index(slot * HIGH + high)._reinterpret(left.dtype, left.block_type.shape, left.layout)
        tma.async_copy_global_to_shared(left, [row + ROWS * high, column], full.index(slot), tile)
    tile = rights.index(slot)._reinterpret(right.dtype, right.block_type.shape, right.layout)
    tma.async_copy_global_to_shared(right, [output, column], full.index(slot), tile)


@gluon.jit
def _produce(given, SIXTEEN: gl.constexpr, LIMIT: gl.constexpr, PDL: gl.constexpr):
    """Asks for all that the consumers read."""
    (
        codes, weight, x, w, lefts, rights, full, free, count_ptr, num_rows, num_outputs, steps, num_tiles,
        band,
    ) = given  # fmt: skip
    HIGH: gl.constexpr = lefts.shape[0] // full.shape[0] * lefts.shape[1]
    WIDE: gl.constexpr = rights.shape[1]
    wait_for_input(PDL)
    steps_of_16, num_tiles = extent(count_ptr, num_tiles, SIXTEEN, LIMIT)
    nth_step = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        row, output = place_of(tile, num_rows, num_outputs, band, HIGH, WIDE)
        for step in range(steps):
            _fill(codes, weight, lefts, rights, full, free, nth_step, row, output, step * STEP)
            nth_step += 1
        if SIXTEEN:
            for step in range(steps_of_16):
                _fill(x, w, lefts, rights, full, free, nth_step, row, output, step * STEP_OF_16)
                nth_step += 1


@gluon.jit(do_not_specialize=["num_rows", "steps", "num_tiles", "band"])
def _wide_int8_matmul_kernel(
    codes,
    weight,
    x,
    w,
    out,
    scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    count_ptr,
    num_rows,
    num_outputs,
    steps,
    num_tiles,
    band,
    GROUPS: gl.constexpr,
    TURNS: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    SIXTEEN: gl.constexpr,
    KEPT: gl.constexpr,
    LIMIT: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PDL: gl.constexpr,
):
    start_next(PDL)
    ROWS: gl.constexpr = codes.block_type.shape[0]
    WIDE: gl.constexpr = weight.block_type.shape[0]
    HIGH: gl.constexpr = 1 if TURNS else GROUPS
    lefts = gl.allocate_shared_memory(gl.int8, [STAGES * HIGH, ROWS, STEP], codes.layout)
    rights = gl.allocate_shared_memory(gl.int8, [STAGES, WIDE, STEP], weight.layout)
    results = gl.allocate_shared_memory(out.dtype, [GROUPS * BUFFERS, ROWS, PIECE], out.layout)
    full, free, turns = barriers(STAGES), barriers(STAGES), barriers(GROUPS)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(free.index(slot), count=HIGH)
    for group in gl.static_range(GROUPS):
        mbarrier.init(turns.index(group), count=1)
    fence_async_shared()
    for_consumers = (
        out, scale_ptr, weight_scale_ptr, bias_ptr, count_ptr, lefts, rights, results, full, free, turns,
        num_rows, num_outputs, steps, num_tiles, band,
    )  # fmt: skip
    for_producer = (
        codes, weight, x, w, lefts, rights, full, free, count_ptr, num_rows, num_outputs, steps, num_tiles,
        band,
    )  # fmt: skip
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (consume, (for_consumers, HAS_BIAS, SIXTEEN, KEPT, LIMIT, TURNS, PDL, 0)),
                (consume, (for_consumers, HAS_BIAS, SIXTEEN, KEPT, LIMIT, TURNS, PDL, 1)),
                (_produce, (for_producer, SIXTEEN, LIMIT, PDL)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (for_consumers, HAS_BIAS, SIXTEEN, KEPT, LIMIT, TURNS, PDL, 0)),
                (consume, (for_consumers, HAS_BIAS, SIXTEEN, KEPT, LIMIT, TURNS, PDL, 1)),
                (consume, (for_consumers, HAS_BIAS, SIXTEEN, KEPT, LIMIT, TURNS, PDL, 2)),
                (_produce, (for_producer, SIXTEEN, LIMIT, PDL)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )


@triton.jit(do_not_specialize=["num_rows", "num_outputs", "num_kept"])
def _gather_columns_kernel(
    x_ptr,
    weight_ptr,
    columns_ptr,
    count_ptr,
    x_out_ptr,
    weight_out_ptr,
    num_rows,
    num_outputs,
    num_kept,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEPT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Columns of x, and of the codes or the weights that were kept, side by side; zeros behind the last."""
    start_next(PDL)
    block = tl.program_id(0)
    place = tl.arange(0, WIDTH)
    wait_for_input(PDL)
    there = place < tl.load(count_ptr)
    column = tl.load(columns_ptr + place, mask=there & (place < K), other=0)
    of_x = tl.cdiv(num_rows, ROWS)
    if block < of_x:
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < num_rows)[:, None]
        found = tl.load(x_ptr + row[:, None] * K + column[None, :], mask=inside & there[None, :], other=0.0)
        tl.store(x_out_ptr + row[:, None] * WIDTH + place[None, :], found, mask=inside)
    else:
        row = ((block - of_x) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < num_outputs)[:, None]
        if KEPT:
            at = weight_ptr + row[:, None] * num_kept + place[None, :]
            there = there & (place < num_kept)
        else:
            at = weight_ptr + row[:, None] * K + column[None, :]
        weight = tl.load(at, mask=inside & there[None, :], other=0)
        to = weight_out_ptr + row[:, None] * WIDTH + place[None, :]
        tl.store(to, weight.to(weight_out_ptr.dtype.element_ty), mask=inside)


def launch(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    sixteen: InSixteenBits | None,
    out: Tensor,
    tile: WideTile,
    pdl: bool,
) -> None:
    num_rows, num_outputs = out.shape
    if out.numel() == 0:
        return
    x, w, count = codes, weight, scale  # never read
    if sixteen is not None:
        x, w, count = *_gathered(weight, sixteen, tile.outliers, pdl), sixteen.outliers.count
    groups = 1 if tile.turns else tile.groups
    tiles = triton.cdiv(num_rows, tile.rows * groups) * triton.cdiv(num_outputs, tile.outputs)
    step_of_16 = STEP_OF_16.value if sixteen is not None else STEP.value
    of_consumer, of_producer = REGISTERS[tile.groups]
    _wide_int8_matmul_kernel[(min(_processors(out), tiles),)](
        _tiles_of(codes, tile.rows, STEP.value),
        _tiles_of(weight, tile.outputs, STEP.value),
        _tiles_of(x, tile.rows, step_of_16),
        _tiles_of(w, tile.outputs, step_of_16),
        _tiles_of(out, tile.rows, PIECE.value),
        scale,
        weight_scale,
        out if bias is None else bias,
        count,
        num_rows,
        num_outputs,
        triton.cdiv(codes.shape[1], STEP.value),
        tiles,
        tile.band,
        GROUPS=tile.groups,
        TURNS=tile.turns,
        STAGES=tile.stages,
        BUFFERS=tile.buffers,
        HAS_BIAS=bias is not None,
        SIXTEEN=sixteen is not None,
        KEPT=sixteen is not None and sixteen.kept is not None,
        LIMIT=tile.outliers,
        CONSUMER_REGISTERS=of_consumer,
        PRODUCER_REGISTERS=of_producer,
        num_warps=4,
        **options(pdl),
    )
    if sixteen is not None:
        least = tile.outliers + 1
        arguments = (codes, scale, weight, weight_scale, bias, sixteen, out, BEYOND, pdl, least)
        int8_matmul_triton.launch(*arguments)


def _gathered(weight: Tensor, sixteen: InSixteenBits, width: int, pdl: bool) -> tuple[Tensor, Tensor]:
    """(T, C) of x and (N, C) of the weights, as many columns as there are, the first C if there are more."""
    (num_rows, size), kept = sixteen.x.shape, sixteen.kept
    x, w = sixteen.x.new_empty(num_rows, width), sixteen.x.new_empty(len(weight), width)
    blocks = triton.cdiv(num_rows, GATHERED_ROWS) + triton.cdiv(len(weight), GATHERED_ROWS)
    _gather_columns_kernel[(blocks,)](
        sixteen.x,
        weight if kept is None else kept,
        sixteen.outliers.columns,
        sixteen.outliers.count,
        x,
        w,
        num_rows,
        len(weight),
        0 if kept is None else kept.shape[1],
        K=size,
        WIDTH=width,
        ROWS=GATHERED_ROWS,
        KEPT=kept is not None,
        num_warps=4,
        **options(pdl),
    )
    return x, w


def _tiles_of(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """For copies of so many rows and columns; beyond the last, zeros are read and nothing is written."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8 * x.element_size(), rank=2)
    return TensorDescriptor.from_tensor(x, [rows, columns], layout)


def _processors(like: Tensor) -> int:
    """Programs that run at once: each takes most of a multiprocessor's shared memory."""
    return torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 132
