"""The kernels of `tokens`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import start_next, takes_part, wait_for_input
from llmcourse.kernels.tokens import CHUNK, Choice


@triton.jit
def _embed_kernel(
    text_ptr,
    positions_ptr,
    table_ptr,
    out_ptr,
    stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    start_next(PDL)
    wait_for_input(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions_ptr + row)
    token = tl.load(text_ptr + row * stride + position).to(tl.int64)
    values = tl.load(table_ptr + token * C + columns, mask=columns < C, other=0.0)
    tl.store(out_ptr + row * C + columns, values, mask=columns < C)


@triton.jit
def random_stream(seed, row, position):
    """The seed of random numbers that are used at this position alone."""
    return seed + (position * 65536 + row).to(tl.int64) * 2654435761


@triton.jit
def gumbel(stream, counters):
    """Gumbel's noise, a number for each counter of the stream: −log E, with E = −log(1 − u) exponential.

    It is the large noise that chooses unlikely tokens, and it comes from small E. There fp32 tells uniform
    numbers apart to 2⁻³¹; near 1, where −log u would take them from, only to 2⁻²⁴. For E ≈ u the logarithm of
    1 − u would throw that away again, so its series stands in for it.
    """
    uniform = tl.maximum(tl.rand(stream, counters), 2.0**-32)
    series = uniform * (1.0 + uniform * (0.5 + uniform * (1.0 / 3.0)))
    return -tl.log(tl.where(uniform < 1e-3, series, -tl.log(1.0 - uniform)))


@triton.jit
def best_of_chunks(peaks_ptr, tokens_ptr, row, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr):
    """The token of the chunk with the largest peak, as other programs have left them."""
    chunks = tl.arange(0, BLOCK_CHUNKS)
    peaks = tl.load(
        peaks_ptr + row * CHUNKS + chunks, mask=chunks < CHUNKS, other=float("-inf"), cache_modifier=".cg"
    )
    return tl.load(tokens_ptr + row * CHUNKS + tl.argmax(peaks, axis=0), cache_modifier=".cg").to(tl.int64)


@triton.jit
def _choose_kernel(
    logits_ptr,
    text_ptr,
    positions_ptr,
    peaks_ptr,
    tokens_ptr,
    arrivals_ptr,
    kept_ptr,
    vocab_size,
    logits_stride,
    stride,
    kept_stride,
    inverse_temperature_ptr,
    seed_ptr,
    CHUNKS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    SAMPLED: tl.constexpr,
    KEPT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    position = tl.load(positions_ptr + row)
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=tokens < vocab_size, other=float("-inf"))
    if KEPT:
        tl.store(kept_ptr + row * kept_stride + tokens, logits, mask=tokens < vocab_size)
    logits = logits.to(tl.float32)
    if SAMPLED:
        noise = gumbel(random_stream(tl.load(seed_ptr), row, position), tokens)
        logits = logits * tl.load(inverse_temperature_ptr) + noise
        logits = tl.where(tokens < vocab_size, logits, float("-inf"))
    # NaN is neither above nor below another number, so that among NaN argmax may end on a place of the last
    # chunk that is no token: the next step would look it up beyond the end of the table.
    logits = tl.where(logits != logits, float("inf"), logits)
    best = tl.argmax(logits, axis=0)
    tl.store(peaks_ptr + row * CHUNKS + chunk, tl.max(logits, axis=0))
    tl.store(tokens_ptr + row * CHUNKS + chunk, chunk * CHUNK_SIZE + best)
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel")
    if arrived != CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)
    token = best_of_chunks(peaks_ptr, tokens_ptr, row, CHUNKS, BLOCK_CHUNKS)
    tl.store(text_ptr + row * stride + position + 1, token.to(text_ptr.dtype.element_ty))
    tl.store(positions_ptr + row, position + 1)


def launch_embed(text: Tensor, positions: Tensor, table: Tensor, out: Tensor, pdl: bool) -> None:
    # Lets the next kernel start early, but itself starts when all before it has ended: behind it kernels may
    # read positions and old keys without waiting.
    size, block = table.shape[1], 1024
    _embed_kernel[(len(positions), triton.cdiv(size, block))](
        text, positions, table, out, text.stride(0), C=size, BLOCK=block, PDL=takes_part(pdl), num_warps=4
    )


def launch_choose(
    logits: Tensor, text: Tensor, positions: Tensor, choice: Choice, keep: Tensor | None
) -> None:
    batch, vocab_size = logits.shape
    _choose_kernel[(batch, choice.num_chunks)](
        logits,
        text,
        positions,
        choice.peaks,
        choice.tokens,
        choice.arrivals,
        logits if keep is None else keep,
        vocab_size,
        logits.stride(0),
        text.stride(0),
        0 if keep is None else keep.stride(0),
        choice.inverse_temperature,
        choice.noise_seed,
        CHUNKS=choice.num_chunks,
        BLOCK_CHUNKS=triton.next_power_of_2(choice.num_chunks),
        CHUNK_SIZE=CHUNK,
        SAMPLED=choice.sampled,
        KEPT=keep is not None,
        num_warps=8,
    )
