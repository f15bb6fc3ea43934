"""Some dozens of rows of input times a matrix, on Hopper: what verifying a tree of drafts spends time on.

As in `linear_rows_gluon` tiles of weights come through a ring in shared memory, asked for before the kernel
waits for x. But here x is no longer small beside them: a program of R rows of weights reads 64 rows of x from
the L2 cache for every R of the matrix from memory. So a program takes 64 rows or 128; and where that leaves
multiprocessors without work, programs share the columns:

    y = Σₛ x[:, Kₛ] · W[:, Kₛ]ᵀ        s = 1 … splits

Each leaves its sums in memory, the last to arrive adds them up, always in the order of s, and does what
follows the product. The order in which they arrive changes nothing, not a bit of the result. An RMSNorm needs
all K numbers of a row: the squares of a slice are left beside its sums.

64 rows are what four warps multiply, and the tensor cores take the left operand from registers. So x is that:
its gains are multiplied in, and its squares summed, on the way from shared memory to the tensor cores, while
these are busy with the step before. Weights never leave shared memory. Eight warps share the outputs, and
each four take all of x. One warp more, the producer, asks for the tiles (see `flash_tiles_gluon`); x, which
comes from the cache, has a ring of its own.
(PTX ISA, `cp.async.bulk.tensor` and `wgmma`; Osama et al. 2023, Stream-K, where this is "fixed-split".)
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from llmcourse.kernels.flash_tiles_gluon import barriers
from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_split_consumer_gluon import BATCH, consume
from llmcourse.kernels.linear_tiles_gluon import tiles_of_rows
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.split_rings import MOST_SPLIT_ROWS, SplitMemory, SplitRing

PRODUCER_REGISTERS = gl.constexpr(24)  # of a thread; the consumers have the others


@gluon.jit
def _ask(tensor, ring, full, step, begin, row, up_row, STEPS: gl.constexpr, HALVES: gl.constexpr):
    """The tiles of a step, to their slot in the ring, which is free; none beyond the last step."""
    COLUMNS: gl.constexpr = ring.shape[2]
    slot = step % full.shape[0]
    mbarrier.expect(full.index(slot), HALVES * tensor.block_type.nbytes, pred=step < STEPS)
    for half in gl.static_range(HALVES):
        at = [up_row if half else row, begin + step * COLUMNS]
        tile = ring.index(slot * HALVES + half)
        tma.async_copy_global_to_shared(tensor, at, full.index(slot), tile, pred=step < STEPS)


@gluon.jit
def _produce(given, STEPS: gl.constexpr, HALVES: gl.constexpr, PDL: gl.constexpr):
    """One warp asks for all tiles: the first weights before there is an x, then as steps are done."""
    x, matrix, inputs, weights, inputs_full, weights_full, done, begin, first, up_first = given
    STAGES: gl.constexpr = weights_full.shape[0]
    INPUT_STAGES: gl.constexpr = inputs_full.shape[0]
    for step in gl.static_range(STAGES):
        _ask(matrix, weights, weights_full, step, begin, first, up_first, STEPS, HALVES)
    wait_for_input(PDL)
    for step in gl.static_range(INPUT_STAGES):
        _ask(x, inputs, inputs_full, step, begin, 0, 0, STEPS, 1)
    for step in range(STEPS - 1):
        mbarrier.wait(done.index(step % done.shape[0]), step // done.shape[0] % 2)
        if step == 0:
            _ask(x, inputs, inputs_full, INPUT_STAGES, begin, 0, 0, STEPS, 1)
        # When a step is done, registers hold x of the next, whose slot is free too.
        _ask(x, inputs, inputs_full, step + 1 + INPUT_STAGES, begin, 0, 0, STEPS, 1)
        _ask(matrix, weights, weights_full, step + STAGES, begin, first, up_first, STEPS, HALVES)


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
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    INPUT_STAGES: gl.constexpr,
    SPLITS: gl.constexpr,
    STEPS: gl.constexpr,
    GAINS: gl.constexpr,
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
    begin = gl.program_id(1) * (STEPS * COLUMNS)
    weights = gl.allocate_shared_memory(matrix.dtype, [STAGES * HALVES, ROWS, COLUMNS], matrix.layout)
    inputs = gl.allocate_shared_memory(x.dtype, [INPUT_STAGES, BATCH, COLUMNS], x.layout)
    weights_full, inputs_full, done = (
        barriers(STAGES),
        barriers(INPUT_STAGES),
        barriers(max(STAGES, INPUT_STAGES)),
    )
    for slot in gl.static_range(STAGES):
        mbarrier.init(weights_full.index(slot), count=1)
    for slot in gl.static_range(INPUT_STAGES):
        mbarrier.init(inputs_full.index(slot), count=1)
    for slot in gl.static_range(max(STAGES, INPUT_STAGES)):
        mbarrier.init(done.index(slot), count=1)
    fence_async_shared()
    for_consumer = (
        norm_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr, inputs, weights, inputs_full,
        weights_full, done, begin, first, num_rows, num_outputs, eps,
    )  # fmt: skip
    for_producer = (
        x, matrix, inputs, weights, inputs_full, weights_full, done, begin, first, first + num_outputs,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (
                consume,
                (
                    for_consumer, K, STEPS, GAINS, SPLITS, HAS_NORM, HAS_BIAS, HAS_RESIDUAL, GATED, PDL,
                    num_warps,
                ),
            ),
            (_produce, (for_producer, STEPS, HALVES, PDL)),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip


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
    steps = ring.steps(x.shape[1])
    has = switches(norm, bias, residual, gated)
    registers = ring.registers(x.shape[1], gated, norm is not None)
    _, norm, _, bias, residual, out = pointers(x, norm, weight, bias, residual, out)
    if ring.splits == 1:
        parts, arrivals = out, out  # never read
    else:
        memory = memory or SplitMemory.of([ring.needs(num_rows, num_outputs, gated)], x.device)
        parts, arrivals = memory.parts, memory.arrivals
    _split_ring_kernel[(triton.cdiv(num_outputs, ring.rows), ring.splits)](
        tiles_of_rows(x, MOST_SPLIT_ROWS, ring.columns),
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
        ROWS=ring.rows,
        COLUMNS=ring.columns,
        STAGES=min(ring.stages, steps),
        INPUT_STAGES=min(ring.input_stages, steps),
        SPLITS=ring.splits,
        STEPS=steps,
        GAINS=ring.gains(x.shape[1]),
        **has,
        num_warps=ring.warps,
        maxnreg=registers,
        **options(pdl),
    )
