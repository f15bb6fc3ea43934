"""What the kernels of `flash_attention` on Hopper have in common: who waits for whom, and what is copied.

Warps share the work (Shah et al. 2024, FlashAttention-3, section 3.1). One warp, the producer, does nothing
but ask the tensor memory accelerator for copies of tiles in shared memory (PTX ISA, `cp.async.bulk.tensor`).
All others are consumers: four and four together multiply what lies there (`wgmma`). They need registers, and
the producer leaves them most of its own (`setmaxnreg`).

Tiles have slots in shared memory, several of a kind, so that copies run ahead of products. The nth tile of a
kind, counted from 0 over all that the program does, goes to slot n modulo their number. A slot has two
barriers (`mbarrier`):

    full    the tile has come. The copies arrive here by themselves, with the bytes that were expected;
            consumers wait
    free    all that read the tile are done with it. Consumers arrive; the producer waits before it asks for
            the next tile

A barrier goes through phases, one for each tile, and a wait names the phase by its parity: with 0 it is for
the end of the first phase, the third and so on, with 1 of the second; the phase before the current one has
ended, and holds up nobody. So the nth tile in a slot, from 0, is waited for with n % 2, and its slot with
(n + 1) % 2, the phase in which the tile before was read; for the first tile there is none, and no wait.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from llmcourse.kernels.flash_attention import Scoring

HEAD_DIMS = (64, 128)
L2_BYTES = 2**24  # of what all programs at work read over and over; the L2 cache of an H200 holds 50 MiB


def takes(scoring: Scoring, *tensors: Tensor) -> bool:
    """Whether the kernels are made for this: 16 bits, no window, no cap, and rows where copies may begin."""
    return (
        scoring.window is None
        and scoring.softcap is None
        and tensors[0].shape[3] in HEAD_DIMS
        and tensors[0].element_size() == 2
        and all(map(_is_aligned, tensors))
    )


def _is_aligned(x: Tensor) -> bool:
    """Whether the accelerator finds all rows, heads and batches: they begin at multiples of 16 bytes."""
    steps = [stride for size, stride in zip(x.shape[:3], x.stride(), strict=False) if size > 1]
    addresses = [x.data_ptr(), *(step * x.element_size() for step in steps)]
    return min(*x.shape, *steps) > 0 and all(address % 16 == 0 for address in addresses)


def tiles_of(x: Tensor, rows: int) -> TensorDescriptor:
    """For copies of so many rows of a head; beyond its last, zeros are read and nothing is written."""
    size = x.shape[3]
    # Where there is only one, PyTorch may name any stride to the next, and the accelerator does not take all.
    strides = [stride if n > 1 else size for n, stride in zip(x.shape[:3], x.stride(), strict=False)]
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, size], layout)


@gluon.jit
def matrix(tile):
    """A tile in shared memory, (1, 1, rows, D) as it was copied, without the two dimensions of 1."""
    ROWS: gl.constexpr = tile.shape[2]
    D: gl.constexpr = tile.shape[3]
    return tile.reshape([ROWS, D])


@gluon.jit
def barriers(slots: gl.constexpr):
    """One for each slot; `mbarrier.init` says how many arrivals end a phase."""
    return gl.allocate_shared_memory(gl.int64, [slots, 1], mbarrier.MBarrierLayout())
