"""06.mixed_loss: the teacher beside the labels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A teacher errs, and the text itself is at hand: the token that came, the **hard label** $y_n$. Hinton et al.
(2015, section 2) mix both. With $z$ the student's logits, and the positions $M$ that have a label,

$$\text{hard} = \frac{1}{|M|} \sum_{n \in M} -\ln \mathrm{softmax}(z_n)_{y_n}, \qquad
\text{soft} = \frac{T^2}{|M|} \sum_{n \in M} \mathrm{KL}(p_T \,\Vert\, q_T)_n, \qquad
L = w \cdot \text{hard} + (1 - w) \cdot \text{soft}$$

The hard part is what any language model is trained with, at temperature 1. The soft part is the loss of
`06.kd_loss`. A label of -100 says that there is none: the position is padding, or a prompt. It counts in
neither part. Where no position has a label, there is nothing to learn, and all three numbers are 0.

Write `mixed_loss(student_logits, teacher_logits, labels, hard_weight, temperature)`.

- `student_logits`, `teacher_logits`: `float32` tensors of shape `(N, V)`, finite. Either may be very sure of
  a token, as in `06.kd_loss`.
- `labels`: `int64` tensor of shape `(N,)`; each is a token, in [0, V), or -100. They stand where they belong:
  nothing is to be shifted.
- `hard_weight`: $w$, a float in [0, 1], the share of the hard labels.
- `temperature`: a float above 0, for the soft part.
- returns `(loss, hard, soft)`, three floats: $L$, and both parts as they are before they are mixed.

```python
>>> student = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
>>> teacher = torch.tensor([[4.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
>>> labels = torch.tensor([0, -100])
>>> [round(n, 4) for n in mixed_loss(student, teacher, labels, hard_weight=0.5, temperature=2.0)]
[0.2274, 0.2395, 0.2152]
```
"""

HINTS = (
    "Take the rows that have a label first, labels != -100, and go on with these alone: both parts are plain "
    "means over them.",
    "hard = F.cross_entropy(student_logits[kept], labels[kept]), of logits. soft as in 06.kd_loss, of both "
    "logits divided by T, times T².",
    "The means of no rows are NaN: look whether any is kept, before. And .item() makes floats of the three.",
)

SWAPPED = "w and 1 − w are swapped: hard_weight is the share of the hard labels."
ADDED = "The parts are added as α · hard + soft. The teacher's share is 1 − α."
HALVES = "Both parts have a half here: hard_weight is not used."
HARD_T = "The hard part is softened too. Labels are no distribution of a temperature: there T is 1."
NO_SQUARE = "The T² of the soft part is missing: with a larger T the labels would outweigh the teacher."
SQUARE_BOTH = "T² multiplies the hard part too. Only the soft part was made smaller by a temperature."
T_ONCE = "The soft part is multiplied by T, not by T²."
REVERSED = "The soft part is KL(q‖p). It is that of the teacher from the student, Σ p (ln p − ln q)."
CROSS = "The soft part is a cross-entropy: the teacher's entropy is to be taken away, Σ p (ln p − ln q)."
TWICE = (
    "F.cross_entropy was given probabilities. It takes logits, and makes the softmax itself: there are two "
    "here."
)
OF_TEACHER = (
    "The hard part is that of the teacher's favourites. Hard labels are the tokens that came: labels."
)
WRONG_MODEL = "The hard part is the teacher's own loss. It is the student that learns from the labels."
NO_T = "The soft part is at temperature 1. Divide both logits by T."
OF_NUMBERS = (
    "The soft part is a mean over all numbers, N · V. Sum over the vocabulary; the mean is over rows."
)
SUM = "Both parts are sums over the positions. They are means."
SHIFTED = "The labels were shifted by one. They stand where they belong already."
HINTS_AT = {
    "positions without a label": (
        "A label of -100 takes its position out of both parts, and of the number that both are divided by."
    ),
    "a temperature below 1": "T below 1 is a temperature as any other, and T² is below 1 then.",
    "a student that is very sure": (
        "softmax(…).log() is ln 0 where a probability is too small for float32. log_softmax has the "
        "logarithm itself, in both parts: of each row with that row's own largest number."
    ),
    "a teacher that is very sure": "softmax(…).log() is -inf for the other tokens, and 0 · (-inf) is NaN.",
    "nothing has a label": "A mean over no positions is 0 / 0, NaN. Here it is to be 0, for all three.",
    "hard labels alone": "With α = 1 the loss is the hard part; the soft part is told all the same.",
    "the teacher alone": "With α = 0 the loss is the soft part; the hard part is told all the same.",
}


def mixed_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    labels: Int[Tensor, " N"],
    hard_weight: float,
    temperature: float,
) -> tuple[float, float, float]:
    """Both parts over the positions that have a label."""
    return Mixed()(student_logits, teacher_logits, labels, hard_weight, temperature)


