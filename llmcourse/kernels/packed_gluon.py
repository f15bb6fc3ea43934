"""Up to 64 rows of input times a matrix in packed codes, on Hopper: what decoding in few bits spends time on.

The bytes of a matrix in four bits are a quarter, and so is the time in which its codes must become numbers.
So tiles of codes come through a ring in shared memory, asked for before the kernel waits for x, as in
`linear_rows_gluon`; a thread takes its codes in pieces of 16 bytes, and they become pairs of bfloat16 in the
registers from which the tensor cores take them (`packed_codes_gluon`). Sums of a group of 128 columns are
multiplied by its scale, so that codes are multiplied as they are, exactly.

With one row of input a program has few rows of weights, or there would be too few programs; its warps share
the columns then. A tile is (blocks, rows, 128): the tensor cores multiply each block of 128 columns by its
own block of x, as a batch of products, and blocks are what warps share. Where rows of input are many, x would
be read too often by programs of few rows: then programs share the columns, and the last to arrive adds up
what all have left, as in `linear_split_gluon`.
(PTX ISA, `cp.async.bulk.tensor` and `mma`; Frantar et al. 2024, Marlin, section 3.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels import swiglu_triton
from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_tiles_gluon import gathered, layout_of_outputs, layout_of_rows
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.packed_codes_gluon import (
    BLOCK,
    blocks_of_input,
    flat,
    layout_of_products,
    numbers_of_codes,
    places_of_gains,
    weighted,
)
from llmcourse.kernels.packed_end_gluon import ended
from llmcourse.kernels.packed_tiles import MOST_FUSED_ROWS, PackedRing
from llmcourse.kernels.rms_norm import rms_norm
from llmcourse.kernels.tiles import ring_rows

if TYPE_CHECKING:
    from llmcourse.kernels.packed_linear import PackedLinear


@gluon.jit
def _ask_for_codes(
    words,
    scales,
    zeros,
    ring,
    scale_ring,
    zero_ring,
    full,
    step,
    first,
    up_first,
    begin,
    BLOCKS: gl.constexpr,
    STEPS: gl.constexpr,
    HALVES: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
):
    """Codes, scales and zero points of a step, to their slot in the ring; none beyond the last step."""
    slot = step % full.shape[0]
    there = step < STEPS
    held: gl.constexpr = (
        words.block_type.nbytes
        + (scales.block_type.nbytes if GROUPED else 0)
        + (zeros.block_type.nbytes if HAS_ZEROS else 0)
    )
    mbarrier.expect(full.index(slot), HALVES * held, pred=there)
    block = begin + step * BLOCKS
    for half in gl.static_range(HALVES):
        row = up_first if half else first
        nth = slot * HALVES + half
        tma.async_copy_global_to_shared(words, [block, row, 0], full.index(slot), ring.index(nth), there)
        if GROUPED:
            tma.async_copy_global_to_shared(
                scales, [block, row], full.index(slot), scale_ring.index(nth), there
            )
        if HAS_ZEROS:
            tma.async_copy_global_to_shared(
                zeros, [block, row], full.index(slot), zero_ring.index(nth), there
            )


@gluon.jit
def _ask_for_input(x, ring, full, step, begin, BLOCKS: gl.constexpr, STEPS: gl.constexpr):
    slot = step % full.shape[0]
    there = step < STEPS
    mbarrier.expect(full.index(slot), x.block_type.nbytes, pred=there)
    at = [(begin + step * BLOCKS) * 2, 0, 0]
    tma.async_copy_global_to_shared(x, at, full.index(slot), ring.index(slot), there)


@gluon.jit
def _added(
    sums,
    codes,
    x,
    scale_ring,
    zero_ring,
    nth,
    ones,
    BLOCKS: gl.constexpr,
    WARPS_K: gl.constexpr,
    WIDTH: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
):
    """The sums, (blocks, rows, batch), and the products of a step."""
    C: gl.constexpr = sums.type.layout
    weights = numbers_of_codes(codes, nth, BLOCKS, WARPS_K, WIDTH, C)
    if GROUPED:
        products = mma_v2(weights, x, gl.zeros(sums.shape, gl.float32, C))
        if HAS_ZEROS:
            zero = zero_ring.index(nth).load(gl.SliceLayout(2, C)).to(gl.float32)
            products -= zero[:, :, None] * mma_v2(ones, x, gl.zeros(sums.shape, gl.float32, C))
        scale = scale_ring.index(nth).load(gl.SliceLayout(2, C)).to(gl.float32)
        sums += products * scale[:, :, None]
    else:
        sums = mma_v2(weights, x, sums)
    return sums


@gluon.jit(do_not_specialize=["num_rows"])
def _packed_ring_kernel(
    x,
    norm_ptr,
    words,
    scales,
    zeros,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    parts_ptr,
    arrivals_ptr,
    num_rows,
    num_outputs,
    eps,
    K: gl.constexpr,
    WIDTH: gl.constexpr,
    BATCH: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCKS: gl.constexpr,
    WARPS_K: gl.constexpr,
    STAGES: gl.constexpr,
    INPUT_STAGES: gl.constexpr,
    SPLITS: gl.constexpr,
    STEPS: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
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
    begin = gl.program_id(1) * (STEPS * BLOCKS)
    codes = gl.allocate_shared_memory(
        words.dtype, [STAGES * HALVES, BLOCKS, ROWS, words.block_type.shape[2]], words.layout
    )
    inputs = gl.allocate_shared_memory(x.dtype, [INPUT_STAGES, 2 * BLOCKS, BATCH, 64], x.layout)
    scale_ring, zero_ring = codes, codes  # where there are none, never read
    if GROUPED:
        scale_ring = gl.allocate_shared_memory(scales.dtype, [STAGES * HALVES, BLOCKS, ROWS], scales.layout)
    if HAS_ZEROS:
        zero_ring = gl.allocate_shared_memory(zeros.dtype, [STAGES * HALVES, BLOCKS, ROWS], zeros.layout)
    full, inputs_full = barriers(STAGES), barriers(INPUT_STAGES)
    for nth in gl.static_range(STAGES):
        mbarrier.init(full.index(nth), count=1)
    for nth in gl.static_range(INPUT_STAGES):
        mbarrier.init(inputs_full.index(nth), count=1)
    for nth in gl.static_range(STAGES):
        _ask_for_codes(
            words, scales, zeros, codes, scale_ring, zero_ring, full, nth, first, up_first, begin,
            BLOCKS, STEPS, HALVES, GROUPED, HAS_ZEROS,
        )  # fmt: skip
    start_next(PDL)

    C: gl.constexpr = layout_of_products(WARPS_K, num_warps)
    X: gl.constexpr = layout_of_rows(64, num_warps)
    sums = gl.zeros([BLOCKS, ROWS, BATCH], gl.float32, C)
    up_sums = gl.zeros([BLOCKS, ROWS, BATCH], gl.float32, C)
    squares = gl.zeros([2 * BLOCKS * BATCH, 64], gl.float32, X)
    ones = gl.full([BLOCKS, ROWS, 128], 1.0, gl.bfloat16, gl.DotOperandLayout(0, C, 16))
    if HAS_NORM:
        columns = begin * BLOCK + places_of_gains(BLOCKS, WARPS_K)
        coming = gl.load(norm_ptr + columns, mask=columns < K, other=0.0)
    wait_for_input(PDL)
    for nth in gl.static_range(INPUT_STAGES):
        _ask_for_input(x, inputs, inputs_full, nth, begin, BLOCKS, STEPS)

    for step in range(STEPS):
        slot, input_slot = step % STAGES, step % INPUT_STAGES
        mbarrier.wait(inputs_full.index(input_slot), step // INPUT_STAGES % 2)
        of_x = blocks_of_input(inputs, input_slot, BLOCKS, WARPS_K, C)
        if HAS_NORM:
            gain = coming
            at = columns + (step + 1) * (BLOCKS * BLOCK)
            coming = gl.load(norm_ptr + at, mask=at < K, other=0.0)
            wide = flat(inputs.index(input_slot)).load(X).to(gl.float32)
            squares += wide * wide
            of_x = weighted(of_x, gain)
        mbarrier.wait(full.index(slot), step // STAGES % 2)
        sums = _added(
            sums, codes, of_x, scale_ring, zero_ring, slot * HALVES, ones,
            BLOCKS, WARPS_K, WIDTH, GROUPED, HAS_ZEROS,
        )  # fmt: skip
        if GATED:
            up_sums = _added(
                up_sums, codes, of_x, scale_ring, zero_ring, slot * HALVES + 1, ones,
                BLOCKS, WARPS_K, WIDTH, GROUPED, HAS_ZEROS,
            )  # fmt: skip
        tl.debug_barrier()  # all are done with the step, whose slots are free
        _ask_for_codes(
            words, scales, zeros, codes, scale_ring, zero_ring, full, step + STAGES, first, up_first, begin,
            BLOCKS, STEPS, HALVES, GROUPED, HAS_ZEROS,
        )  # fmt: skip
        _ask_for_input(x, inputs, inputs_full, step + INPUT_STAGES, begin, BLOCKS, STEPS)

    Y: gl.constexpr = layout_of_outputs(ROWS, num_warps)
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
            y, up, of_rows, scales_ptr, zeros_ptr, bias_ptr, residual_ptr, out_ptr, first, num_rows,
            num_outputs, eps, K, GROUPED, HAS_NORM, HAS_BIAS, HAS_RESIDUAL, GATED,
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
                y, up, of_rows, scales_ptr, zeros_ptr, bias_ptr, residual_ptr, out_ptr, first, num_rows,
                num_outputs, eps, K, GROUPED, HAS_NORM, HAS_BIAS, HAS_RESIDUAL, GATED,
            )  # fmt: skip


def launch(
    layer: PackedLinear,
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor,
    ring: PackedRing,
    pdl: bool,
) -> None:
    num_rows, num_outputs = out.shape
    if num_rows > MOST_FUSED_ROWS:
        # Every program weights all of x, and holds two sums for each: with many rows, that takes longer than
        # a kernel more, and more registers than there are.
        if norm is not None:
            x, norm = rms_norm(x, norm, eps, backend="triton", pdl=pdl), None
        if gated:
            both = x.new_empty(num_rows, 2 * num_outputs)
            launch(layer, x, None, eps, None, None, False, both, ring, pdl)
            swiglu_triton.launch(both, out, pdl)
            if residual is not None:
                out += residual
            return
    batch, steps = ring_rows(num_rows), ring.steps(x.shape[1])
    words = layer.words.view(torch.int16)
    pieces = 8 * layer.width  # of 16 bits, in a block of a row
    grouped, zeros = layer.scales.shape[0] > 1, layer.zeros
    parts, arrivals = out, out  # never read
    if ring.splits > 1:
        memory = layer.memory_of(ring.needs(num_rows, num_outputs, gated))
        parts, arrivals = memory.parts, memory.arrivals
    has = switches(norm, bias, residual, gated)
    descriptor = _tiles(_by_blocks(x, 64), 2 * ring.blocks, batch, 64)
    _, norm, _, bias, residual, out = pointers(x, norm, words, bias, residual, out)
    _packed_ring_kernel[(triton.cdiv(num_outputs, ring.rows), ring.splits)](
        descriptor,
        norm,
        _tiles(_by_blocks(words, pieces), ring.blocks, ring.rows, pieces),
        _tiles(layer.scales, ring.blocks, ring.rows) if grouped else layer.scales,
        layer.scales if zeros is None else _tiles(zeros, ring.blocks, ring.rows),
        layer.scales,
        layer.scales if zeros is None else zeros,
        bias,
        residual,
        out,
        parts,
        arrivals,
        num_rows,
        num_outputs,
        eps,
        K=x.shape[1],
        WIDTH=layer.width,
        BATCH=batch,
        ROWS=ring.rows,
        BLOCKS=ring.blocks,
        WARPS_K=ring.warps_k,
        STAGES=min(ring.stages, steps),
        INPUT_STAGES=min(ring.input_stages, steps),
        SPLITS=ring.splits,
        STEPS=steps,
        GROUPED=grouped,
        HAS_ZEROS=zeros is not None,
        **has,
        num_warps=ring.warps,
        **options(pdl),
    )


def _by_blocks(matrix: Tensor, columns: int) -> Tensor:
    """(rows, K) as (blocks, rows, columns of a block): one copy brings several blocks, each by itself."""
    return matrix.unflatten(1, (-1, columns)).transpose(0, 1)


def _tiles(tensor: Tensor, *shape: int) -> TensorDescriptor:
    """For copies of such tiles; beyond the last number of any dimension, zeros are read.

    Rows of 64 or 128 bytes are swizzled, so that threads find eight of them in different banks.
    """
    wide = shape[-1] * tensor.element_size()
    layout = gl.NVMMASharedLayout(wide if len(shape) == 3 else 0, 8 * tensor.element_size(), len(shape))
    return TensorDescriptor.from_tensor(tensor, list(shape), layout)
