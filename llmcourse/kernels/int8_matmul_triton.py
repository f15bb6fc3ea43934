"""The kernel of `int8_matmul` for every GPU and every shape, to be read first.

Columns that stay in 16 bits are gathered as they are needed, from x and from the codes of W: for a tile of
128 by 128 outputs, 256 numbers for each of these columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.int8_matmul import InSixteenBits
from llmcourse.kernels.int8_tiles import Int8Tile
from llmcourse.kernels.launch import options, start_next, wait_for_input

BAND = 8  # tiles of rows that go together, so that what they read stays in the cache
GATHERED = 16  # columns in 16 bits at a time


@triton.jit
def _place(tile, num_rows, num_outputs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BAND: tl.constexpr):
    """The first row and the first output of a tile: through a band of rows, output by output."""
    high = tl.cdiv(num_rows, BLOCK_M)
    wide = tl.cdiv(num_outputs, BLOCK_N)
    begin = tile // (BAND * wide) * BAND
    height = tl.minimum(high - begin, BAND)
    tile -= begin * wide
    return (begin + tile % height) * BLOCK_M, tile // height * BLOCK_N


@triton.jit(do_not_specialize=["num_rows", "least_count"])
def _int8_matmul_kernel(
    codes_ptr,
    scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    x_ptr,
    columns_ptr,
    count_ptr,
    kept_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    num_kept,
    least_count,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SIXTEEN: tl.constexpr,
    KEPT: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    first, first_output = _place(tl.program_id(0), num_rows, num_outputs, BLOCK_M, BLOCK_N, BAND)
    rows, outputs = first + tl.arange(0, BLOCK_M), first_output + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    held_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)  # reading the last row twice needs no mask
    held = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    left = codes_ptr + held_rows[:, None] * K + columns[None, :]
    right = weight_ptr + held[:, None] * K + columns[None, :]
    wait_for_input(PDL)
    count = 0
    if SIXTEEN:
        count = tl.load(count_ptr)
    if count >= least_count:
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            if EVEN:
                q = tl.load(left + start)
                w = tl.load(right + start)
            else:
                inside = (start + columns < K)[None, :]
                q = tl.load(left + start, mask=inside, other=0)
                w = tl.load(right + start, mask=inside, other=0)
            sums = tl.dot(q, w.T, sums, out_dtype=tl.int32)
        y = sums.to(tl.float32) * tl.load(scale_ptr + held_rows)[:, None]
        weight_scale = tl.load(weight_scale_ptr + held)
        if KEPT or not SIXTEEN:
            y *= weight_scale[None, :]
        if SIXTEEN:
            for start in range(0, count, BLOCK_O):
                place = start + tl.arange(0, BLOCK_O)
                there = place < count
                column = tl.load(columns_ptr + place, mask=there, other=0)
                x = tl.load(x_ptr + held_rows[:, None] * K + column[None, :], mask=there[None, :], other=0.0)
                if KEPT:
                    w = tl.load(kept_ptr + held[:, None] * num_kept + place[None, :], mask=there[None, :])
                else:
                    w = tl.load(weight_ptr + held[:, None] * K + column[None, :], mask=there[None, :])
                w = tl.where(there[None, :], w.to(x.dtype), 0.0)
                y = tl.dot(x, w.T, y, input_precision="ieee")
            if not KEPT:
                y *= weight_scale[None, :]
        if HAS_BIAS:
            y += tl.load(bias_ptr + held).to(tl.float32)[None, :]
        at = out_ptr + rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
        inside = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
        tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    sixteen: InSixteenBits | None,
    out: Tensor,
    tile: Int8Tile,
    pdl: bool,
    least_count: int = 0,
) -> None:
    """Computes nothing where fewer columns than `least_count` are in 16 bits, which the device finds out."""
    num_rows, num_outputs = out.shape
    kept = None if sixteen is None else sixteen.kept
    if out.numel() == 0:
        return
    tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
    _int8_matmul_kernel[(tiles,)](
        codes,
        scale,
        weight,
        weight_scale,
        out if bias is None else bias,
        out if sixteen is None else sixteen.x,
        out if sixteen is None else sixteen.outliers.columns,
        out if sixteen is None else sixteen.outliers.count,
        out if kept is None else kept,
        out,
        num_rows,
        num_outputs,
        0 if kept is None else kept.shape[1],
        least_count,
        codes.shape[1],
        BLOCK_M=tile.rows,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.columns,
        BLOCK_O=GATHERED,
        STAGES=tile.stages,
        BAND=BAND,
        EVEN=codes.shape[1] % tile.columns == 0,
        HAS_BIAS=bias is not None,
        SIXTEEN=sixteen is not None,
        KEPT=kept is not None,
        num_warps=tile.warps,
        **options(pdl),
    )
