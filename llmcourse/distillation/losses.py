"""Response-based distillation: the student learns the teacher's whole distribution, not the one next token.

With p_T = softmax(teacher's logits / T) and q_T = softmax(student's logits / T), at each position:

    forward KL        T² Σ_v p_T ln(p_T / q_T)      Hinton et al. 2015, section 2
    reverse KL        T² Σ_v q_T ln(q_T / p_T)      Gu et al. 2024 (MiniLLM), section 2.1
    Jensen–Shannon    T² [β KL(p_T ‖ m) + (1 − β) KL(q_T ‖ m)],  m = β p_T + (1 − β) q_T
                                                    Agarwal et al. 2024 (GKD), section 2
    hard labels       −ln q(token)                  what a student without a teacher learns

Where T is large, gradients with respect to logits shrink as 1/T²: once since the logits are divided, once
since p and q come closer to each other. There T² makes up for it, so that soft labels weigh about the same
beside the hard ones at any of these T; near 1 they may shrink faster. Forward KL asks the student for some
mass wherever the teacher has any, and a student that is too small spreads out; reverse KL asks it to stay
where the teacher is, and it leaves some of the teacher's answers out.

Here the logits are whole: this is the slow truth. `kernels.vocabulary_divergence` never holds them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.decoding.processors import widen
from llmcourse.kernels.divergence_arguments import Divergence

DIVERGENCES = get_args(Divergence)
IGNORED = -100  # in place of a label: its position is left out


@dataclass(frozen=True)
class Response:
    """How a student learns from the teacher's distribution.

        (1 − w) divergence + w hard loss      (Hinton et al. 2015, section 2)

    Attributes:
        divergence: "forward_kl", "reverse_kl" or "jensen_shannon".
        temperature: T above 0, of teacher and student alike; hard labels are learned at 1.
        beta: of Jensen–Shannon, in [0, 1]; the others do not look at it.
        hard_weight: w in [0, 1], the share of the hard labels; at 1 the teacher has no say.

    Raises:
        ValueError: another divergence, or a number out of its range.
    """

    divergence: str = "forward_kl"
    temperature: int | float = 1.0
    beta: int | float = 0.5
    hard_weight: int | float = 0.0

    def __post_init__(self):
        allowed, remedy = " or ".join(map(repr, DIVERGENCES)), "choose one"
        require(self.divergence in DIVERGENCES, "divergence", allowed, repr(self.divergence), remedy)
        check_temperature(self.temperature)
        _check_beta(self.beta)
        share, remedy = "in [0, 1]", "0 learns from the teacher alone, 1 from the text alone"
        require_number(lambda w: 0 <= w <= 1, "hard_weight", share, self.hard_weight, remedy)


def forward_kl(
    student_logits: Float[Tensor, "*shape V"],
    teacher_logits: Float[Tensor, "*shape V_teacher"],
    *,
    temperature: int | float = 1.0,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """T² KL(p_T ‖ q_T), the mean in nats over positions (Hinton et al. 2015, section 2).

    Computed in fp32 or wider. The teacher gets no gradient.

    Args:
        temperature: T above 0 and finite; 1 are the distributions as they are.
        mask: True at positions that count; None counts all. Where none counts the loss is 0.

    Raises:
        ValueError: different vocabularies, or a temperature out of its range.
    """
    log_q, log_p = _softened(student_logits, teacher_logits, temperature)
    return temperature**2 * mean_over(relative_entropy(log_p, log_q), mask)


def reverse_kl(
    student_logits: Float[Tensor, "*shape V"],
    teacher_logits: Float[Tensor, "*shape V_teacher"],
    *,
    temperature: int | float = 1.0,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """T² KL(q_T ‖ p_T), the mean in nats (Gu et al. 2024, section 2.1); all else as `forward_kl`.

    A token that the teacher rules out, with a logit of −inf, makes it infinite.
    """
    log_q, log_p = _softened(student_logits, teacher_logits, temperature)
    return temperature**2 * mean_over(relative_entropy(log_q, log_p), mask)


def jensen_shannon(
    student_logits: Float[Tensor, "*shape V"],
    teacher_logits: Float[Tensor, "*shape V_teacher"],
    *,
    beta: int | float = 0.5,
    temperature: int | float = 1.0,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """T² [β KL(p_T ‖ m) + (1 − β) KL(q_T ‖ m)] with m = β p_T + (1 − β) q_T, the mean in nats.

    The dial of GKD (Agarwal et al. 2024, section 2); all else as `forward_kl`. At β = ½ it is the divergence
    that both sides share alike, at most ln 2. As β goes to 0 it vanishes, and divided by β it becomes
    forward KL; divided by 1 − β it becomes reverse KL as β goes to 1. At the ends these limits are what is
    computed, so that the dial goes from one to the other: the value jumps there, for what is close to an end
    is small, the direction of the gradient does not.

    Args:
        beta: β in [0, 1]: 0 is forward KL, 1 reverse KL.

    Raises:
        ValueError: as `forward_kl`, or β out of its range.
    """
    _check_beta(beta)
    log_q, log_p = _softened(student_logits, teacher_logits, temperature)
    return temperature**2 * mean_over(generalised_jensen_shannon(log_p, log_q, beta), mask)


def hard_loss(student_logits: Float[Tensor, "*shape V"], labels: Int[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """−ln q(token), the mean in nats over positions whose label is not −100; 0 where there is none.

    Args:
        labels: the tokens that follow in the text.
    """
    logits, wanted = widen(student_logits).flatten(0, -2), labels.flatten().long()
    losses = F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="none")
    return mean_over(losses, wanted != IGNORED)


def response_loss(
    response: Response,
    student_logits: Float[Tensor, "*shape V"],
    teacher_logits: Float[Tensor, "*shape V_teacher"],
    labels: Int[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """(1 − w) divergence + w hard loss, in nats a position.

    Args:
        labels: the tokens that follow; where one is −100 neither loss is taken. None takes the divergence at
            all positions, and then the hard labels can have no weight.

    Raises:
        ValueError: different vocabularies, or hard labels with a weight that are not given.
    """

    def soft() -> Tensor:
        log_q, log_p = _softened(student_logits, teacher_logits, response.temperature)
        return divergence_of(response, log_p, log_q)

    return mixed(response, soft, student_logits, labels)


def mixed(
    response: Response,
    soft: Callable[[], Float[Tensor, "*shape"]],
    student_logits: Float[Tensor, "*shape V"],
    labels: Int[Tensor, "*shape"] | None,
) -> Float[Tensor, ""]:
    """(1 − w) T² mean of `soft` + w hard loss; what has no weight is not computed."""
    weight = response.hard_weight
    remedy = "give the tokens that follow, or set hard_weight to 0"
    require(labels is not None or weight == 0, "labels", f"given where hard_weight is {weight}", None, remedy)
    terms = []
    if weight < 1:
        mask = None if labels is None else labels != IGNORED
        terms.append((1 - weight) * response.temperature**2 * mean_over(soft(), mask))
    if weight > 0:
        terms.append(weight * hard_loss(student_logits, labels))
    return sum(terms[1:], start=terms[0])


def divergence_of(
    response: Response, log_p: Float[Tensor, "*shape V"], log_q: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """The divergence of teacher p and student q at each position, without T²."""
    if response.divergence == "jensen_shannon":
        return generalised_jensen_shannon(log_p, log_q, response.beta)
    forward = response.divergence == "forward_kl"
    return relative_entropy(log_p, log_q) if forward else relative_entropy(log_q, log_p)


def relative_entropy(
    log_a: Float[Tensor, "*shape V"], log_b: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """KL(a ‖ b) = Σ_v a ln(a / b) of each position, from logarithms; where a is 0 it adds nothing."""
    # Filled before anything is multiplied: 0 · inf is NaN, in the gradient too.
    ratio = (log_a - log_b).masked_fill(log_a == -math.inf, 0.0)
    return (log_a.exp() * ratio).sum(-1)


def generalised_jensen_shannon(
    log_p: Float[Tensor, "*shape V"], log_q: Float[Tensor, "*shape V"], beta: int | float
) -> Float[Tensor, "*shape"]:
    """JSD(β) of teacher p and student q at each position, from logarithms; the ends as `jensen_shannon`."""
    if beta == 0:
        return relative_entropy(log_p, log_q)
    if beta == 1:
        return relative_entropy(log_q, log_p)
    # Of what neither has the mixture's gradient is NaN, though it adds nothing.
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    sides = (log_p + math.log(beta), log_q + math.log1p(-beta))
    log_m = torch.logaddexp(*(side.masked_fill(nowhere, 0.0) for side in sides))
    return beta * relative_entropy(log_p, log_m) + (1 - beta) * relative_entropy(log_q, log_m)


def mean_over(losses: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None) -> Float[Tensor, ""]:
    """The mean of what the mask keeps; 0 if that is nothing, as in a batch of padding alone."""
    if mask is None:
        return losses.mean()
    return losses.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def check_vocabularies(student: int, teacher: int) -> None:
    """Refuses to compare distributions over different tokens.

    Raises:
        ValueError: sizes that differ.
    """
    remedy = "distil from a teacher with the student's tokenizer; other vocabularies would have to be aligned"
    allowed = f"of {student} tokens as the student's"
    require(student == teacher, "teacher's vocabulary", allowed, teacher, remedy)


def check_temperature(temperature: object) -> None:
    """Raises ValueError unless it is a number above 0."""
    above = lambda t: 0 < t < math.inf  # noqa: E731
    remedy = "use 1 for the distributions as they are, 2 to soften them"
    require_number(above, "temperature", "above 0 and finite", temperature, remedy)


def _softened(
    student_logits: Tensor, teacher_logits: Tensor, temperature: int | float
) -> tuple[Tensor, Tensor]:
    """ln q_T and ln p_T, the second without a way back to the teacher."""
    check_temperature(temperature)
    check_vocabularies(student_logits.shape[-1], teacher_logits.shape[-1])
    log_q = (widen(student_logits) / temperature).log_softmax(-1)
    log_p = (widen(teacher_logits.detach()) / temperature).log_softmax(-1)
    return log_q, log_p


def _check_beta(beta: object) -> None:
    remedy = "0 is forward KL, 1 reverse KL, 0.5 between them"
    require_number(lambda b: 0 <= b <= 1, "beta", "in [0, 1]", beta, remedy)
