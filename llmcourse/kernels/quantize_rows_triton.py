"""The kernel of `quantize_rows`: a program for each row, which stays in registers between its two uses."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.quantize_rows import LARGEST, LEAST_AMAX

COLUMNS_OF_WARP = 1024
LONG = 16384  # columns, of which a warp takes twice as many where no norm needs registers
HALF_UP = tl.constexpr(12582912.0)  # 1.5 · 2²³: a small number added to it is rounded to even, as an integer
INFINITE = tl.constexpr(0x7F800000)  # the bits of Inf; those of any finite |x| are less, and of NaN more
ALL_BUT_SIGN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def rounded(x):
    """The integer nearest to each number within ±127, the even one of two, as int8.

    The lowest byte of the sum holds it already, and a conversion of floats takes four times as long.
    """
    return (x + HALF_UP).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def store_codes(
    x,
    codes_ptr,
    scale_ptr,
    static_ptr,
    row,
    column,
    K: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    STATIC: tl.constexpr,
):
    """The codes of a row in fp32, which is 0 behind column K, and its scale."""
    inside = column < K
    peak_bits = tl.max(x.to(tl.int32, bitcast=True) & ALL_BUT_SIGN, axis=0)
    finite = peak_bits < INFINITE
    if STATIC:
        scale = tl.load(static_ptr)
        inverse = tl.math.div_rn(1.0, scale)
    else:
        peak = tl.maximum(peak_bits.to(tl.float32, bitcast=True), LEAST)
        scale = tl.math.div_rn(peak, LARGEST)
        inverse = tl.math.div_rn(LARGEST, peak)
    x = tl.where(finite, tl.minimum(tl.maximum(x * inverse, -LARGEST), LARGEST), 0.0)
    at = codes_ptr + row * K + column
    if codes_ptr.dtype.element_ty == tl.int8:
        tl.store(at, rounded(x), mask=inside)
    else:
        tl.store(at, x.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, tl.where(finite, scale, float("nan")))


@triton.jit
def _quantize_rows_kernel(
    x_ptr,
    norm_ptr,
    static_ptr,
    skipped_ptr,
    codes_ptr,
    scale_ptr,
    eps,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    HAS_NORM: tl.constexpr,
    STATIC: tl.constexpr,
    SKIPS: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < K
    if HAS_NORM:
        gain = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_input(PDL)
    x = tl.load(x_ptr + row * K + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        x = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / K + eps)) * gain
    if SKIPS:
        x = tl.where(tl.load(skipped_ptr + column, mask=inside, other=0) != 0, 0.0, x)
    store_codes(x, codes_ptr, scale_ptr, static_ptr, row, column, K, LARGEST, LEAST, STATIC)


def launch(
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    static: Tensor | None,
    skipped: Tensor | None,
    dtype: torch.dtype,
    pdl: bool,
) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    codes, scale = torch.empty_like(x, dtype=dtype), x.new_empty(rows, dtype=torch.float32)
    block = triton.next_power_of_2(columns)
    of_warp = COLUMNS_OF_WARP * (2 if block >= LONG and norm is None else 1)
    if rows:
        _quantize_rows_kernel[(rows,)](
            x,
            x if norm is None else norm,
            x if static is None else static,
            x if skipped is None else skipped.view(torch.int8),
            codes,
            scale,
            eps,
            K=columns,
            BLOCK=block,
            LARGEST=LARGEST[dtype],
            LEAST=LEAST_AMAX,
            HAS_NORM=norm is not None,
            STATIC=static is not None,
            SKIPS=skipped is not None,
            num_warps=min(max(block // of_warp, 1), 16),
            **options(pdl),
        )
    return codes, scale
