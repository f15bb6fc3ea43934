"""Up to 64 rows of input times a matrix in packed codes, on Hopper: what decoding in few bits spends time on.

The bytes of a matrix in four bits are a quarter, and so is the time in which its codes must become numbers.
So tiles of codes come through a ring in shared memory, asked for before the kernel waits for x, by a warp of
its own (see `flash_tiles_gluon`): those that multiply do nothing else (`packed_consumer_gluon`). A thread
takes its codes in pieces of 16 bytes, and they become pairs of bfloat16 in the registers from which the
tensor cores take them (`packed_codes_gluon`). Sums of a group of 128 columns are multiplied by its scale, so
that codes are multiplied as they are, exactly.

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
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels import swiglu_triton
from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.packed_consumer_gluon import consume
from llmcourse.kernels.packed_tiles import MOST_FUSED_ROWS, PRODUCER_REGISTERS, PackedRing
from llmcourse.kernels.rms_norm import rms_norm
from llmcourse.kernels.tiles import ring_rows

if TYPE_CHECKING:
    from llmcourse.kernels.packed_linear import PackedLinear

OF_PRODUCER = gl.constexpr(PRODUCER_REGISTERS)


@gluon.jit
def _ask_for_codes(
    words,
    scales,
    zeros,
    gains,
    ring,
    scale_ring,
    zero_ring,
    gain_ring,
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
    HAS_NORM: gl.constexpr,
):
    """Codes, scales, zero points and gains of a step, to their slot in the ring; none beyond the last step.

    Gains are of the norm before: they are there before x is, and cost a consumer no way to the cache.
    """
    slot = step % full.shape[0]
    there = step < STEPS
    held: gl.constexpr = (
        words.block_type.nbytes
        + (scales.block_type.nbytes if GROUPED else 0)
        + (zeros.block_type.nbytes if HAS_ZEROS else 0)
    )
    of_gains: gl.constexpr = gains.block_type.nbytes if HAS_NORM else 0
    mbarrier.expect(full.index(slot), HALVES * held + of_gains, pred=there)
    block = begin + step * BLOCKS
    if HAS_NORM:
        tma.async_copy_global_to_shared(gains, [block * 2, 0], full.index(slot), gain_ring.index(slot), there)
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
def _produce(
    given,
    BLOCKS: gl.constexpr,
    STEPS: gl.constexpr,
    HALVES: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_ZEROS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    PDL: gl.constexpr,
):
    """One warp asks for all tiles: the first codes before there is an x, then as steps are done."""
    (
        x, words, scales, zeros, gains, codes, inputs, scale_ring, zero_ring, gain_ring, full, inputs_full,
        done, first, up_first, begin,
    ) = given  # fmt: skip
    STAGES: gl.constexpr = full.shape[0]
    INPUT_STAGES: gl.constexpr = inputs_full.shape[0]
    for step in range(STAGES):
        _ask_for_codes(
            words, scales, zeros, gains, codes, scale_ring, zero_ring, gain_ring, full, step, first, up_first,
            begin, BLOCKS, STEPS, HALVES, GROUPED, HAS_ZEROS, HAS_NORM,
        )  # fmt: skip
    wait_for_input(PDL)
    for step in range(INPUT_STAGES):
        _ask_for_input(x, inputs, inputs_full, step, begin, BLOCKS, STEPS)
    for step in range(STEPS - min(STAGES, INPUT_STAGES)):
        mbarrier.wait(done.index(step % done.shape[0]), step // done.shape[0] % 2)
        _ask_for_input(x, inputs, inputs_full, step + INPUT_STAGES, begin, BLOCKS, STEPS)
        _ask_for_codes(
            words, scales, zeros, gains, codes, scale_ring, zero_ring, gain_ring, full, step + STAGES, first,
            up_first, begin, BLOCKS, STEPS, HALVES, GROUPED, HAS_ZEROS, HAS_NORM,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["num_rows"])
def _packed_ring_kernel(
    x,
    gains,
    words,
    scales,
    zeros,
    scales_ptr,
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
    start_next(PDL)
    first = gl.program_id(0) * ROWS
    begin = gl.program_id(1) * (STEPS * BLOCKS)
    codes = gl.allocate_shared_memory(
        words.dtype, [STAGES * HALVES, BLOCKS, ROWS, words.block_type.shape[2]], words.layout
    )
    inputs = gl.allocate_shared_memory(x.dtype, [INPUT_STAGES, 2 * BLOCKS, BATCH, 64], x.layout)
    scale_ring, zero_ring, gain_ring = codes, codes, codes  # where there are none, never read
    if GROUPED:
        scale_ring = gl.allocate_shared_memory(scales.dtype, [STAGES * HALVES, BLOCKS, ROWS], scales.layout)
    if HAS_ZEROS:
        zero_ring = gl.allocate_shared_memory(zeros.dtype, [STAGES * HALVES, BLOCKS, ROWS], zeros.layout)
    if HAS_NORM:
        gain_ring = gl.allocate_shared_memory(gains.dtype, [STAGES, 2 * BLOCKS, 64], gains.layout)
    full, inputs_full, done = barriers(STAGES), barriers(INPUT_STAGES), barriers(max(STAGES, INPUT_STAGES))
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
    for slot in gl.static_range(INPUT_STAGES):
        mbarrier.init(inputs_full.index(slot), count=1)
    for slot in gl.static_range(max(STAGES, INPUT_STAGES)):
        mbarrier.init(done.index(slot), count=1)
    fence_async_shared()
    for_consumer = (
        scales_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr, codes, inputs, scale_ring,
        zero_ring, gain_ring, full, inputs_full, done, first, num_rows, num_outputs, eps,
    )  # fmt: skip
    for_producer = (
        x, words, scales, zeros, gains, codes, inputs, scale_ring, zero_ring, gain_ring, full, inputs_full,
        done, first, first + num_outputs, begin,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (
                consume,
                (
                    for_consumer, K, WIDTH, BLOCKS, WARPS_K, SPLITS, STEPS, GROUPED, HAS_ZEROS, HAS_NORM,
                    HAS_BIAS, HAS_RESIDUAL, GATED, PDL, num_warps,
                ),
            ),
            (_produce, (for_producer, BLOCKS, STEPS, HALVES, GROUPED, HAS_ZEROS, HAS_NORM, PDL)),
        ],
        [1],
        [OF_PRODUCER],
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
    gains = descriptor
    if norm is not None:
        placed = _aligned(norm)
        pdl = pdl and placed is norm  # gains are read before the wait: no copy of them may be under way
        gains = _tiles(placed.view(-1, 64), 2 * ring.blocks, 64)
    _, _, _, bias, residual, out = pointers(x, norm, words, bias, residual, out)
    _packed_ring_kernel[(triton.cdiv(num_outputs, ring.rows), ring.splits)](
        descriptor,
        gains,
        _tiles(_by_blocks(words, pieces), ring.blocks, ring.rows, pieces),
        _tiles(layer.scales, ring.blocks, ring.rows) if grouped else layer.scales,
        layer.scales if zeros is None else _tiles(zeros, ring.blocks, ring.rows),
        layer.scales,
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
        maxnreg=ring.registers(num_rows, layer.width, gated, zeros is not None),
        **options(pdl),
    )


def _aligned(vector: Tensor) -> Tensor:
    """The same numbers where a copy can begin."""
    return vector.clone() if not vector.is_meta and vector.data_ptr() % 16 else vector


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
