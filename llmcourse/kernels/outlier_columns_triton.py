"""The kernels of `find_outliers`: flags by blocks of x and their list, or all by one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.outlier_columns import OutlierColumns

ROWS, COLUMNS = 32, 512  # of x for one program
LISTED = 2048  # flags at a time
ALONE = 2**16  # numbers of x, padded to powers of two, that one program takes


@triton.jit(do_not_specialize=["num_rows"])
def _flag_columns_kernel(
    x_ptr,
    flags_ptr,
    threshold,
    num_rows,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)  # programs side by side read side by side
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (rows < num_rows)[:, None] & (columns < K)[None, :]
    wait_for_input(PDL)
    at = rows[:, None].to(tl.int64) * K + columns[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    found = tl.max((tl.abs(x) >= threshold).to(tl.int32), axis=0)
    tl.store(flags_ptr + columns, found.to(tl.int8), mask=found > 0)  # whoever writes, writes a 1


@triton.jit
def _list_columns_kernel(
    flags_ptr, columns_ptr, count_ptr, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    start_next(PDL)
    wait_for_input(PDL)
    count = tl.zeros((), tl.int32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        flag = tl.load(flags_ptr + column, mask=column < K, other=0).to(tl.int32)
        place = count + tl.cumsum(flag, axis=0) - 1
        tl.store(columns_ptr + place, column, mask=flag > 0)
        count += tl.sum(flag, axis=0)
    tl.store(count_ptr, count)


@triton.jit(do_not_specialize=["num_rows"])
def _find_columns_kernel(
    x_ptr,
    flags_ptr,
    columns_ptr,
    count_ptr,
    threshold,
    num_rows,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    inside = (rows < num_rows)[:, None] & (columns < K)[None, :]
    wait_for_input(PDL)
    x = tl.load(x_ptr + rows[:, None] * K + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    flag = tl.max((tl.abs(x) >= threshold).to(tl.int32), axis=0)
    tl.store(flags_ptr + columns, flag.to(tl.int8), mask=columns < K)
    tl.store(columns_ptr + tl.cumsum(flag, axis=0) - 1, columns, mask=flag > 0)
    tl.store(count_ptr, tl.sum(flag, axis=0))


def launch_find(x: Tensor, threshold: float, pdl: bool) -> OutlierColumns:
    rows, size = x.shape
    integers = {"dtype": torch.int32, "device": x.device}
    height, width = (triton.next_power_of_2(max(n, 1)) for n in (rows, size))
    alone = rows and size and height * width <= ALONE
    memory = torch.empty if alone else torch.zeros
    found = OutlierColumns(
        memory(size, dtype=torch.int8, device=x.device),
        torch.empty(size, **integers),
        memory(1, **integers),
    )
    if alone:
        warps = max(1, min(height * width // 1024, 16))
        sizes = {"K": size, "BLOCK_M": height, "BLOCK_K": width, "num_warps": warps}
        _find_columns_kernel[(1,)](
            x, found.flags, found.columns, found.count, threshold, rows, **sizes, **options(pdl)
        )
    elif rows and size:
        high = min(ROWS, height)
        wide = COLUMNS * ROWS // high
        _flag_columns_kernel[(triton.cdiv(size, wide), triton.cdiv(rows, high))](
            x,
            found.flags,
            threshold,
            rows,
            K=size,
            BLOCK_M=high,
            BLOCK_K=wide,
            num_warps=8,
            **options(pdl),
        )
        _list_columns_kernel[(1,)](
            found.flags,
            found.columns,
            found.count,
            K=size,
            BLOCK=min(LISTED, width),
            num_warps=8,
            **options(pdl),
        )
    return found
