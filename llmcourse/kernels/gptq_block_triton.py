"""The kernel of `gptq_block`: a program for some rows, which stay in registers through all columns."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS, WARPS = 16, 4  # of a program: few, since a column takes as long for one row as for many
# Added and taken away again it rounds numbers below 2²², halves to the even one: fp32 has no more digits.
ROUNDER = 12582912.0  # 1.5 · 2²³


@triton.jit
def _gptq_block_kernel(
    weight_ptr,
    factor_ptr,
    scale_ptr,
    zero_ptr,
    group_ptr,
    codes_ptr,
    errors_ptr,
    rows,
    columns,
    weight_stride,
    factor_stride,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    MAGIC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK)
    here, inside = row < rows, column < columns
    held = here[:, None] & inside[None, :]
    left = tl.load(weight_ptr + row[:, None] * weight_stride + column[None, :], mask=held, other=0.0)
    for j in range(columns):
        behind = inside & (column > j)
        factor = tl.load(factor_ptr + j * factor_stride + column, mask=behind, other=0.0)
        diagonal = tl.load(factor_ptr + j * factor_stride + j)
        place = tl.load(group_ptr + j).to(tl.int64) * rows + row
        scale = tl.load(scale_ptr + place, mask=here, other=1.0)
        zero = tl.load(zero_ptr + place, mask=here, other=0).to(tl.float32)
        now = column[None, :] == j
        value = tl.sum(tl.where(now, left, 0.0), axis=1)  # registers have no index
        # Within the range before rounding as well as behind it: its ends are integers.
        steps = tl.minimum(tl.maximum(tl.div_rn(value, scale), LOWEST - zero), HIGHEST - zero)
        steps = (steps + MAGIC) - MAGIC
        error = tl.div_rn(value - scale * steps, diagonal)
        tl.store(codes_ptr + row * columns + j, (steps + zero).to(tl.int8), mask=here)
        # What a column has held is done with; its place takes the error.
        left = tl.where(now, error[:, None], left - error[:, None] * factor[None, :])
    tl.store(errors_ptr + row[:, None] * columns + column[None, :], left, mask=held)


def launch(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    group: Tensor,
    codes: Tensor,
    errors: Tensor,
    bits: int,
) -> None:
    rows, columns = weight.shape
    if rows:
        _gptq_block_kernel[(triton.cdiv(rows, ROWS),)](
            weight,
            factor,
            scale,
            zero_point,
            group,
            codes,
            errors,
            rows,
            columns,
            weight.stride(0),
            factor.stride(0),
            LOWEST=-(2 ** (bits - 1)),
            HIGHEST=2 ** (bits - 1) - 1,
            MAGIC=ROUNDER,
            BLOCK=max(triton.next_power_of_2(columns), 16),
            BLOCK_ROWS=ROWS,
            num_warps=WARPS,
        )
