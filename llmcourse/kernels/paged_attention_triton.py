"""The kernels of `paged_attention`: grid (R · tiles of new tokens · Hkv, splits).

One program takes a tile of a request's new tokens with all query heads that share a key/value head, so that
every key is read once for them; row i of the tile is token i // G, head i % G. Programs begin in the order
of the requests, each with all of its heads: who puts the longest first leaves no long program for the end.
Grids depend on the largest batch alone and lengths are read on the device: so a recorded graph serves every
batch that fits it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.decode_attention import Workspace
from llmcourse.kernels.decode_attention_triton import combine
from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.tiles import AttentionTile

TILE_ROWS = 64  # of new tokens times the heads of a group, at most; half of them where numbers take 4 bytes


@triton.jit(  # for numbers and slices that change from batch to batch, compiled once
    do_not_specialize=["most_blocks", "tiles"],
    do_not_specialize_on_alignment=["block_tables_ptr", "cu_seqlens_q_ptr", "seq_lens_ptr"],
)
def _paged_attention_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    block_tables_ptr,
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    out_ptr,
    peaks_ptr,
    weights_ptr,
    mixed_ptr,
    arrivals_ptr,
    most_blocks,
    tiles,
    scale,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
):
    G: tl.constexpr = H // HKV
    kv_head = tl.program_id(0) % HKV
    row = tl.program_id(0) // HKV // tiles
    begin = tl.program_id(0) // HKV % tiles * TOKENS
    split = tl.program_id(1)
    start = tl.load(cu_seqlens_q_ptr + row)
    num_new = tl.load(cu_seqlens_q_ptr + row + 1) - start
    if begin >= num_new:
        return
    length = tl.load(seq_lens_ptr + row)
    m = tl.arange(0, BLOCK_M)
    token = begin + m // G
    real = (m < TOKENS * G) & (token < num_new)
    seen = tl.where(real, length - num_new + token + 1, 0)  # keys that each row of the tile sees
    end = tl.max(seen, axis=0)
    span = tl.maximum(tl.cdiv(tl.cdiv(end, tl.num_programs(1)), BLOCK_S), 1) * BLOCK_S
    active = tl.maximum(tl.cdiv(end, span), 1)
    if split >= active:
        return
    first, last = split * span, tl.minimum(split * span + span, end)

    d = tl.arange(0, BLOCK_D)
    head = (start + token).to(tl.int64) * H + kv_head * G + m % G
    inside = real[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + head[:, None] * D + d[None, :], mask=inside, other=0.0)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for at in range(first, last, BLOCK_S):
        s = at + tl.arange(0, BLOCK_S)
        block = tl.load(block_tables_ptr + row * most_blocks + s // SIZE, mask=s < last, other=0).to(tl.int64)
        where = ((block * HKV + kv_head) * (SIZE * D) + s % SIZE * D)[:, None] + d[None, :]
        held = (s < last)[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + where, mask=held, other=0.0)
        v = tl.load(values_ptr + where, mask=held, other=0.0)
        scores = tl.dot(q, k.T, input_precision="ieee") * scale
        visible = (s[None, :] < seen[:, None]) & (s < last)[None, :]
        scores = tl.where(visible, scores, float("-inf"))
        peak, weight, fade, share = join(scores, peak, weight)
        mixed = tl.dot(share.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")

    if active == 1:
        weight = tl.where(real, weight, 1.0)  # rows that fill the tile up have seen nothing
        to = out_ptr + head[:, None] * D + d[None, :]
        tl.store(to, (mixed / weight[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
        return
    part = head * SPLITS + split
    tl.store(peaks_ptr + part, peak, mask=real)
    tl.store(weights_ptr + part, weight, mask=real)
    tl.store(mixed_ptr + part[:, None] * D + d[None, :], mixed, mask=inside)
    tl.debug_barrier()  # all threads have stored before one of them says so
    arrivals = arrivals_ptr + (start + begin) * HKV + kv_head
    if tl.atomic_add(arrivals, 1, sem="acq_rel") != active - 1:
        return
    tl.store(arrivals, 0)
    for at in range(begin, tl.minimum(begin + TOKENS, num_new)):
        member = (start + at) * H + kv_head * G
        combine(out_ptr, peaks_ptr, weights_ptr, mixed_ptr, member, active, G, D, BLOCK_D, SPLITS)


def launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_seqlen_q: int,
    scale: float,
    workspace: Workspace | None,
    out: Tensor,
    tile: AttentionTile,
) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, size = keys.shape[1:3]
    group = num_heads // num_kv_heads
    rows = TILE_ROWS if q.element_size() <= 2 else TILE_ROWS // 2
    tokens = min(max(1, rows // group), triton.next_power_of_2(max_seqlen_q))
    tiles = triton.cdiv(max_seqlen_q, tokens)
    splits, stride, parts = 1, 1, (out,) * 4  # never read without splits
    if workspace is not None:
        splits, stride = workspace.num_splits, workspace.stride
        parts = (workspace.peaks, workspace.weights, workspace.mixed, workspace.arrivals)
    if num_tokens == 0:
        return
    _paged_attention_kernel[(len(seq_lens) * tiles * num_kv_heads, splits)](
        q,
        keys,
        values,
        block_tables,
        cu_seqlens_q,
        seq_lens,
        out,
        *parts,
        block_tables.shape[1],
        tiles,
        scale,
        H=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        SIZE=size,
        TOKENS=tokens,
        BLOCK_M=max(16, triton.next_power_of_2(tokens * group)),
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_S=tile.block,
        SPLITS=stride,
        num_warps=tile.warps,
        num_stages=max(1, tile.stages),
    )
