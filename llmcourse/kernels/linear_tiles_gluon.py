"""What both kernels for a few rows on Hopper have in common: how the tensor cores multiply them, and the end.

The tensor cores take 64 rows of weights at a time, and a program has fewer. So a tile of (rows, columns) is
read as blocks of 64 columns one below the other, and the tile of x in the same way: their product holds every
block of weights with every block of x, and those of the same number are the ones that count. All others are
computed in vain, which takes time that there is.

    W = [W₁ W₂],  x = [x₁ x₂]      [W₁]             [W₁x₁ᵀ  W₁x₂ᵀ]
                                   [W₂] [x₁ᵀ x₂ᵀ] = [W₂x₁ᵀ  W₂x₂ᵀ]      W xᵀ = W₁x₁ᵀ + W₂x₂ᵀ

The norm's gains are multiplied into x before, (W · (g ⊙ x)) / rms(x) as in the other kernels of `linear`.
(PTX ISA, `wgmma`.)
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


def tiles_of_rows(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """For copies of so many rows and columns; beyond the last of either, zeros are read."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return TensorDescriptor.from_tensor(x, [rows, columns], layout)


@gluon.constexpr_function
def layout_of_rows(columns, warps):
    """Of rows in registers: eight numbers a thread, side by side in memory."""
    threads = min(columns // 8, 32)
    return gl.BlockedLayout([1, 8], [32 // threads, threads], [warps, 1], [1, 0])


@gluon.constexpr_function
def layout_of_products(width, warps):
    """Of what the tensor cores add up, `width` numbers for each row of weights."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[warps, 1], instr_shape=[16, width, 16])


@gluon.constexpr_function
def layout_of_outputs(rows, warps):
    """Outputs that lie side by side in memory in threads side by side."""
    lanes = min(rows, 32)
    return gl.BlockedLayout([1, 1], [lanes, 32 // lanes], [1, warps], [0, 1])


@gluon.jit
def stacked(tile, BLOCKS: gl.constexpr):
    """A tile (rows, columns) in shared memory as its blocks of 64 columns, one below the other."""
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    return tile._reinterpret(tile.dtype, [BLOCKS * tile.shape[0], 64], LAYOUT)


@gluon.jit
def finished(sums, up_sums, GATED: gl.constexpr):
    """The sums when all products are added; those of the other half where there is one."""
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
def norm_scale(squares, eps, K: gl.constexpr, Y: gl.constexpr):
    """1 / rms of each row of x, from the squares of its K numbers."""
    return gl.convert_layout(1.0 / gl.sqrt(gl.sum(squares, axis=1) / K + eps), gl.SliceLayout(0, Y))


@gluon.jit
def places_of_outputs(first, num_rows, num_outputs, ROWS: gl.constexpr, BATCH: gl.constexpr, Y: gl.constexpr):
    """The outputs of a program: numbers, (ROWS), places, and whether there is one, (ROWS, BATCH)."""
    rows = first + gl.arange(0, ROWS, gl.SliceLayout(1, Y))
    batch = gl.arange(0, BATCH, gl.SliceLayout(0, Y))
    at = batch[None, :].to(gl.int64) * num_outputs + rows[:, None]
    return rows, at, (batch < num_rows)[None, :] & (rows < num_outputs)[:, None]


@gluon.jit
def weighted_and_gated(
    sums,
    up_sums,
    scale,
    ROWS: gl.constexpr,
    BATCH: gl.constexpr,
    BLOCKS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    GATED: gl.constexpr,
    Y: gl.constexpr,
):
    """(ROWS, BATCH): the products over rms(x), and where they are gated silu of them times the other half."""
    y = same_blocks(sums, ROWS, BATCH, BLOCKS, Y)
    if HAS_NORM:
        y *= scale[None, :]
    if GATED:
        up = same_blocks(up_sums, ROWS, BATCH, BLOCKS, Y)
        if HAS_NORM:
            up *= scale[None, :]
        y = y / (1.0 + gl.exp(-y)) * up
    return y


@gluon.jit
def gathered(parts_ptr, at, there, SIZE: gl.constexpr, SPLITS: gl.constexpr):
    """What all programs of a tile have left at these places, added up in the order of their columns."""
    total = gl.load(parts_ptr + at, mask=there, other=0.0, cache_modifier=".cg")
    for split in gl.static_range(1, SPLITS):
        total += gl.load(parts_ptr + split * SIZE + at, mask=there, other=0.0, cache_modifier=".cg")
    return total
