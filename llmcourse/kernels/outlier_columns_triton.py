"""The kernels of `find_outliers`: flags by blocks of x, then their list by one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.outlier_columns import OutlierColumns

ROWS, COLUMNS = 64, 128  # of x for one program
LISTED = 2048  # flags at a time


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
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
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


def launch_find(x: Tensor, threshold: float, pdl: bool) -> OutlierColumns:
    rows, size = x.shape
    flags = torch.zeros(size, dtype=torch.int8, device=x.device)
    found = OutlierColumns(
        flags, torch.empty_like(flags, dtype=torch.int32), torch.zeros(1, dtype=torch.int32, device=x.device)
    )
    if rows and size:
        height = min(ROWS, triton.next_power_of_2(rows))
        width = COLUMNS * ROWS // height
        _flag_columns_kernel[(triton.cdiv(rows, height), triton.cdiv(size, width))](
            x, flags, threshold, rows, K=size, BLOCK_M=height, BLOCK_K=width, num_warps=4, **options(pdl)
        )
        _list_columns_kernel[(1,)](
            flags,
            found.columns,
            found.count,
            K=size,
            BLOCK=min(LISTED, triton.next_power_of_2(size)),
            num_warps=8,
            **options(pdl),
        )
    return found
