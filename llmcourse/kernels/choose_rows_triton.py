"""The kernels of `choose_rows`: the best of each chunk of the vocabulary, then the best of those."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.choose_rows import BROKEN
from llmcourse.kernels.tokens_triton import gumbel

CHUNK = 4096  # logits that one program looks at; twice as many take twice the registers


@triton.jit
def request_stream(seed, position):
    """The seed of random numbers that a request uses at this position alone, whatever it is batched with."""
    return seed * 2654435761 + position


@triton.jit
def _best_of_chunk_kernel(
    logits_ptr,
    temperatures_ptr,
    seeds_ptr,
    positions_ptr,
    peaks_ptr,
    tokens_ptr,
    vocab_size,
    CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    real = token < vocab_size
    scores = tl.load(logits_ptr + row * vocab_size + token, mask=real, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures_ptr + row)
    if temperature > 0:
        noise = gumbel(request_stream(tl.load(seeds_ptr + row), tl.load(positions_ptr + row)), token)
        scores = tl.where(real, scores / temperature + noise, float("-inf"))
    # NaN is neither above nor below another number and may be lost among them; infinity is found.
    scores = tl.where(scores != scores, float("inf"), scores)
    peak, at = tl.max(scores, axis=0, return_indices=True)
    tl.store(peaks_ptr + row * CHUNKS + chunk, peak)
    tl.store(tokens_ptr + row * CHUNKS + chunk, chunk * CHUNK_SIZE + at)


@triton.jit
def _best_of_row_kernel(
    peaks_ptr, tokens_ptr, out_ptr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, NONE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    peaks = tl.load(peaks_ptr + row * CHUNKS + chunk, mask=chunk < CHUNKS, other=float("-inf"))
    peak, best = tl.max(peaks, axis=0, return_indices=True)
    token = tl.load(tokens_ptr + row * CHUNKS + best).to(tl.int64)
    finite = (peak > float("-inf")) & (peak < float("inf"))
    tl.store(out_ptr + row, tl.where(finite, token, NONE))


def launch(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    rows, vocab_size = logits.shape
    chunks = triton.cdiv(vocab_size, CHUNK)
    out = torch.empty(rows, dtype=torch.long, device=logits.device)
    peaks = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    if rows:
        _best_of_chunk_kernel[(rows, chunks)](
            logits,
            temperatures,
            seeds,
            positions,
            peaks,
            tokens,
            vocab_size,
            CHUNKS=chunks,
            CHUNK_SIZE=CHUNK,
            num_warps=8,
        )
        block = triton.next_power_of_2(chunks)
        _best_of_row_kernel[(rows,)](peaks, tokens, out, CHUNKS=chunks, BLOCK=block, NONE=BROKEN, num_warps=1)
    return out
