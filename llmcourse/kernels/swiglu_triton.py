"""The kernel of `swiglu`: grid (T, parts of a row)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input

COLUMNS = 1024  # of a row for one program


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < C
    wait_for_input(PDL)
    at = gate_up_ptr + row * 2 * C + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + C, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * C + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch(gate_up: Tensor, out: Tensor, pdl: bool) -> None:
    rows, columns = out.shape
    block = min(COLUMNS, triton.next_power_of_2(columns))
    if rows:
        _swiglu_kernel[(rows, triton.cdiv(columns, block))](
            gate_up, out, C=columns, BLOCK=block, num_warps=4, **options(pdl)
        )
