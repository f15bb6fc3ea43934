"""What follows the products of `packed_gluon`: several programs' sums, scales of channels, norm, SwiGLU."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def ended(
    y,
    up,
    squares,
    scales_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    first,
    num_rows,
    num_outputs,
    eps,
    K: gl.constexpr,
    GROUPED: gl.constexpr,
    HAS_NORM: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
):
    """What follows the products, (rows, batch), and the store."""
    Y: gl.constexpr = y.type.layout
    rows = first + gl.arange(0, y.shape[0], gl.SliceLayout(1, Y))
    batch = gl.arange(0, y.shape[1], gl.SliceLayout(0, Y))
    at = batch[None, :].to(gl.int64) * num_outputs + rows[:, None]
    inside = (batch < num_rows)[None, :] & (rows < num_outputs)[:, None]
    held = gl.minimum(rows, num_outputs - 1)
    if not GROUPED:
        y *= gl.load(scales_ptr + held).to(gl.float32)[:, None]
        if GATED:
            up *= gl.load(scales_ptr + num_outputs + held).to(gl.float32)[:, None]
    if HAS_NORM:
        scale = (1.0 / gl.sqrt(squares / K + eps))[None, :]
        y *= scale
        if GATED:
            up *= scale
    if GATED:
        y = y / (1.0 + gl.exp(-y)) * up
    if HAS_BIAS:
        y += gl.load(bias_ptr + held).to(gl.float32)[:, None]
    if HAS_RESIDUAL:
        y += gl.load(residual_ptr + at, mask=inside, other=0.0).to(gl.float32)
    gl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
