"""The kernels of `draft_trees`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.draft_trees import PathMemory
from llmcourse.kernels.drafts_triton import best_tokens, note_best_of_chunk
from llmcourse.kernels.tokens import CHUNK, Choice
from llmcourse.kernels.tree_mask import TreeMask


@triton.jit
def _settle_tree_kernel(
    logits_ptr,
    text_ptr,
    positions_ptr,
    sees_ptr,
    depths_ptr,
    report_ptr,
    sources_ptr,
    best_ptr,
    peaks_ptr,
    tokens_ptr,
    arrivals_ptr,
    vocab_size,
    stride,
    last,
    depth,
    T: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
):
    """Grid (B · T, chunks): the largest logit of each chunk; the program of a row that is last decides."""
    place, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = place // T
    note_best_of_chunk(logits_ptr, peaks_ptr, tokens_ptr, place, chunk, vocab_size, CHUNKS, CHUNK_SIZE)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") != T * CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)

    t = tl.arange(0, BLOCK_T)
    best = best_tokens(peaks_ptr, tokens_ptr, row, T, CHUNKS, BLOCK_T, BLOCK_CHUNKS)
    tl.store(best_ptr + row * T + t, best, mask=t < T)

    # The longest path that stands: each of its nodes is the best token after its parent, the last it sees.
    begin = tl.load(positions_ptr + row) - (T - 1)
    nodes = tl.load(text_ptr + row * stride + begin + t, mask=t < T, other=-1)
    sees = tl.load(sees_ptr + t[:, None] * T + t[None, :], mask=(t < T)[:, None] & (t < T)[None, :], other=0)
    parents = tl.max(tl.where((sees != 0) & (t[None, :] < t[:, None]), t[None, :], 0), axis=1)
    tl.debug_barrier()  # all threads have stored what each now looks for at its parent
    follows = (t == 0) | (nodes == tl.load(best_ptr + row * T + parents, mask=t < T, other=-2))
    missing = tl.sum(((sees != 0) & ~follows[None, :]).to(tl.int32), axis=1)
    depths = tl.load(depths_ptr + t, mask=t < T, other=0).to(tl.int32)
    end = tl.argmax(tl.where((missing == 0) & (t < T), depths, -1), axis=0)
    gained = tl.sum(tl.where(t == end, depths, 0), axis=0) + 1
    token = tl.sum(tl.where(t == end, best, 0), axis=0)

    on_path = tl.load(sees_ptr + end * T + t, mask=t < T, other=0) != 0
    tl.store(text_ptr + row * stride + begin + depths, nodes, mask=on_path)
    tl.store(sources_ptr + row * (depth + 1) + depths, begin + t, mask=on_path)
    tl.store(report_ptr + row * (depth + 2) + depths, nodes, mask=on_path & (t > 0))
    tl.store(text_ptr + row * stride + begin + gained, token)
    tl.store(report_ptr + row * (depth + 2) + gained, token)
    tl.store(report_ptr + row * (depth + 2), gained.to(tl.int64))
    tl.store(positions_ptr + row, tl.minimum(begin + gained, last))


@triton.jit
def _keep_path_kernel(
    keys_ptr,
    values_ptr,
    report_ptr,
    sources_ptr,
    batch,
    width,
    depth,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (layers · B · Hkv): all of a head's path is loaded before any of it is stored."""
    row = tl.program_id(0) // HKV % batch
    count = tl.load(report_ptr + row * (depth + 2))
    i, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    begin = tl.load(sources_ptr + row * (depth + 1))
    sources = tl.load(sources_ptr + row * (depth + 1) + i, mask=i < count, other=0)
    head = tl.program_id(0).to(tl.int64) * width
    moved = ((i < count) & (sources != begin + i))[:, None] & (d < D)[None, :]
    at = (head + sources)[:, None] * D + d[None, :]
    k, v = tl.load(keys_ptr + at, mask=moved), tl.load(values_ptr + at, mask=moved)
    tl.debug_barrier()
    to = (head + begin + i)[:, None] * D + d[None, :]
    tl.store(keys_ptr + to, k, mask=moved)
    tl.store(values_ptr + to, v, mask=moved)


@triton.jit
def _path_end_kernel(
    hidden_ptr,
    report_ptr,
    sources_ptr,
    norm_ptr,
    out_ptr,
    num_tokens,
    depth,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (B): the row of the path's last node stays in registers between the norm's two uses."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(report_ptr + row * (depth + 2))
    sources = sources_ptr + row * (depth + 1)
    node = tl.load(sources + count - 1) - tl.load(sources)
    column = tl.arange(0, BLOCK)
    inside = column < C
    gain = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(hidden_ptr + (row * num_tokens + node) * C + column, mask=inside, other=0.0).to(tl.float32)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / C + eps)) * gain
    tl.store(out_ptr + row * C + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_settle(
    logits: Tensor,
    text: Tensor,
    positions: Tensor,
    last: int,
    tree: TreeMask,
    memory: PathMemory,
    choice: Choice,
) -> None:
    batch, num_tokens, vocab_size = logits.shape
    _settle_tree_kernel[(batch * num_tokens, choice.num_chunks)](
        logits,
        text,
        positions,
        tree.sees.view(torch.uint8),
        tree.depths,
        memory.report,
        memory.sources,
        memory.best,
        choice.peaks,
        choice.tokens,
        choice.arrivals,
        vocab_size,
        text.stride(0),
        last,
        memory.sources.shape[1] - 1,
        T=num_tokens,
        CHUNKS=choice.num_chunks,
        BLOCK_T=triton.next_power_of_2(num_tokens),
        BLOCK_CHUNKS=triton.next_power_of_2(choice.num_chunks),
        CHUNK_SIZE=CHUNK,
        num_warps=8,
    )


def launch_keep(keys: Tensor, values: Tensor, memory: PathMemory) -> None:
    num_layers, batch, num_kv_heads, width, head_dim = keys.shape
    depth = memory.sources.shape[1] - 1
    _keep_path_kernel[(num_layers * batch * num_kv_heads,)](
        keys,
        values,
        memory.report,
        memory.sources,
        batch,
        width,
        depth,
        HKV=num_kv_heads,
        D=head_dim,
        BLOCK=triton.next_power_of_2(depth + 1),
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=4,
    )


def launch_end(hidden: Tensor, memory: PathMemory, norm: Tensor, eps: float, out: Tensor) -> None:
    batch, size = out.shape
    block = triton.next_power_of_2(size)
    _path_end_kernel[(batch,)](
        hidden,
        memory.report,
        memory.sources,
        norm,
        out,
        memory.best.shape[1],
        memory.sources.shape[1] - 1,
        eps,
        C=size,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 8),
    )
