"""The kernels of `linear`: one row of input, or a few on the tensor cores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.tiles import Tile, matmul_rows


@triton.jit
def _gemv_kernel(
    x_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_outputs,
    eps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = tl.minimum(rows, num_outputs - 1).to(tl.int64)  # reading the last row twice needs no mask
    columns = tl.arange(0, BLOCK_K)
    weights = weight_ptr + held[:, None] * K + columns[None, :]
    up_weights = weights + tl.cast(num_outputs, tl.int64) * K

    coming = _weight_tile(weights, columns, 0, K, BLOCK_K)
    if GATED:
        up_coming = _weight_tile(up_weights, columns, 0, K, BLOCK_K)
    start_next(PDL)
    wait_for_input(PDL)

    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for step in tl.static_range(STEPS):
        tile = coming
        if GATED:
            up_tile = up_coming
        if step + 1 < STEPS:  # the next tile is requested before this one is used
            coming = _weight_tile(weights, columns, step + 1, K, BLOCK_K)
            if GATED:
                up_coming = _weight_tile(up_weights, columns, step + 1, K, BLOCK_K)
        at = step * BLOCK_K + columns
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * x[None, :]
        if GATED:
            up_sums += up_tile.to(tl.float32) * x[None, :]

    y = tl.sum(sums, axis=1)
    scale = 1.0
    if HAS_NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)
        y *= scale
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * (tl.sum(up_sums, axis=1) * scale)
    inside = rows < num_outputs
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weight_tile(pointers, columns, step: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    if (step + 1) * BLOCK_K <= K:
        return tl.load(pointers + step * BLOCK_K, eviction_policy="evict_first")
    inside = (step * BLOCK_K + columns < K)[None, :]
    return tl.load(pointers + step * BLOCK_K, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["num_rows"])
def _matmul_kernel(
    x_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = tl.minimum(rows, num_outputs - 1).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    weights = weight_ptr + held[:, None] * K + columns[None, :]  # (BLOCK_N, BLOCK_K)
    up_weights = weights + tl.cast(num_outputs, tl.int64) * K
    batch = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inputs = x_ptr + batch[:, None].to(tl.int64) * K + columns[None, :]  # (BLOCK_M, BLOCK_K)
    start_next(PDL)
    wait_for_input(PDL)

    # The weights are the left operand: their many rows fill the tensor cores' tiles, the few of x are padded.
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
        tile = tl.load(weights + start, mask=inside, other=0.0)
        sums = tl.dot(tile, x.T, sums, input_precision="ieee")
        if GATED:
            up_tile = tl.load(up_weights + start, mask=inside, other=0.0)
            up_sums = tl.dot(up_tile, x.T, up_sums, input_precision="ieee")

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
        y += tl.load(bias_ptr + rows, mask=rows < num_outputs, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_gemv(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor,
    tile: Tile,
    pdl: bool,
) -> None:
    num_outputs = out.shape[1]
    _gemv_kernel[(triton.cdiv(num_outputs, tile.rows),)](
        *pointers(x, norm, weight, bias, residual, out),
        num_outputs,
        eps,
        K=x.shape[1],
        BLOCK_N=tile.rows,
        BLOCK_K=tile.columns,
        **switches(norm, bias, residual, gated),
        num_warps=tile.warps,
        **options(pdl),
    )


def launch_matmul(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    eps: float,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    out: Tensor,
    tile: Tile,
    pdl: bool,
) -> None:
    if norm is not None and x.dtype == torch.float16:
        # The tensor cores take x times the gain in this dtype, which ends at 65,504: so PyTorch normalises
        # first. A scale for each row inside of the kernel's loop would cost it a buffer and registers.
        x, norm = F.rms_norm(x, norm.shape, norm, eps), None
    num_rows, num_outputs = out.shape
    block = matmul_rows(num_rows, x.element_size())
    _matmul_kernel[(triton.cdiv(num_outputs, tile.rows), triton.cdiv(num_rows, block))](
        *pointers(x, norm, weight, bias, residual, out),
        num_rows,
        num_outputs,
        eps,
        K=x.shape[1],
        BLOCK_M=block,
        BLOCK_N=tile.rows,
        BLOCK_K=tile.columns,
        STAGES=tile.stages,
        **switches(norm, bias, residual, gated),
        num_warps=tile.warps,
        **options(pdl),
    )


def pointers(x, norm, weight, bias, residual, out) -> tuple[Tensor, ...]:
    """The tensors in the kernels' order; one that is absent is never read, so any stands in for it."""
    return tuple(x if tensor is None else tensor for tensor in (x, norm, weight, bias, residual, out))


def switches(
    norm: Tensor | None, bias: Tensor | None, residual: Tensor | None, gated: bool
) -> dict[str, bool]:
    return {
        "HAS_NORM": norm is not None,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "GATED": gated,
    }