def cross_entropy(student, teacher, labels, t):
    return -student.log_softmax(-1).gather(1, labels[:, None])[:, 0]


def kl(student, teacher, t):
    log_p, log_q = (teacher / t).log_softmax(-1), (student / t).log_softmax(-1)
    return t**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class Mixed:
    """Both parts and their mixture; the fields are what mutants get wrong.

    Args:
        hard: loss of each row, of both logits, the labels and the temperature.
        soft: loss of each row, of both logits and the temperature.
        mix: of the share and both parts.
        labels: of those that are given.
        mean: over the rows, of the losses and which rows count.
        soft_mean: the same for the soft part; None for the mean of the hard part.
        nothing: what all three are where no row counts.
    """

    hard: Callable = cross_entropy
    soft: Callable = kl
    mix: Callable = lambda w, hard, soft: w * hard + (1 - w) * soft
    labels: Callable = lambda labels: labels
    mean: Callable = lambda each, kept: each[kept].mean()
    soft_mean: Callable | None = None
    nothing: float = 0.0

    def __call__(self, student_logits, teacher_logits, labels, hard_weight, temperature):
        labels = self.labels(labels)
        kept = labels != -100
        if not kept.any():
            return (self.nothing,) * 3
        known = torch.where(kept, labels, 0)
        hard = self.mean(self.hard(student_logits, teacher_logits, known, temperature), kept).item()
        soft = (self.soft_mean or self.mean)(self.soft(student_logits, teacher_logits, temperature), kept)
        soft = soft.item()
        return self.mix(hard_weight, hard, soft), hard, soft


FIRST, SURE = "every position has a label", "a student that is very sure"


def cases(rng: random.Random) -> list[Case]:
    rows, vocab = rng.randint(4, 6), rng.randint(7, 10)

    def case(
        label,
        hard_weight=None,
        without=0,
        student=drawn.logits,
        teacher=drawn.logits,
        low=1.6,
        wrong=(),
        apart=(),
    ):
        hard_weight = rng.uniform(0.2, 0.4) if hard_weight is None else hard_weight
        temperature = rng.uniform(low, 1.9 * low)

        def draw():
            labels = torch.tensor([rng.randrange(vocab) for _ in range(rows)])
            labels[rng.sample(range(rows), without)] = -100
            return {
                "student_logits": student(rng, rows, vocab),
                "teacher_logits": teacher(rng, rows, vocab),
                "labels": labels,
                "hard_weight": hard_weight,
                "temperature": temperature,
            }

        return Case(dict(telling(draw, mixed_loss, wrong, apart)), label)

    def very_sure(rng, rows, vocab):
        return drawn.sure(rng, rows, vocab, 3 * drawn.SURE)

    def sure_and_far(rng, rows, vocab):
        return drawn.far_apart(rng, very_sure(rng, rows, vocab))

    return [
        case(FIRST, wrong=(_above_0,), apart=TOLD),
        case("positions without a label", without=2, wrong=(_class_0, _soft_everywhere, _by_all)),
        case("hard labels alone", 1.0),
        case("the teacher alone", 0.0, without=1),
        case(SURE, student=sure_and_far, wrong=(_hard_of_softmax,)),
        case("a teacher that is very sure", teacher=very_sure),
        case("a temperature below 1", rng.uniform(0.6, 0.8), low=0.4),
        case("nothing has a label", without=rows),
    ]


def _at_t(student, teacher, labels, t):
    return cross_entropy(student / t, teacher, labels, t)


def _of_softmax(student, teacher, t):
    p, q = (teacher / t).softmax(-1) + 1e-9, (student / t).softmax(-1) + 1e-9
    return t**2 * (p * (p / q).log()).sum(-1)


def _swapped(w, hard, soft):
    return (1 - w) * hard + w * soft


