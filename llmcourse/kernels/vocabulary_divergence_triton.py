"""The kernels of `vocabulary_divergence`: a program for each row of logits, which it goes through twice.

The first time it makes both log-sum-exps, and with them what a KL divergence needs: each of its lanes keeps
an online softmax of its own, and they are joined at the end, so that the loop waits for memory and for
nothing else. The second time it writes dL/dz in place of z, from the row's end to its beginning: what was
read last is the likeliest to lie in the cache still. Jensen–Shannon needs both log-sum-exps before it can add
up anything, and takes one more round in between.

Logits are in base 2 and already over the temperature.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.online_softmax_triton import join
from llmcourse.kernels.vocabulary_divergence import Objective

# One program of so many warps fills a multiprocessor: the rows that all of them are at, half a megabyte each,
# then nearly fit the cache of 50 MB, and those of two would not.
WARPS, LANES, REPEATS, STAGES = 16, 4096, 2, 3
SCALED = 4096  # numbers of a program that scales
LN2, LOG2E = tl.constexpr(math.log(2)), tl.constexpr(math.log2(math.e))


@triton.jit
def _load_logits(row_ptr, start, columns, stride, to_bits, LANES: tl.constexpr, REPEATS: tl.constexpr):
    """A tile of a row in fp32, its places, and which are tokens; those beyond the last weigh nothing."""
    at = start + tl.arange(0, LANES)[:, None] + tl.arange(0, REPEATS)[None, :] * LANES
    # The memory of a row goes on to `stride`, a multiple of 16; so this mask splits no load, and the other may.
    x = tl.load(row_ptr + at, mask=at < stride, other=0.0).to(tl.float32) * to_bits
    return tl.where(at < columns, x, float("-inf")), at


@triton.jit
def _shares_of_mixture(z, t, norm_z, norm_t, log_beta, log_rest):
    """(1 − β) q, β p, log2(q / m) and log2(p / m), by two exponentials and a logarithm.

    The larger of both shares is taken out, so that nothing is divided by what is rounded to 0.
    """
    of_p, of_q = t - norm_t + log_beta, z - norm_z + log_rest
    high = tl.maximum(of_p, of_q)
    ratio = tl.exp2(-tl.abs(of_p - of_q))
    more, log_m = tl.exp2(high), high + tl.log2(1.0 + ratio)
    less = more * ratio
    p_leads = of_p > of_q
    share_q, share_p = tl.where(p_leads, less, more), tl.where(p_leads, more, less)
    return share_q, share_p, of_q - log_rest - log_m, of_p - log_beta - log_m


@triton.jit
def _vocabulary_divergence_kernel(
    student_ptr,
    teacher_ptr,
    labels_ptr,
    losses_ptr,
    columns,
    student_stride,
    teacher_stride,
    temperature,
    soft_weight,
    hard_weight,
    log_beta,
    log_rest,
    ignore_index,
    KIND: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    HARD: tl.constexpr,
    AT_ONE: tl.constexpr,
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr,
    REPEATS: tl.constexpr,
    STAGES: tl.constexpr,
):
    TILE: tl.constexpr = LANES * REPEATS
    row = tl.program_id(0).to(tl.int64)
    z_ptr, t_ptr = student_ptr + row * student_stride, teacher_ptr + row * teacher_stride
    to_bits = LOG2E / temperature
    last = (tl.cdiv(columns, TILE) - 1) * TILE
    label = 0
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            tl.store(losses_ptr + row, 0.0)
            if GRADIENT:
                for start in range(0, columns, TILE):
                    at = start + tl.arange(0, TILE)
                    tl.store(z_ptr + at, 0.0, mask=at < student_stride)
            return
    known = (label >= 0) & (label < columns)
    z_label = tl.load(z_ptr + label, mask=known, other=float("nan")).to(tl.float32)

    peak_z = tl.full((LANES,), float("-inf"), tl.float32)
    peak_t = tl.full((LANES,), float("-inf"), tl.float32)
    sum_z = tl.zeros((LANES,), tl.float32)
    sum_t = tl.zeros((LANES,), tl.float32)
    sum_one = tl.zeros((LANES,), tl.float32)  # of 2^z at a temperature of 1
    gap = tl.zeros((LANES,), tl.float32)  # of log2(p / q) as KL weighs it, but for the norms
    for start in tl.range(0, columns, TILE, num_stages=STAGES):
        z, at = _load_logits(z_ptr, start, columns, student_stride, to_bits, LANES, REPEATS)
        t, at = _load_logits(t_ptr, start, columns, teacher_stride, to_bits, LANES, REPEATS)
        if HARD and not AT_ONE:
            known_peak = tl.maximum(peak_z, tl.max(z, axis=1))
            shift = tl.where(known_peak == float("-inf"), 0.0, known_peak)
            sum_one = sum_one * tl.exp2((peak_z - shift) * temperature)
            sum_one += tl.sum(tl.exp2((z - shift[:, None]) * temperature), axis=1)
        peak_z, sum_z, fade_z, share_z = join(z, peak_z, sum_z)
        peak_t, sum_t, fade_t, share_t = join(t, peak_t, sum_t)
        if KIND == "forward_kl":
            gap = gap * fade_t + tl.sum(share_t * tl.where(at < columns, t - z, 0.0), axis=1)
        if KIND == "reverse_kl":
            gap = gap * fade_z + tl.sum(share_z * tl.where(at < columns, z - t, 0.0), axis=1)

    top_z, top_t = tl.max(peak_z, axis=0), tl.max(peak_t, axis=0)
    part_z, part_t = tl.exp2(peak_z - top_z), tl.exp2(peak_t - top_t)
    total_z, total_t = tl.sum(sum_z * part_z, axis=0), tl.sum(sum_t * part_t, axis=0)
    norm_z, norm_t = top_z + tl.log2(total_z), top_t + tl.log2(total_t)
    norm_one = norm_z
    if HARD and not AT_ONE:
        part_one = tl.exp2((peak_z - top_z) * temperature)
        norm_one = top_z * temperature + tl.log2(tl.sum(sum_one * part_one, axis=0))

    middle = 0.0  # what the gradient subtracts: D of reverse KL, S of Jensen–Shannon, in bits
    if KIND == "forward_kl":
        bits = tl.sum(gap * part_t, axis=0) / total_t - norm_t + norm_z
    elif KIND == "reverse_kl":
        bits = tl.sum(gap * part_z, axis=0) / total_z - norm_z + norm_t
        middle = bits
    else:
        of_q, of_p = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
        for back in tl.range(0, columns, TILE, num_stages=STAGES):
            z, at = _load_logits(z_ptr, last - back, columns, student_stride, to_bits, LANES, REPEATS)
            t, at = _load_logits(t_ptr, last - back, columns, teacher_stride, to_bits, LANES, REPEATS)
            q, p, log_q, log_p = _shares_of_mixture(z, t, norm_z, norm_t, log_beta, log_rest)
            of_q += tl.sum(tl.where(at < columns, q * log_q, 0.0), axis=1)
            of_p += tl.sum(tl.where(at < columns, p * log_p, 0.0), axis=1)
        bits = tl.sum(of_q, axis=0)
        middle = bits * tl.exp2(-log_rest)
        bits += tl.sum(of_p, axis=0)

    loss = soft_weight * temperature * temperature * bits * LN2
    if HARD:
        loss += hard_weight * (norm_one * LN2 - z_label)
    tl.store(losses_ptr + row, loss)
    if GRADIENT:
        soft = soft_weight * temperature
        for step in tl.range(0, columns, TILE, num_stages=STAGES):
            start = step if KIND == "jensen_shannon" else last - step
            z, at = _load_logits(z_ptr, start, columns, student_stride, to_bits, LANES, REPEATS)
            t, at = _load_logits(t_ptr, start, columns, teacher_stride, to_bits, LANES, REPEATS)
            if KIND == "forward_kl":
                grad = soft * (tl.exp2(z - norm_z) - tl.exp2(t - norm_t))
            elif KIND == "reverse_kl":
                log_ratio = (z - norm_z) - (t - norm_t)
                grad = soft * LN2 * tl.exp2(z - norm_z) * (log_ratio - middle)
            else:
                q, p, log_q, log_p = _shares_of_mixture(z, t, norm_z, norm_t, log_beta, log_rest)
                grad = soft * LN2 * q * (log_q - middle)
            if HARD:
                grad += hard_weight * (tl.exp2(z * temperature - norm_one) - tl.where(at == label, 1.0, 0.0))
            grad = tl.where(at < columns, grad, 0.0)
            tl.store(z_ptr + at, grad.to(student_ptr.dtype.element_ty), mask=at < student_stride)


@triton.jit
def _scale_kernel(x_ptr, out_ptr, scale_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=at < size)


def launch(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    losses: Tensor,
    objective: Objective,
    gradient: bool,
) -> None:
    """Writes the loss of each row, unweighted by how many there are, and its gradient over `student`.

    Args:
        student, teacher: logits (rows, V), whose rows lie in memory up to a multiple of 16 numbers.
        gradient: whether it is wanted; else the logits stay.
    """
    rows, columns = student.shape
    o, mixed = objective, objective.kind == "jensen_shannon"
    _vocabulary_divergence_kernel[(rows,)](
        student,
        teacher,
        losses if labels is None else labels,
        losses,
        columns,
        student.stride(0),
        teacher.stride(0),
        float(o.temperature),
        float(1 - o.hard_weight),
        float(o.hard_weight),
        math.log2(o.beta) if mixed else 0.0,
        math.log2(1 - o.beta) if mixed else 0.0,
        o.ignore_index,
        KIND=o.kind,
        HAS_LABELS=labels is not None,
        HARD=o.hard_weight > 0,
        AT_ONE=o.temperature == 1,
        GRADIENT=gradient,
        LANES=LANES,
        REPEATS=REPEATS,
        STAGES=STAGES,
        num_warps=WARPS,
    )


def scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x times a number on the device, multiplied in fp32; where it lies, if it keeps its dtype."""
    out = x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    if x.numel():
        _scale_kernel[(triton.cdiv(x.numel(), SCALED),)](x, out, scale, x.numel(), BLOCK=SCALED, num_warps=8)
    return out
