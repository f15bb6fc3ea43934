"""The kernels of `vocabulary_divergence`: a program for each row of logits, which it goes through twice.

The first time it makes both log-sum-exps, and with them what a KL divergence needs: each of its lanes keeps
an online softmax of its own, and they are joined at the end, so that the loop waits for memory and for
nothing else. The second time it writes dL/dz in place of z, from the row's end to its beginning: what was
read last is the likeliest to lie in the cache still. Jensen–Shannon needs both log-sum-exps before it can add
up anything, and takes one more round in between.

A logit x counts as 2^((x − top) · to_bits), to_bits = log2(e) / T. The largest logit is subtracted before
anything is multiplied, which is exact or nearly so where x is close to it. Multiplied first, both would be
rounded at the size of the logits, and by a compiler that rounds product and difference together only one of
them: where logits are hundreds, 2^(±2⁻¹⁶) would be left of the largest instead of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.arguments import check_power_of_2, check_warps, is_count
from llmcourse.kernels.backend import interpreted
from llmcourse.kernels.divergence_arguments import Objective

SCALED = 4096  # numbers of a program that scales
LN2, LOG2E = tl.constexpr(math.log(2)), tl.constexpr(math.log2(math.e))
# In place of a logit where there is none: less than any, yet its difference from itself is 0 and no NaN.
LOWEST = tl.constexpr(-(2.0**96))


@dataclass(frozen=True)
class RowTile:
    """How a program goes through a row: `lanes` · `repeats` logits at a time, `stages` times on their way.

    A lane has its logits in the registers of one thread if there are at most 16 bytes of them to a load, and
    meets no other lane before the end.

    Raises:
        ValueError: numbers that no program can have.
    """

    warps: int
    lanes: int
    repeats: int
    stages: int

    def __post_init__(self):
        check_warps(self.warps)
        check_power_of_2("lanes", self.lanes, 16)
        check_power_of_2("repeats", self.repeats)
        if not is_count(self.stages):
            raise ValueError(f"stages must be an integer of at least 1, got {self.stages!r}; take 1")


def row_tile(item_bytes: int) -> RowTile:
    """One program fills a multiprocessor, and each of its threads loads 16 bytes at a time.

    So as many rows are under way as there are multiprocessors, half a megabyte each in 16 bits for 128k
    tokens, and their second reading finds a good part of them in a cache of 50 MB; of twice as many it would
    find next to nothing.
    """
    return RowTile(warps=16, lanes=8192 // item_bytes, repeats=2, stages=3)


@triton.jit
def _load_logits(row_ptr, start, columns, stride, LANES: tl.constexpr, REPEATS: tl.constexpr):
    """A tile of a row in fp32, and its places; beyond the last token it holds `LOWEST`."""
    at = start + tl.arange(0, LANES)[:, None] + tl.arange(0, REPEATS)[None, :] * LANES
    # The memory of a row goes on to `stride`, a multiple of 16: this mask splits no load, as the other would.
    x = tl.load(row_ptr + at, mask=at < stride, other=0.0).to(tl.float32)
    return tl.where(at < columns, x, LOWEST), at


@triton.jit
def _join(x, peak, total, to_bits):
    """What `online_softmax_triton.join` says, each lane for itself, of logits that are all finite."""
    new_peak = tl.maximum(peak, tl.max(x, axis=1))
    fade = tl.exp2((peak - new_peak) * to_bits)
    share = tl.exp2((x - new_peak[:, None]) * to_bits)
    return new_peak, total * fade + tl.sum(share, axis=1), fade, share


@triton.jit
def _log2(x, FAST: tl.constexpr):
    """log2 of numbers in [1, 2]: by the chip's own, right to 2⁻²², where Triton's takes 20 instructions."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def _shares_of_mixture(log_q, log_p, log_beta, log_rest, FAST: tl.constexpr):
    """(1 − β) q, β p, log2(q / m) and log2(p / m), by two exponentials and a logarithm.

    The larger of both shares is taken out, so that nothing is divided by what is rounded to 0.
    """
    of_q, of_p = log_q + log_rest, log_p + log_beta
    high = tl.maximum(of_p, of_q)
    ratio = tl.exp2(-tl.abs(of_p - of_q))
    more, log_m = tl.exp2(high), high + _log2(1.0 + ratio, FAST)
    less = more * ratio
    p_leads = of_p > of_q
    share_q, share_p = tl.where(p_leads, less, more), tl.where(p_leads, more, less)
    return share_q, share_p, log_q - log_m, log_p - log_m


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
    FAST: tl.constexpr,
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

    peak_z = tl.full((LANES,), LOWEST, tl.float32)
    peak_t = tl.full((LANES,), LOWEST, tl.float32)
    sum_z = tl.zeros((LANES,), tl.float32)
    sum_t = tl.zeros((LANES,), tl.float32)
    sum_one = tl.zeros((LANES,), tl.float32)  # of 2^z at a temperature of 1
    gap = tl.zeros((LANES,), tl.float32)  # of t − z, or z − t, as KL weighs them
    for start in tl.range(0, columns, TILE, num_stages=STAGES):
        z, at = _load_logits(z_ptr, start, columns, student_stride, LANES, REPEATS)
        t, at = _load_logits(t_ptr, start, columns, teacher_stride, LANES, REPEATS)
        if HARD and not AT_ONE:
            _, sum_one, _, _ = _join(z, peak_z, sum_one, LOG2E)
        peak_t, sum_t, fade_t, share_t = _join(t, peak_t, sum_t, to_bits)
        if KIND == "forward_kl":
            gap = gap * fade_t + tl.sum(share_t * (t - z), axis=1)
        peak_z, sum_z, fade_z, share_z = _join(z, peak_z, sum_z, to_bits)  # before the teacher's it spills
        if KIND == "reverse_kl":
            gap = gap * fade_z + tl.sum(share_z * (z - t), axis=1)

    top_z, top_t = tl.max(peak_z, axis=0), tl.max(peak_t, axis=0)
    part_z, part_t = tl.exp2((peak_z - top_z) * to_bits), tl.exp2((peak_t - top_t) * to_bits)
    total_z, total_t = tl.sum(sum_z * part_z, axis=0), tl.sum(sum_t * part_t, axis=0)
    # A log-sum-exp is kept as the largest logit and what lies above it, in bits: see the top.
    rest_z, rest_t = tl.log2(total_z), tl.log2(total_t)
    rest_one = rest_z
    if HARD and not AT_ONE:
        part_one = tl.exp2((peak_z - top_z) * LOG2E)
        rest_one = tl.log2(tl.sum(sum_one * part_one, axis=0))

    middle = 0.0  # what the gradient subtracts: D of reverse KL, S of Jensen–Shannon, in bits
    if KIND == "forward_kl":
        mean = tl.sum(gap * part_t, axis=0) / total_t
        bits = (mean - (top_t - top_z)) * to_bits - (rest_t - rest_z)
    elif KIND == "reverse_kl":
        mean = tl.sum(gap * part_z, axis=0) / total_z
        bits = (mean - (top_z - top_t)) * to_bits - (rest_z - rest_t)
        middle = bits
    else:
        of_q, of_p = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
        for back in tl.range(0, columns, TILE, num_stages=STAGES):
            z, at = _load_logits(z_ptr, last - back, columns, student_stride, LANES, REPEATS)
            t, at = _load_logits(t_ptr, last - back, columns, teacher_stride, LANES, REPEATS)
            log_q, log_p = (z - top_z) * to_bits - rest_z, (t - top_t) * to_bits - rest_t
            q, p, q_over_m, p_over_m = _shares_of_mixture(log_q, log_p, log_beta, log_rest, FAST)
            of_q += tl.sum(q * q_over_m, axis=1)
            of_p += tl.sum(p * p_over_m, axis=1)
        bits = tl.sum(of_q, axis=0)
        middle = bits * tl.exp2(-log_rest)
        bits += tl.sum(of_p, axis=0)

    loss = soft_weight * temperature * temperature * bits * LN2
    if HARD:
        loss += hard_weight * (rest_one * LN2 + (top_z - z_label))
    tl.store(losses_ptr + row, loss)
    if GRADIENT:
        soft = soft_weight * temperature
        for step in tl.range(0, columns, TILE, num_stages=STAGES):
            start = step if KIND == "jensen_shannon" else last - step
            z, at = _load_logits(z_ptr, start, columns, student_stride, LANES, REPEATS)
            t, at = _load_logits(t_ptr, start, columns, teacher_stride, LANES, REPEATS)
            log_q, log_p = (z - top_z) * to_bits - rest_z, (t - top_t) * to_bits - rest_t
            if KIND == "forward_kl":
                grad = soft * (tl.exp2(log_q) - tl.exp2(log_p))
            elif KIND == "reverse_kl":
                apart = (z - top_z) - (t - top_t)
                grad = soft * LN2 * tl.exp2(log_q) * (apart * to_bits - (rest_z - rest_t + middle))
            else:
                q, p, q_over_m, p_over_m = _shares_of_mixture(log_q, log_p, log_beta, log_rest, FAST)
                grad = soft * LN2 * q * (q_over_m - middle)
            if HARD:
                q_one = tl.exp2((z - top_z) * LOG2E - rest_one)
                grad += hard_weight * (q_one - tl.where(at == label, 1.0, 0.0))
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
    tile: RowTile | None = None,
) -> None:
    """Writes the loss of each row, unweighted by how many there are, and its gradient over `student`.

    Args:
        student, teacher: logits (rows, V), whose rows lie in memory up to a multiple of 16 numbers.
        gradient: whether it is wanted; else the logits stay.
        tile: None takes `row_tile`.
    """
    rows, columns = student.shape
    tile = tile or row_tile(max(student.element_size(), teacher.element_size()))
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
        LANES=tile.lanes,
        REPEATS=tile.repeats,
        STAGES=tile.stages,
        FAST=not interpreted(),
        num_warps=tile.warps,
    )


def scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x times a number on the device, multiplied in fp32; where it lies, if it keeps its dtype."""
    out = x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    if x.numel():
        _scale_kernel[(triton.cdiv(x.numel(), SCALED),)](x, out, scale, x.numel(), BLOCK=SCALED, num_warps=8)
    return out
