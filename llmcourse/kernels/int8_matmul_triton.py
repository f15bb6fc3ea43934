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
FEW_PROGRAMS = 132  # where there is seldom anything to do: a multiprocessor of an H200 each
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


@triton.jit
def _multiply(
    tile,
    codes_ptr,
    scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    x_ptr,
    columns_ptr,
    count,
    kept_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    num_kept,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SIXTEEN: tl.constexpr,
    KEPT: tl.constexpr,
):
    """One tile of the result."""
    first, first_output = _place(tile, num_rows, num_outputs, BLOCK_M, BLOCK_N, BAND)
    rows, outputs = first + tl.arange(0, BLOCK_M), first_output + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    held_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)  # reading the last row twice needs no mask
    held = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    left = codes_ptr + held_rows[:, None] * K + columns[None, :]
    right = weight_ptr + held[:, None] * K + columns[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN and FULL:
            q = tl.load(left + start)
            w = tl.load(right + start)
        else:
            # Where there are few rows, the last one is not read over and over: all programs want it at once.
            inside = (start + columns < K)[None, :]
            q = tl.load(left + start, mask=inside & (rows < num_rows)[:, None], other=0)
            w = tl.load(right + start) if EVEN else tl.load(right + start, mask=inside, other=0)
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


@triton.jit(do_not_specialize=["num_rows", "least_count", "num_tiles"])
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
    K,
    least_count,
    num_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SIXTEEN: tl.constexpr,
    KEPT: tl.constexpr,
    SELDOM: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    wait_for_input(PDL)
    count = 0
    if SIXTEEN:
        count = tl.load(count_ptr)
    if SELDOM:  # a few programs look whether there is anything to do, and mostly there is not
        if count >= least_count:
            for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
                _multiply(
                    tile, codes_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, x_ptr, columns_ptr,
                    count, kept_ptr, out_ptr, num_rows, num_outputs, num_kept, K, BLOCK_M, BLOCK_N, BLOCK_K,
                    BLOCK_O, STAGES, BAND, EVEN, FULL, HAS_BIAS, SIXTEEN, KEPT,
                )  # fmt: skip
    else:
        _multiply(
            tl.program_id(0), codes_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, x_ptr,
            columns_ptr, count, kept_ptr, out_ptr, num_rows, num_outputs, num_kept, K, BLOCK_M, BLOCK_N,
            BLOCK_K, BLOCK_O, STAGES, BAND, EVEN, FULL, HAS_BIAS, SIXTEEN, KEPT,
        )  # fmt: skip


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
    least_count: int | None = None,
) -> None:
    """Computes nothing where fewer columns than `least_count` are in 16 bits, which the device finds out."""
    num_rows, num_outputs = out.shape
    kept = None if sixteen is None else sixteen.kept
    if out.numel() == 0:
        return
    tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
    programs = tiles if least_count is None else min(tiles, FEW_PROGRAMS)
    _int8_matmul_kernel[(programs,)](
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
        codes.shape[1],
        least_count or 0,
        tiles,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.columns,
        BLOCK_O=GATHERED,
        STAGES=tile.stages,
        BAND=BAND,
        EVEN=codes.shape[1] % tile.columns == 0,
        FULL=num_rows >= tile.rows,
        HAS_BIAS=bias is not None,
        SIXTEEN=sixteen is not None,
        KEPT=kept is not None,
        SELDOM=least_count is not None,
        num_warps=tile.warps,
        **options(pdl),
    )
