"""The kernels of `packed_linear` for any GPU and shape: product with what surrounds it, and W written out.

The words of a tile are cut into codes by shifts, and multiplied as the left operand, which tensor cores take
from registers. Where a tile's columns lie in one group, codes are multiplied as they are, exactly, and their
sums by the group's scale; where they don't, each code by its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.linear_triton import pointers, switches
from llmcourse.kernels.packed_tiles import PackedTile
from llmcourse.kernels.tiles import matmul_rows

if TYPE_CHECKING:
    from llmcourse.kernels.packed_linear import PackedLinear

DEQUANTIZED_ROWS, DEQUANTIZED_COLUMNS = 16, 256  # of W, that a program writes out


@triton.jit
def _codes(words, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, words) to the integers in them, (ROWS, COLUMNS)."""
    place = tl.arange(0, 32 // WIDTH)
    shift = place // 2 * WIDTH + place % 2 * 16
    sign: tl.constexpr = 1 << (WIDTH - 1)
    codes = (words[:, :, None] >> shift[None, None, :]) & (2 * sign - 1)
    return tl.reshape((codes ^ sign) - sign, (ROWS, COLUMNS))


@triton.jit
def _places(word, K: tl.constexpr, WIDTH: tl.constexpr):
    """Where a row's words lie: by threads if K is a multiple of 128, see `packed_words`."""
    N: tl.constexpr = WIDTH // 2
    if K % 128 != 0:
        return word
    of_thread, half = word // N % 4, word // (4 * N) % 2
    return word // (8 * N) * (8 * N) + of_thread * (2 * N) + half * N + word % N


@triton.jit
def _by_row(table_ptr, stride, group, rows):
    """The numbers of a group, (ROWS, 1)."""
    return tl.load(table_ptr + tl.cast(group, tl.int64) * stride + rows)[:, None]


@triton.jit
def _by_code(table_ptr, stride, columns, rows, K: tl.constexpr, GROUP: tl.constexpr):
    """The number of each code's own group, (ROWS, COLUMNS)."""
    group = tl.minimum(columns, K - 1) // GROUP
    return tl.load(table_ptr + group[None, :].to(tl.int64) * stride + rows[:, None])


@triton.jit
def _added(
    sums,
    x,
    words,
    scales_ptr,
    zeros_ptr,
    scales_stride,
    zeros_stride,
    rows,
    start,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):
    """The sums and the products of one tile."""
    codes = _codes(words, WIDTH, ROWS, COLUMNS)
    if GROUP == K or GROUP % COLUMNS == 0:
        if HAS_ZEROS:
            codes -= _by_row(zeros_ptr, zeros_stride, start // GROUP, rows).to(tl.int32)
        products = tl.dot(codes.to(x.dtype), x.T, input_precision="ieee")
        return sums + products * _by_row(scales_ptr, scales_stride, start // GROUP, rows).to(tl.float32)
    at = start + columns
    if HAS_ZEROS:
        codes -= _by_code(zeros_ptr, zeros_stride, at, rows, K, GROUP).to(tl.int32)
    tile = codes.to(tl.float32) * _by_code(scales_ptr, scales_stride, at, rows, K, GROUP).to(tl.float32)
    return tl.dot(tile.to(x.dtype), x.T, sums, input_precision="ieee")


@triton.jit(do_not_specialize=["num_rows"])
def _packed_kernel(
    x_ptr,
    norm_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    scales_stride,
    zeros_stride,
    eps,
    K: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    A_WORD: tl.constexpr = 32 // WIDTH
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = tl.minimum(rows, num_outputs - 1)
    up_held = held + num_outputs
    columns, word = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // A_WORD)
    words = words_ptr + held[:, None].to(tl.int64) * WORDS
    up_words = words + tl.cast(num_outputs, tl.int64) * WORDS
    batch = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inputs = x_ptr + batch[:, None].to(tl.int64) * K + columns[None, :]  # (BLOCK_M, BLOCK_K)
    start_next(PDL)
    wait_for_input(PDL)

    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up_sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        inside = (start + columns < K)[None, :]
        x = tl.load(inputs + start, mask=(batch < num_rows)[:, None] & inside, other=0.0)
        if HAS_NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            gain = tl.load(norm_ptr + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
            x = (wide * gain[None, :]).to(x.dtype)
        at_word = start // A_WORD + word
        there, at_word = (at_word < WORDS)[None, :], _places(at_word, K, WIDTH)[None, :]
        tile = tl.load(words + at_word, mask=there, other=0)
        sums = _added(
            sums, x, tile, scales_ptr, zeros_ptr, scales_stride, zeros_stride, held, start, columns,
            BLOCK_N, BLOCK_K, K, GROUP, WIDTH, HAS_ZEROS,
        )  # fmt: skip
        if GATED:
            up_tile = tl.load(up_words + at_word, mask=there, other=0)
            up_sums = _added(
                up_sums, x, up_tile, scales_ptr, zeros_ptr, scales_stride, zeros_stride, up_held, start,
                columns, BLOCK_N, BLOCK_K, K, GROUP, WIDTH, HAS_ZEROS,
            )  # fmt: skip

    y = sums
    if HAS_NORM:
        scale = (1.0 / tl.sqrt(squares / K + eps))[None, :]
        y *= scale
        up_sums *= scale
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * up_sums
    at = batch[None, :].to(tl.int64) * num_outputs + rows[:, None]
    inside = (batch < num_rows)[None, :] & (rows < num_outputs)[:, None]
    if HAS_BIAS:
        y += tl.load(bias_ptr + held).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch(
    layer: PackedLinear,
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor,
    tile: PackedTile,
    pdl: bool,
) -> None:
    if norm is not None and x.dtype == torch.float16:
        # As in `linear_triton`: x times the gain may be beyond fp16.
        x, norm = F.rms_norm(x, norm.shape, norm, eps), None
    num_rows, num_outputs = out.shape
    block = matmul_rows(num_rows, x.element_size())
    zeros = layer.scales if layer.zeros is None else layer.zeros
    x, given_norm, words, given_bias, residual_or_x, out = pointers(x, norm, layer.words, bias, residual, out)
    _packed_kernel[(triton.cdiv(num_outputs, tile.rows), triton.cdiv(num_rows, block))](
        x,
        given_norm,
        words,
        layer.scales,
        zeros,
        given_bias,
        residual_or_x,
        out,
        num_rows,
        num_outputs,
        layer.scales.stride(0),
        zeros.stride(0),
        eps,
        K=layer.in_features,
        WORDS=words.shape[1],
        GROUP=layer.group_size,
        WIDTH=layer.width,
        BLOCK_M=block,
        BLOCK_N=tile.rows,
        BLOCK_K=tile.columns,
        STAGES=tile.stages,
        HAS_ZEROS=layer.zeros is not None,
        **switches(norm, bias, residual, gated),
        num_warps=tile.warps,
        **options(pdl),
    )


@triton.jit
def _dequantize_kernel(
    words_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    num_outputs,
    scales_stride,
    zeros_stride,
    K: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):
    A_WORD: tl.constexpr = 32 // WIDTH
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = tl.minimum(rows, num_outputs - 1)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    word = tl.program_id(1) * (COLUMNS // A_WORD) + tl.arange(0, COLUMNS // A_WORD)
    words = words_ptr + held[:, None].to(tl.int64) * WORDS + _places(word, K, WIDTH)[None, :]
    codes = _codes(tl.load(words, mask=(word < WORDS)[None, :], other=0), WIDTH, ROWS, COLUMNS)
    if HAS_ZEROS:
        codes -= _by_code(zeros_ptr, zeros_stride, columns, held, K, GROUP).to(tl.int32)
    y = codes.to(tl.float32) * _by_code(scales_ptr, scales_stride, columns, held, K, GROUP).to(tl.float32)
    at = rows[:, None].to(tl.int64) * K + columns[None, :]
    inside = (rows < num_outputs)[:, None] & (columns < K)[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def dequantize(layer: PackedLinear, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """These rows of W, in this dtype."""
    num_outputs, columns = end - begin, layer.in_features
    out = layer.words.new_empty(num_outputs, columns, dtype=dtype)
    scales = layer.scales[:, begin:end]
    zeros = scales if layer.zeros is None else layer.zeros[:, begin:end]
    grid = (triton.cdiv(num_outputs, DEQUANTIZED_ROWS), triton.cdiv(columns, DEQUANTIZED_COLUMNS))
    _dequantize_kernel[grid](
        layer.words[begin:end],
        scales,
        zeros,
        out,
        num_outputs,
        scales.stride(0),
        zeros.stride(0),
        K=columns,
        WORDS=layer.words.shape[1],
        GROUP=layer.group_size,
        WIDTH=layer.width,
        ROWS=DEQUANTIZED_ROWS,
        COLUMNS=DEQUANTIZED_COLUMNS,
        HAS_ZEROS=layer.zeros is not None,
        num_warps=4,
    )
    return out
