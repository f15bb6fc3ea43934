"""The kernels of `drawn_drafts`: what both softmaxes add up to and which drafts stand, then the next token.

Softmaxes are never stored: p(x) = exp(logit(x) − log Σ exp) is computed where it is asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.drawn_drafts import NO_EXCESS, Verdicts
from llmcourse.kernels.tokens import CHUNK, Choice
from llmcourse.kernels.tokens_triton import gumbel, random_stream

# Drafts took their noise from the same streams, at the places of tokens. No vocabulary comes up to here.
CORRECTION = 1 << 30  # and on: noise of the token after the drafts
ACCEPTANCE = CORRECTION - 1  # what decides on a draft


@triton.jit
def _peak_and_sum(logits):
    """The largest, and Σ exp(logit − largest): 0 where all are −inf."""
    peak = tl.max(logits, axis=0)
    return peak, tl.sum(tl.exp(logits - tl.where(peak == float("-inf"), 0.0, peak)), axis=0)


@triton.jit
def _log_sum(peaks, sums):
    """log Σ exp over the chunks of each row, (rows, chunks) to (rows)."""
    peak = tl.max(peaks, axis=1)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    return shift + tl.log(tl.sum(sums * tl.exp(peaks - shift[:, None]), axis=1))


@triton.jit
def _judge_kernel(
    logits_ptr,
    draft_logits_ptr,
    text_ptr,
    positions_ptr,
    sums_ptr,
    log_sums_ptr,
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
    PLACE: tl.constexpr,
):
    """Grid (B · T, chunks): sums over each chunk; the program of a row that is last judges its drafts."""
    place, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, nth = place // T, place % T
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held = tokens < vocab_size
    inverse_temperature = tl.load(inverse_temperature_ptr)
    ours = tl.load(logits_ptr + place * vocab_size + tokens, mask=held, other=float("-inf"))
    drafted = draft_logits_ptr + (row * (T - 1) + nth) * vocab_size
    theirs = tl.load(drafted + tokens, mask=held & (nth < T - 1), other=float("-inf"))
    peak, total = _peak_and_sum(ours.to(tl.float32) * inverse_temperature)
    draft_peak, draft_total = _peak_and_sum(theirs.to(tl.float32) * inverse_temperature)
    sums = sums_ptr + (place * CHUNKS + chunk) * 4
    tl.store(sums, peak)
    tl.store(sums + 1, total)
    tl.store(sums + 2, draft_peak)
    tl.store(sums + 3, draft_total)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") != T * CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)

    t, chunks = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_CHUNKS)
    at = sums_ptr + ((row * T + t)[:, None] * CHUNKS + chunks[None, :]) * 4
    inside = (t < T)[:, None] & (chunks < CHUNKS)[None, :]
    peaks = tl.load(at, mask=inside, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(at + 1, mask=inside, other=0.0, cache_modifier=".cg")
    draft_peaks = tl.load(at + 2, mask=inside, other=float("-inf"), cache_modifier=".cg")
    draft_totals = tl.load(at + 3, mask=inside, other=0.0, cache_modifier=".cg")
    log_sum, draft_log_sum = _log_sum(peaks, totals), _log_sum(draft_peaks, draft_totals)

    begin, judged = tl.load(positions_ptr + row) - (T - 1), t < T - 1
    drafts = tl.load(text_ptr + row * stride + begin + 1 + t, mask=judged, other=0)
    ours = tl.load(logits_ptr + (row * T + t) * vocab_size + drafts, mask=judged, other=0.0)
    theirs = tl.load(draft_logits_ptr + (row * (T - 1) + t) * vocab_size + drafts, mask=judged, other=0.0)
    p = tl.exp(ours.to(tl.float32) * inverse_temperature - log_sum)
    q = tl.exp(theirs.to(tl.float32) * inverse_temperature - draft_log_sum)
    uniform = tl.rand(random_stream(tl.load(seed_ptr), row, begin + t), tl.zeros_like(t) + PLACE)
    num_accepted = tl.min(tl.where((uniform * q < p) & judged, BLOCK_T, t), axis=0)
    tl.store(num_accepted_ptr + row, num_accepted)
    here = t == num_accepted
    tl.store(log_sums_ptr + row * 2, tl.sum(tl.where(here, log_sum, 0.0), axis=0))
    tl.store(log_sums_ptr + row * 2 + 1, tl.sum(tl.where(here, draft_log_sum, 0.0), axis=0))


@triton.jit
def _go_on_kernel(
    logits_ptr,
    draft_logits_ptr,
    text_ptr,
    positions_ptr,
    report_ptr,
    log_sums_ptr,
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
    PLACE: tl.constexpr,
    WITHOUT_EXCESS: tl.constexpr,
):
    """Grid (B, chunks): the best of each chunk under noise; the program of a row that is last appends it."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    accepted = tl.load(num_accepted_ptr + row)
    begin = tl.load(positions_ptr + row) - (T - 1)
    tokens = chunk * CHUNK_SIZE + tl.arange(0, CHUNK_SIZE)
    held, fell = tokens < vocab_size, accepted < T - 1
    inverse_temperature = tl.load(inverse_temperature_ptr)
    ours = tl.load(logits_ptr + (row * T + accepted) * vocab_size + tokens, mask=held, other=float("-inf"))
    drafted = draft_logits_ptr + (row * (T - 1) + accepted) * vocab_size
    theirs = tl.load(drafted + tokens, mask=held & fell, other=float("-inf"))
    log_p = ours.to(tl.float32) * inverse_temperature - tl.load(log_sums_ptr + row * 2)
    draft_log_sum = tl.where(fell, tl.load(log_sums_ptr + row * 2 + 1), 0.0)
    excess = tl.exp(log_p) - tl.exp(theirs.to(tl.float32) * inverse_temperature - draft_log_sum)
    scores = tl.where(excess > 0.0, tl.log(tl.where(excess > 0.0, excess, 1.0)), log_p + WITHOUT_EXCESS)
    scores += gumbel(tl.load(seed_ptr), row, begin + accepted, PLACE + tokens)
    scores = tl.where(scores != scores, float("inf"), scores)  # see `tokens_triton`
    scores = tl.where(held, scores, float("-inf"))
    tl.store(peaks_ptr + row * CHUNKS + chunk, tl.max(scores, axis=0))
    tl.store(tokens_ptr + row * CHUNKS + chunk, chunk * CHUNK_SIZE + tl.argmax(scores, axis=0))
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") != CHUNKS - 1:
        return
    tl.store(arrivals_ptr + row, 0)

    chunks = tl.arange(0, BLOCK_CHUNKS)
    peaks = tl.load(
        peaks_ptr + row * CHUNKS + chunks, mask=chunks < CHUNKS, other=float("-inf"), cache_modifier=".cg"
    )
    token = tl.load(tokens_ptr + row * CHUNKS + tl.argmax(peaks, axis=0), cache_modifier=".cg").to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    slots = text_ptr + row * stride + begin + 1 + t
    told = tl.where(t == accepted, token, tl.load(slots, mask=t < T, other=0))
    tl.store(slots, told, mask=t == accepted)
    tl.store(report_ptr + row * (T + 1), accepted.to(tl.int64) + 1)
    tl.store(report_ptr + row * (T + 1) + 1 + t, told, mask=t < T)
    tl.store(positions_ptr + row, tl.minimum(begin + accepted + 1, last))


def launch(
    logits: Tensor,
    draft_logits: Tensor,
    text: Tensor,
    positions: Tensor,
    last: int,
    report: Tensor,
    choice: Choice,
    verdicts: Verdicts,
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
    _judge_kernel[(batch * num_tokens, choice.num_chunks)](
        logits,
        draft_logits,
        text,
        positions,
        verdicts.sums,
        verdicts.log_sums,
        verdicts.num_accepted,
        verdicts.arrivals,
        choice.inverse_temperature,
        choice.noise_seed,
        vocab_size,
        text.stride(0),
        PLACE=ACCEPTANCE,
        **sizes,
    )
    _go_on_kernel[(batch, choice.num_chunks)](
        logits,
        draft_logits,
        text,
        positions,
        report,
        verdicts.log_sums,
        verdicts.num_accepted,
        choice.peaks,
        choice.tokens,
        choice.arrivals,
        choice.inverse_temperature,
        choice.noise_seed,
        vocab_size,
        text.stride(0),
        last,
        PLACE=CORRECTION,
        WITHOUT_EXCESS=NO_EXCESS,
        **sizes,
    )