_shares = Mixed(mix=_swapped)
_added = Mixed(mix=lambda w, hard, soft: w * hard + soft)
_halves = Mixed(mix=lambda w, hard, soft: (hard + soft) / 2)
_hard_t = Mixed(hard=_at_t)
_no_square = Mixed(soft=lambda student, teacher, t: kl(student, teacher, t) / t**2)
_t_once = Mixed(soft=lambda student, teacher, t: kl(student, teacher, t) / t)
_square_both = Mixed(hard=lambda s, teacher, labels, t: t**2 * cross_entropy(s, teacher, labels, t))
_reversed = Mixed(soft=lambda student, teacher, t: kl(teacher, student, t))
_cross = Mixed(soft=lambda s, p, t: -(t**2) * ((p / t).softmax(-1) * (s / t).log_softmax(-1)).sum(-1))
_twice = Mixed(hard=lambda s, teacher, labels, t: cross_entropy(s.softmax(-1), teacher, labels, t))
_of_teacher = Mixed(hard=lambda s, teacher, labels, t: cross_entropy(s, teacher, teacher.argmax(-1), t))
_wrong_model = Mixed(hard=lambda s, teacher, labels, t: cross_entropy(teacher, s, labels, t))
_no_t = Mixed(soft=lambda student, teacher, t: kl(student, teacher, 1.0))
_of_numbers = Mixed(soft=lambda student, teacher, t: kl(student, teacher, t) / student.shape[1])
_sum = Mixed(mean=lambda each, kept: each[kept].sum())
_shifted = Mixed(labels=lambda labels: F.pad(labels[1:], (0, 1), value=-100))
_soft_everywhere = Mixed(soft_mean=lambda each, kept: each.mean())
_by_all = Mixed(mean=lambda each, kept: each[kept].sum() / len(each))
_class_0 = Mixed(labels=lambda labels: labels.clamp(min=0))
_above_0 = Mixed(labels=lambda labels: torch.where(labels > 0, labels, -100))
_at_least_1 = Mixed(soft=lambda student, teacher, t: kl(student, teacher, max(t, 1.0)))
_one_or_the_other = Mixed(mix=lambda a, hard, soft: hard if a > 0.5 else a * hard + (1 - a) * soft)
_hard_of_softmax = Mixed(
    hard=lambda s, teacher, labels, t: -s.softmax(-1).gather(1, labels[:, None])[:, 0].log()
)
_soft_of_softmax = Mixed(soft=_of_softmax)
_nan = Mixed(nothing=float("nan"))


def _in_place(student_logits, teacher_logits, labels, hard_weight, temperature):
    found = mixed_loss(student_logits, teacher_logits, labels, hard_weight, temperature)
    labels[labels == -100] = 0
    student_logits /= temperature
    return found


TOLD = (
    *(_shares, _added, _halves, _hard_t, _no_square, _t_once, _square_both, _reversed, _cross, _twice),
    *(_of_teacher, _wrong_model, _no_t, _of_numbers, _sum, _shifted),
)
EXERCISE = Exercise(
    name="06.mixed_loss",
    function="mixed_loss",
    title="The teacher beside the labels",
    points=10,
    minutes=15,
    level=2,
    asks=ASKS,
    signature="mixed_loss(student_logits, teacher_logits, labels, hard_weight, temperature)",
    cases=cases,
    reference=mixed_loss,
    comparison=Parts({"loss": Near(rtol=1e-4), "hard": Near(rtol=1e-4), "soft": Near(rtol=1e-4)}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("swaps the shares", _shares, FIRST, SWAPPED),
        Mutant("adds the whole soft part", _added, FIRST, ADDED),
        Mutant("takes halves", _halves, FIRST, HALVES),
        Mutant("softens the hard part", _hard_t, FIRST, HARD_T),
        Mutant("forgets T²", _no_square, FIRST, NO_SQUARE),
        Mutant("multiplies by T once", _t_once, FIRST, T_ONCE),
        Mutant("multiplies the hard part by T²", _square_both, FIRST, SQUARE_BOTH),
        Mutant("has the divergence the wrong way round", _reversed, FIRST, REVERSED),
        Mutant("has two cross-entropies", _cross, FIRST, CROSS),
        Mutant("takes two softmaxes", _twice, FIRST, TWICE),
        Mutant("takes the teacher's favourites for labels", _of_teacher, FIRST, OF_TEACHER),
        Mutant("has the teacher's hard loss", _wrong_model, FIRST, WRONG_MODEL),
        Mutant("softens nothing", _no_t, FIRST, NO_T),
        Mutant("has a soft mean over all numbers", _of_numbers, FIRST, OF_NUMBERS),
        Mutant("has sums", _sum, FIRST, SUM),
        Mutant("shifts the labels", _shifted, FIRST, SHIFTED),
        Mutant("has the soft part everywhere", _soft_everywhere, "positions without a label"),
        Mutant("divides by all positions", _by_all, "positions without a label"),
        Mutant("takes no label for token 0", _class_0, "positions without a label"),
        Mutant("takes token 0 for no label", _above_0, FIRST),
        Mutant("sharpens nothing", _at_least_1, "a temperature below 1"),
        Mutant("mixes small shares alone", _one_or_the_other, "a temperature below 1"),
        Mutant("takes the logarithm of a softmax", _hard_of_softmax, SURE),
        Mutant("adds a little before the logarithm", _soft_of_softmax, SURE),
        Mutant("has a mean over nothing", _nan, "nothing has a label"),
        Mutant("changes its inputs", _in_place, NoMutation().name),
    ),
)
