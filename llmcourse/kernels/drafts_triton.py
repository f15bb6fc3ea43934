"""The kernels of `drafts`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import start_next, takes_part, wait_for_input
from llmcourse.kernels.tokens import CHUNK, Choice


@triton.jit
def _embed_window_kernel(
    text_ptr,
    positions_ptr,
    table_ptr,
    tokens_ptr,
    out_ptr,
    stride,
    T: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    wait_for_input(PDL)
    row, t = tl.program_id(0) // T, tl.program_id(0) % T
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions_ptr + row) - (T - 1) + t
    token = tl.load(text_ptr + row.to(tl.int64) * stride + position)
    values = tl.load(table_ptr + token * C + columns, mask=columns < C, other=0.0)
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * C + columns, values, mask=columns < C)
    tl.store(tokens_ptr + tl.program_id(0), token, mask=tl.program_id(1) == 0)


@triton.jit
def note_best_of_chunk(
    logits_ptr,
    peaks_ptr,
    tokens_ptr,
    place,
    chunk,
    vocab_size,
    CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
):
    """The largest logit of a chunk of the vocabulary, and its token."""
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held = tokens < vocab_size
    logits = tl.load(logits_ptr + place * vocab_size + tokens, mask=held, other=float("-inf")).to(tl.float32)
    logits = tl.where(logits != logits, float("inf"), logits)  # see `tokens_triton`
    tl.store(peaks_ptr + place * CHUNKS + chunk, tl.max(logits, axis=0))
    tl.store(tokens_ptr + place * CHUNKS + chunk, chunk * CHUNK_SIZE + tl.argmax(logits, axis=0))


@triton.jit
def best_tokens(
    peaks_ptr,
    tokens_ptr,
    row,
    T: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """The likeliest token at each of a row's T places, of what was noted for all chunks."""
    t, chunks = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_CHUNKS)
    at = (row * T + t)[:, None] * CHUNKS + chunks[None, :]
    inside = (t < T)[:, None] & (chunks < CHUNKS)[None, :]
    peaks = tl.load(peaks_ptr + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
    candidates = tl.load(tokens_ptr + at, mask=inside, other=0, cache_modifier=".cg")
    winner = tl.argmax(peaks, axis=1)
    best = tl.sum(tl.where(chunks[None, :] == winner[:, None], candidates, 0), axis=1).to(tl.int64)
    return best


@triton.jit
def _settle_greedy_kernel(
    logits_ptr,
    text_ptr,
    positions_ptr,
    report_ptr,
    peaks_ptr,
    tokens_ptr,
    arrivals_ptr,
    vocab_size,
    stride,
    last,
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
    begin = tl.load(positions_ptr + row) - (T - 1)
    drafts = tl.load(text_ptr + row * stride + begin + 1 + t, mask=t < T - 1, other=-1)
    accepted = tl.min(tl.where((best == drafts) & (t < T - 1), BLOCK_T, t), axis=0)
    token = tl.sum(tl.where(t == accepted, best, 0), axis=0)
    settle_row(token, accepted, begin, row, text_ptr, positions_ptr, report_ptr, stride, last, T, BLOCK_T)


@triton.jit
def settle_row(
    token,
    accepted,
    begin,
    row,
    text_ptr,
    positions_ptr,
    report_ptr,
    stride,
    last,
    T: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """`settle` of one row, whose last certain token is at `begin`: appends the token behind its drafts."""
    t = tl.arange(0, BLOCK_T)
    slots = text_ptr + row * stride + begin + 1 + t  # of the drafts, and of a token behind them
    told = tl.where(t == accepted, token, tl.load(slots, mask=t < T, other=0))
    tl.store(slots, told, mask=t == accepted)
    tl.store(report_ptr + row * (T + 1), accepted.to(tl.int64) + 1)
    tl.store(report_ptr + row * (T + 1) + 1 + t, told, mask=t < T)
    tl.store(positions_ptr + row, tl.minimum(begin + accepted + 1, last))


def launch_embed(
    text: Tensor, positions: Tensor, table: Tensor, tokens: Tensor, out: Tensor, pdl: bool
) -> None:
    # Starts when all before it has ended, as that of one token: see `tokens_triton`.
    size, block = table.shape[1], 1024
    _embed_window_kernel[(tokens.numel(), triton.cdiv(size, block))](
        text,
        positions,
        table,
        tokens,
        out,
        text.stride(0),
        T=tokens.shape[1],
        C=size,
        BLOCK=block,
        PDL=takes_part(pdl),
        num_warps=4,
    )


def launch_settle_greedy(
    logits: Tensor, text: Tensor, positions: Tensor, last: int, report: Tensor, choice: Choice
) -> None:
    batch, num_tokens, vocab_size = logits.shape
    _settle_greedy_kernel[(batch * num_tokens, choice.num_chunks)](
        logits,
        text,
        positions,
        report,
        choice.peaks,
        choice.tokens,
        choice.arrivals,
        vocab_size,
        text.stride(0),
        last,
        T=num_tokens,
        CHUNKS=choice.num_chunks,
        BLOCK_T=triton.next_power_of_2(num_tokens),
        BLOCK_CHUNKS=triton.next_power_of_2(choice.num_chunks),
        CHUNK_SIZE=CHUNK,
        num_warps=8,
    )
