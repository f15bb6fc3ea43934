"""The kernels of `drawn_drafts`: what both softmaxes add up to and which drafts stand, then the next token.

Softmaxes are never stored. With the largest logit of all and the log of the sum over the others' distance to
it, log p(x) = (logit(x) − largest) / temperature − log Σ exp is computed where it is asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.drafts_triton import settle_row
from llmcourse.kernels.drawn_drafts import NO_EXCESS, VerdictMemory
from llmcourse.kernels.tokens import CHUNK, Choice
from llmcourse.kernels.tokens_triton import best_of_chunks, gumbel, random_stream

# Drafts took their noise from the same streams, with tokens as counters, and no vocabulary comes up to here.
NEXT_TOKEN = 1 << 30  # and on: noise of the token after the drafts
ACCEPTANCE = NEXT_TOKEN - 1  # what decides on a draft


@triton.jit
def _peak_and_sum(logits, inverse_temperature):
    """The largest, and the sum of exp((logit − largest) / temperature): 0 where all are −inf."""
    peak = tl.max(logits, axis=0)
    distance = logits - tl.where(peak == float("-inf"), 0.0, peak)
    return peak, tl.sum(tl.exp(distance * inverse_temperature), axis=0)


@triton.jit
def _peak_and_log_sum(peaks, sums, inverse_temperature):
    """The same over the chunks of each row, (rows, chunks) to (rows), the sum by its log."""
    peak = tl.max(peaks, axis=1)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    return peak, tl.log(tl.sum(sums * tl.exp((peaks - peak[:, None]) * inverse_temperature), axis=1))


@triton.jit
def _verify_kernel(
    logits_ptr,
    draft_logits_ptr,
    text_ptr,
    positions_ptr,
    sums_ptr,
    normalizers_ptr,
    num_accepted_ptr,
    arrivals_ptr,
    inverse_temperature_ptr,
    seed_ptr,
    vocab_size,
    stride,
    T: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    COUNTER: tl.constexpr,
):
    """Grid (B · T, chunks): sums over each chunk; the program of a row that is last verifies its drafts."""
    place, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, t = place // T, place % T
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held = tokens < vocab_size
    inverse_temperature = tl.load(inverse_temperature_ptr)
    target = tl.load(logits_ptr + place * vocab_size + tokens, mask=held, other=float("-inf"))
    draft_row = draft_logits_ptr + (row * (T - 1) + t) * vocab_size
    draft = tl.load(draft_row + tokens, mask=held & (t < T - 1), other=float("-inf"))
    peak, total = _peak_and_sum(target.to(tl.float32), inverse_temperature)
    draft_peak, draft_total = _peak_and_sum(draft.to(tl.float32), inverse_temperature)
    sums = sums_ptr + (place * CHUNKS + chunk) * 4
    tl.store(sums, peak)
    tl.store(sums + 1, total)
    tl.store(sums + 2, draft_peak)
    tl.store(sums + 3, draft_total)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") != T * CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)

    ts, chunks = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_CHUNKS)
    at = sums_ptr + ((row * T + ts)[:, None] * CHUNKS + chunks[None, :]) * 4
    inside = (ts < T)[:, None] & (chunks < CHUNKS)[None, :]
    peaks = tl.load(at, mask=inside, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(at + 1, mask=inside, other=0.0, cache_modifier=".cg")
    draft_peaks = tl.load(at + 2, mask=inside, other=float("-inf"), cache_modifier=".cg")
    draft_totals = tl.load(at + 3, mask=inside, other=0.0, cache_modifier=".cg")
    peak, log_sum = _peak_and_log_sum(peaks, totals, inverse_temperature)
    draft_peak, draft_log_sum = _peak_and_log_sum(draft_peaks, draft_totals, inverse_temperature)

    begin, drafted = tl.load(positions_ptr + row) - (T - 1), ts < T - 1
    drafts = tl.load(text_ptr + row * stride + begin + 1 + ts, mask=drafted, other=0)
    target = tl.load(logits_ptr + (row * T + ts) * vocab_size + drafts, mask=drafted, other=0.0)
    draft = tl.load(draft_logits_ptr + (row * (T - 1) + ts) * vocab_size + drafts, mask=drafted, other=0.0)
    p = tl.exp((target.to(tl.float32) - peak) * inverse_temperature - log_sum)
    q = tl.exp((draft.to(tl.float32) - draft_peak) * inverse_temperature - draft_log_sum)
    uniform = tl.rand(random_stream(tl.load(seed_ptr), row, begin + ts), tl.zeros_like(ts) + COUNTER)
    num_accepted = tl.min(tl.where((uniform * q < p) & drafted, BLOCK_T, ts), axis=0)
    tl.store(num_accepted_ptr + row, num_accepted)
    here, normalizers = ts == num_accepted, normalizers_ptr + row * 4
    tl.store(normalizers, tl.sum(tl.where(here, peak, 0.0), axis=0))
    tl.store(normalizers + 1, tl.sum(tl.where(here, log_sum, 0.0), axis=0))
    tl.store(normalizers + 2, tl.sum(tl.where(here, draft_peak, 0.0), axis=0))
    tl.store(normalizers + 3, tl.sum(tl.where(here, draft_log_sum, 0.0), axis=0))


@triton.jit
def _next_token_kernel(
    logits_ptr,
    draft_logits_ptr,
    text_ptr,
    positions_ptr,
    report_ptr,
    normalizers_ptr,
    num_accepted_ptr,
    peaks_ptr,
    tokens_ptr,
    arrivals_ptr,
    inverse_temperature_ptr,
    seed_ptr,
    vocab_size,
    stride,
    last,
    T: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    COUNTER: tl.constexpr,
    NO_EXCESS: tl.constexpr,
):
    """Grid (B, chunks): the best of each chunk under noise; the program of a row that is last appends it."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    accepted = tl.load(num_accepted_ptr + row)
    begin = tl.load(positions_ptr + row) - (T - 1)
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held, fell = tokens < vocab_size, accepted < T - 1
    inverse_temperature, normalizers = tl.load(inverse_temperature_ptr), normalizers_ptr + row * 4
    target = tl.load(logits_ptr + (row * T + accepted) * vocab_size + tokens, mask=held, other=float("-inf"))
    draft_row = draft_logits_ptr + (row * (T - 1) + accepted) * vocab_size
    draft = tl.load(draft_row + tokens, mask=held & fell, other=float("-inf"))
    log_p = (target.to(tl.float32) - tl.load(normalizers)) * inverse_temperature - tl.load(normalizers + 1)
    log_q = (draft.to(tl.float32) - tl.load(normalizers + 2)) * inverse_temperature
    log_q -= tl.where(fell, tl.load(normalizers + 3), 0.0)  # behind the last draft q is 0
    excess = tl.exp(log_p) - tl.exp(log_q)
    scores = tl.where(excess > 0.0, tl.log(tl.where(excess > 0.0, excess, 1.0)), log_p + NO_EXCESS)
    scores += gumbel(random_stream(tl.load(seed_ptr), row, begin + accepted), COUNTER + tokens)
    scores = tl.where(scores != scores, float("inf"), scores)  # see `tokens_triton`
    scores = tl.where(held, scores, float("-inf"))
    tl.store(peaks_ptr + row * CHUNKS + chunk, tl.max(scores, axis=0))
    tl.store(tokens_ptr + row * CHUNKS + chunk, chunk * CHUNK_SIZE + tl.argmax(scores, axis=0))
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") != CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)
    token = best_of_chunks(peaks_ptr, tokens_ptr, row, CHUNKS, BLOCK_CHUNKS)
    settle_row(token, accepted, begin, row, text_ptr, positions_ptr, report_ptr, stride, last, T, BLOCK_T)


