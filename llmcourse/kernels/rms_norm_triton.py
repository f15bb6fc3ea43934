"""The kernel of `rms_norm`: a program for each row, which stays in registers between its two uses."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, out_ptr, eps, C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_input(PDL)
    x = tl.load(x_ptr + row * C + column, mask=inside, other=0.0).to(tl.float32)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / C + eps)) * weight
    tl.store(out_ptr + row * C + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch(x: Tensor, weight: Tensor, eps: float, pdl: bool) -> Tensor:
    out, (rows, columns) = torch.empty_like(x), x.shape
    block = triton.next_power_of_2(columns)
    if rows:
        warps = min(max(block // 512, 1), 8)
        _rms_norm_kernel[(rows,)](
            x, weight, out, eps, C=columns, BLOCK=block, num_warps=warps, **options(pdl)
        )
    return out
