"""What a student has of its teacher, domain by domain: five numbers, each with a standard error.

    nats          −ln q(token): what it makes of the text itself, which is not what soft labels ask for
    kl            Σ p ln(p / q): how far it is from the teacher
    agreement     how often both like the same token best
    acceptance    Σ min(p, q): how often its draft would stand (Leviathan et al. 2023, corollary 3.6)
    calibration   Σ_m |B_m|/N |frequency − confidence| over bins m (Guo et al. 2017, equation 3)

The first four are means over windows. The last is none: what the bins add up to is taken again without each
window, and its error is that of the jackknife, √((n − 1)/n Σ_i (θ_i − θ̄)²) (Efron 1982, chapter 3). Chance
makes it larger than it is, as every deviation counts as one: compare students on the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.estimate import Estimate, windows_of
from llmcourse.decoding.processors import widen
from llmcourse.distillation.losses import check_vocabularies, relative_entropy
from llmcourse.model import Decoder
from llmcourse.speculative.theory import acceptance

NUM_BINS = 15  # as Guo et al. take them


@dataclass(frozen=True)
class Fidelity:
    """A student beside its teacher on one domain's text.

    Attributes:
        domain: its name.
        num_tokens: that were predicted.
        nats, teacher_nats: a token.
        gap: of the first over the second, taken window by window.
        kl: in nats a token.
        agreement, acceptance: in [0, 1].
        calibration_error, teacher_calibration_error: in [0, 1], of the likeliest token.
    """

    domain: str
    num_tokens: int
    nats: Estimate
    teacher_nats: Estimate
    gap: Estimate
    kl: Estimate
    agreement: Estimate
    acceptance: Estimate
    calibration_error: Estimate
    teacher_calibration_error: Estimate

    def __str__(self) -> str:
        return (
            f"{self.domain}: {self.nats} nats (teacher {self.teacher_nats.mean:.4f}), KL {self.kl}, "
            f"the same favourite {self.agreement}, drafts stand {self.acceptance}, "
            f"calibration error {self.calibration_error}"
        )


class Seen(NamedTuple):
    """What each place of a window shows of a student and its teacher."""

    nats: Float[Tensor, " T"]
    teacher_nats: Float[Tensor, " T"]
    kl: Float[Tensor, " T"]
    agreement: Float[Tensor, " T"]
    acceptance: Float[Tensor, " T"]


class Promised(NamedTuple):
    """The probability of the likeliest token, and whether it came."""

    confidence: Float[Tensor, "*shape"]
    correct: Bool[Tensor, "*shape"]


@torch.inference_mode()
def measure(
    student: Decoder,
    teacher: Decoder,
    streams: Mapping[str, Int[Tensor, " _"]],
    *,
    length: int = 256,
    max_windows: int | None = None,
) -> list[Fidelity]:
    """Both models on the same windows of each domain's tokens.

    Args:
        streams: tokens by the domain's name.
        length: tokens that are predicted in a window, each from those before it in the window alone.
        max_windows: of a domain, the first ones; None for all.

    Raises:
        ValueError: different vocabularies, no domain, a length out of range, or a domain that does not fill
            two windows, of which there would be no spread.
    """
    check_vocabularies(student.config.vocab_size, teacher.config.vocab_size)
    most = min(model.config.max_position_embeddings for model in (student, teacher))
    require_integer(1, "length", length, "256 are a page")
    require(length <= most, "length", f"in [1, {most}], the shorter context", length, "take fewer")
    require(len(streams) > 0, "streams", "of one domain at least", "none", "give some text")
    if max_windows is not None:
        require_integer(2, "max_windows", max_windows, "one window has no spread")
    windows = {domain: windows_of(domain, stream, length) for domain, stream in streams.items()}
    return [_measured(student, teacher, domain, each[:max_windows]) for domain, each in windows.items()]


def _measured(student: Decoder, teacher: Decoder, domain: str, windows: list[Tensor]) -> Fidelity:
    means, promises = [], []
    for window in windows:  # one by one: logits are what takes memory
        tokens = window[1:].to(student.device)
        logits = [
            model(window[None, :-1].to(model.device))[0].to(tokens.device) for model in (student, teacher)
        ]
        means.append(torch.stack([each.double().mean() for each in seen(*logits, tokens)]).cpu())
        promises.append([promised(each, tokens) for each in logits])
    values = Seen(*torch.stack(means, dim=1))
    ours, theirs = (calibration_error(*_of_windows(side)) for side in zip(*promises, strict=True))
    return Fidelity(
        domain=domain,
        num_tokens=sum(len(window) - 1 for window in windows),
        gap=Estimate.of(values.nats - values.teacher_nats),
        calibration_error=ours,
        teacher_calibration_error=theirs,
        **{name: Estimate.of(value) for name, value in values._asdict().items()},
    )


def _of_windows(promises: Sequence[Promised]) -> Promised:
    return Promised(*(torch.stack(each).cpu() for each in zip(*promises, strict=True)))


def seen(
    student_logits: Float[Tensor, "T V"], teacher_logits: Float[Tensor, "T V"], tokens: Int[Tensor, " T"]
) -> Seen:
    """From the logits of both models, and the tokens that followed."""
    log_q, log_p = (widen(logits).log_softmax(-1) for logits in (student_logits, teacher_logits))
    place = tokens.long()[:, None]
    return Seen(
        nats=-log_q.gather(1, place)[:, 0],
        teacher_nats=-log_p.gather(1, place)[:, 0],
        kl=relative_entropy(log_p, log_q),
        agreement=(log_p.argmax(-1) == log_q.argmax(-1)).float(),
        acceptance=acceptance(log_p.exp(), log_q.exp()),
    )


def promised(logits: Float[Tensor, "T V"], tokens: Int[Tensor, " T"]) -> Promised:
    """What a model promised at each place, and whether it kept it."""
    confidence, favourite = widen(logits).softmax(-1).max(-1)
    return Promised(confidence, favourite == tokens)


def calibration_error(
    confidence: Float[Tensor, "W T"], correct: Bool[Tensor, "W T"], num_bins: int = NUM_BINS
) -> Estimate:
    """Expected calibration error over all places, and its standard error by leaving each window out.

    The bins are ((m − 1)/M, m/M], as those of `decoding.metrics.calibration`. In a bin the distance of
    frequency and confidence times the share of places is |Σ correct − Σ confidence| / N.

    Args:
        confidence: the probability of each prediction, by windows.
        correct: whether it came true.

    Raises:
        ValueError: no bin, or fewer than two windows.
    """
    require_integer(1, "num_bins", num_bins, "15 are usual")
    count, length = confidence.shape
    require(count >= 2, "confidence", "of at least 2 windows", count, "one window has no spread")
    edges = torch.arange(1, num_bins, dtype=confidence.dtype, device=confidence.device) / num_bins
    index = torch.bucketize(confidence, edges)
    excess = torch.zeros(count, num_bins, dtype=torch.float64, device=confidence.device)
    excess.scatter_add_(1, index, correct.double() - confidence.double())
    without = (excess.sum(0) - excess).abs().sum(1) / ((count - 1) * length)
    spread = (without - without.mean()).square().sum().item()
    error = math.sqrt((count - 1) / count * spread)
    return Estimate(excess.sum(0).abs().sum().item() / (count * length), error)
