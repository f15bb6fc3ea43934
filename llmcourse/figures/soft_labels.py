"""What soft labels ask of a student at one position: the loss, and which tokens it pushes up or down.

The gradient of the loss with respect to the student's logit z_v says by how much token v is pushed: a step
of descent moves z_v by −∂L/∂z_v. For forward KL that is T (p_T − q_T) with T², and (p_T − q_T)/T without
(Hinton et al. 2015, section 2.1). Pushes add up to 0: what some tokens gain, others lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.distillation.losses import Response, check_temperature, check_vocabularies, divergence_of

ROWS = 10
TEMPERATURES = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class SoftLabels:
    """One position under one loss: tokens that matter one by one, all others in sums.

    Attributes:
        squared: whether T² is part of the loss, and so of the pushes.
        teacher, student: p_T and q_T of the listed tokens.
        push: −∂L/∂z of the listed tokens.
        plain_loss: the divergence without T², in nats.
        moved: the sum of all pushes upwards, which is that of all downwards.
        follows: the token that follows in the text; None where none does.
    """

    response: Response
    squared: bool
    token_ids: tuple[int, ...]
    labels: tuple[str, ...]
    teacher: tuple[float, ...]
    student: tuple[float, ...]
    push: tuple[float, ...]
    vocab_size: int
    others_teacher: float
    others_student: float
    others_push: float
    plain_loss: float
    moved: float
    teacher_entropy: float
    student_entropy: float
    follows: int | None = None

    @property
    def factor(self) -> float:
        """T² or 1."""
        return float(self.response.temperature) ** 2 if self.squared else 1.0

    @property
    def loss(self) -> float:
        """As it is trained, in nats."""
        return self.factor * self.plain_loss

    @property
    def pushed_most(self) -> tuple[str, str]:
        """The listed tokens that are pushed up and down most."""
        order = sorted(range(len(self.push)), key=self.push.__getitem__)
        return self.labels[order[-1]], self.labels[order[0]]


@dataclass(frozen=True)
class ByTemperature:
    """Loss and moved push of one position at several temperatures, without T²."""

    temperatures: tuple[float, ...]
    losses: tuple[float, ...]
    moved: tuple[float, ...]


def soft_labels(
    student_logits: Float[Tensor, " V"],
    teacher_logits: Float[Tensor, " V_teacher"],
    label: Callable[[int], str],
    response: Response | None = None,
    *,
    squared: bool = True,
    follows: int | None = None,
    rows: int = ROWS,
) -> SoftLabels:
    """The data of the figure, in float64.

    Listed are the tokens that teacher or student find likeliest at temperature 1, and the one that follows:
    the same ones whatever the loss. They stand in the teacher's order.

    Args:
        label: a token's text for readers, such as `tokenizer.label`.
        response: the divergence with its temperature; None is forward KL at 1. It has no hard labels.
        squared: multiply by T².
        follows: the token that follows in the text.

    Raises:
        ValueError: different vocabularies, hard labels, a token that there is not, or a loss that is not
            finite, as that of reverse KL where the teacher rules a token out.
    """
    response = Response() if response is None else response
    check_vocabularies(len(student_logits), len(teacher_logits))
    _check_soft(response)
    require_integer(1, "rows", rows, "10 can be read")
    size = len(student_logits)
    known = follows is None or 0 <= follows < size
    require(known, "follows", f"in [0, {size})", follows, "None says that no token does")
    student, teacher = student_logits.double(), teacher_logits.double()
    (loss,), (push,) = (part.unbind() for part in _pushes(student, teacher, response, [response.temperature]))
    _check_finite(loss, response)
    push = push * (response.temperature**2 if squared else 1)
    p, q = ((logits / response.temperature).softmax(-1) for logits in (teacher, student))
    shown = _rows(teacher.softmax(-1), student.softmax(-1), follows, rows)
    others = torch.ones(size, dtype=torch.bool).index_fill(0, torch.tensor(shown), False)
    listed = {"teacher": p, "student": q, "push": push}
    return SoftLabels(
        response,
        squared,
        tuple(shown),
        tuple(label(token) for token in shown),
        **{name: tuple(values[shown].tolist()) for name, values in listed.items()},
        **{f"others_{name}": values[others].sum().item() for name, values in listed.items()},
        vocab_size=size,
        plain_loss=loss.item(),
        moved=push.clamp(min=0).sum().item(),
        teacher_entropy=torch.special.entr(p).sum().item(),
        student_entropy=torch.special.entr(q).sum().item(),
        follows=follows,
    )


def by_temperature(
    student_logits: Float[Tensor, " V"],
    teacher_logits: Float[Tensor, " V_teacher"],
    response: Response,
    temperatures: Sequence[int | float] = TEMPERATURES,
) -> ByTemperature:
    """The same position at other temperatures, in fp32: one pass over all of them.

    Raises:
        ValueError: as `soft_labels`, or a temperature that is not above 0.
    """
    check_vocabularies(len(student_logits), len(teacher_logits))
    _check_soft(response)
    for temperature in temperatures:
        check_temperature(temperature)
    losses, pushes = _pushes(student_logits.float(), teacher_logits.float(), response, temperatures)
    _check_finite(losses, response)
    moved = pushes.clamp(min=0).sum(-1)
    return ByTemperature(tuple(map(float, temperatures)), tuple(losses.tolist()), tuple(moved.tolist()))


def _pushes(
    student: Float[Tensor, " V"],
    teacher: Float[Tensor, " V"],
    response: Response,
    temperatures: Sequence[int | float],
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """Divergence and −gradient at each temperature, without T²; by the losses of training."""
    each = torch.tensor(temperatures, dtype=student.dtype)[:, None]
    with torch.enable_grad():
        logits = student.detach().expand(len(each), -1).clone().requires_grad_(True)
        log_q, log_p = (logits / each).log_softmax(-1), (teacher.detach() / each).log_softmax(-1)
        losses = divergence_of(response, log_p, log_q)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach(), -gradient


def _rows(teacher: Tensor, student: Tensor, follows: int | None, rows: int) -> list[int]:
    """What follows always, then the likeliest of either side; in the teacher's order."""
    likeliest = torch.maximum(teacher, student).sort(descending=True, stable=True).indices[:rows].tolist()
    if follows is not None and follows not in likeliest:
        likeliest[-1:] = [follows]
    return sorted(likeliest, key=lambda token: (-teacher[token].item(), token))


def _check_soft(response: Response) -> None:
    remedy = "the figure is of soft labels alone"
    require(response.hard_weight == 0, "hard_weight", "0", response.hard_weight, remedy)


def _check_finite(losses: Tensor, response: Response) -> None:
    finite, remedy = (
        bool(losses.isfinite().all()),
        "logits hold NaN, or one side rules out what the other says",
    )
    require(finite, f"{response.divergence} of these logits", "finite", losses.max().item(), remedy)
