"""The kernel of `rotate_and_store`: a program for each token, with all of its heads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.decode_attention import HeadNorm


# Slices of a step begin anywhere, and a kernel compiled for each alignment would keep requests waiting.
@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slot_mapping_ptr"])
def _rotate_and_store_kernel(
    qkv_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    slot_mapping_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    out_ptr,
    eps,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < H + 2 * HKV) & (d < HALF)
    is_q, is_k = head < H, (head >= H) & (head < H + HKV)

    # Features i and i + D / 2 are a pair: all first halves are one tile, all second halves another.
    at = qkv_ptr + token * (H + 2 * HKV) * D + head * D + d
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + token)
    cos = tl.load(cos_ptr + position * HALF + d, mask=d < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + position * HALF + d, mask=d < HALF, other=0.0).to(tl.float32)
    a, b = first, second
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(a * a + b * b, axis=1) / D + eps)[:, None]
        q_first, q_second = _halves(q_norm_ptr, d, HALF)
        k_first, k_second = _halves(k_norm_ptr, d, HALF)
        a *= scale * tl.where(is_q, q_first, k_first)
        b *= scale * tl.where(is_q, q_second, k_second)
    turned = is_q | is_k  # values stay as they are
    first = tl.where(turned, a * cos - b * sin, first)
    second = tl.where(turned, b * cos + a * sin, second)

    kind = out_ptr.dtype.element_ty
    to = out_ptr + token * H * D + head * D + d
    tl.store(to, first.to(kind), mask=inside & is_q)
    tl.store(to + HALF, second.to(kind), mask=inside & is_q)
    slot = tl.load(slot_mapping_ptr + token)
    if slot >= 0:
        kv_head = tl.where(is_k, head - H, head - H - HKV)
        place = ((slot // SIZE * HKV + kv_head) * SIZE + slot % SIZE) * D + d
        is_v = inside & (head >= H + HKV)
        tl.store(keys_ptr + place, first.to(kind), mask=inside & is_k)
        tl.store(keys_ptr + place + HALF, second.to(kind), mask=inside & is_k)
        tl.store(values_ptr + place, first.to(kind), mask=is_v)
        tl.store(values_ptr + place + HALF, second.to(kind), mask=is_v)


@triton.jit
def _halves(norm_ptr, d, HALF: tl.constexpr):
    """The gains of both features of each pair."""
    first = tl.load(norm_ptr + d, mask=d < HALF, other=0.0).to(tl.float32)
    return first, tl.load(norm_ptr + HALF + d, mask=d < HALF, other=0.0).to(tl.float32)


def launch(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
    out: Tensor,
) -> None:
    if len(qkv) == 0:
        return
    _, num_heads, head_dim = out.shape
    _, num_kv_heads, size, _ = keys.shape
    gains = (qkv, qkv) if norm is None else (norm.q, norm.k)  # without a norm never read
    _rotate_and_store_kernel[(len(qkv),)](
        qkv,
        keys,
        values,
        positions,
        slot_mapping,
        cos,
        sin,
        *gains,
        out,
        0.0 if norm is None else norm.eps,
        H=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        SIZE=size,
        BLOCK_H=triton.next_power_of_2(num_heads + 2 * num_kv_heads),
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        NORM=norm is not None,
        num_warps=4,
    )