def launch(
    logits: Tensor,
    draft_logits: Tensor,
    text: Tensor,
    positions: Tensor,
    last: int,
    report: Tensor,
    choice: Choice,
    memory: VerdictMemory,
) -> None:
    batch, num_tokens, vocab_size = logits.shape
    sizes = {
        "T": num_tokens,
        "CHUNKS": choice.num_chunks,
        "BLOCK_T": triton.next_power_of_2(num_tokens),
        "BLOCK_CHUNKS": triton.next_power_of_2(choice.num_chunks),
        "CHUNK_SIZE": CHUNK,
        "num_warps": 8,
    }
    _verify_kernel[(batch * num_tokens, choice.num_chunks)](
        logits,
        draft_logits,
        text,
        positions,
        memory.sums,
        memory.normalizers,
        memory.num_accepted,
        memory.arrivals,
        choice.inverse_temperature,
        choice.noise_seed,
        vocab_size,
        text.stride(0),
        COUNTER=ACCEPTANCE,
        **sizes,
    )
    _next_token_kernel[(batch, choice.num_chunks)](
        logits,
        draft_logits,
        text,
        positions,
        report,
        memory.normalizers,
        memory.num_accepted,
        choice.peaks,
        choice.tokens,
        choice.arrivals,
        choice.inverse_temperature,
        choice.noise_seed,
        vocab_size,
        text.stride(0),
        last,
        COUNTER=NEXT_TOKEN,
        NO_EXCESS=NO_EXCESS,
        **sizes,
    )
