"""06.reverse_kl: the student's divergence from the teacher, and its gradient."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
$\mathrm{KL}(p \Vert q)$ makes a student that is too small for all that its teacher says spread out over all
of it, also where the teacher says nothing. The other way round the student may leave something out, but pays
for what the teacher would not say: it settles on what it can do (MiniLLM, Gu et al. 2024, section 2.1). For
one position, with $T = 1$,

$$\mathrm{KL}(q \,\Vert\, p) = \sum_k q(k) \ln \frac{q(k)}{p(k)}, \qquad
\frac{\partial\, \mathrm{KL}(q \,\Vert\, p)}{\partial z_k}
= q(k) \Big( \ln \frac{q(k)}{p(k)} - \mathrm{KL}(q \,\Vert\, p) \Big)$$

$q = \mathrm{softmax}(z)$ is here both weight and logarithm, so both have a part in the gradient. The loss is
the mean over the positions.

Write `reverse_kl(student_logits, teacher_logits)`.

- `student_logits`, `teacher_logits`: `float32` tensors of shape `(N, V)`. The student's may be `-inf`, for
  tokens that it never says; these add nothing, and their gradient is 0. The teacher's are finite. It may be
  so sure of a token that `float32` has 0 for others' probabilities: their logarithms are finite.
- returns `(loss, gradient)`: the mean divergence, a float, and its gradient for the student's logits, a
  `float32` tensor of shape `(N, V)`.

```python
>>> student = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
>>> teacher = torch.tensor([[3.0, 3.0, 0.0], [3.0, 3.0, 0.0]])   # two tokens are as good
>>> loss, gradient = reverse_kl(student, teacher)
>>> [round(reverse_kl(student[n:n + 1], teacher[:1])[0], 4) for n in (0, 1)]   # all, or one of both
[0.6191, 0.487]
>>> round(loss, 4)
0.5531
>>> gradient[0]
tensor([-0.1667, -0.1667,  0.3333])
```
"""

HINTS = (
    "log_softmax of both. The ratio of a token is log_q - log_p, and its weight is q = log_q.exp().",
    "One divergence for each position: (q * (log_q - log_p)).sum(-1, keepdim=True). The gradient of that "
    "position is q * (log_q - log_p - divergence), and all is divided by N.",
    "With autograd: q must not be detached, and -inf among the logits is best replaced before, as -1e4: 0 "
    "times an infinity is NaN, in the gradient too.",
)

FORWARD = (
    "That is KL(p‖q), which the last exercise had: here the student's own probabilities are the weights."
)
FORWARD_SLOPE = "The loss is right; the gradient is q − p, that of KL(p‖q)."
FIXED = (
    "The gradient is 0 everywhere: with the weights q held fixed, that of Σ q ln q is q − q. Do not detach "
    "q: it is the student's in both places."
)
NO_BASELINE = (
    "The gradient lacks the last term: q (ln(q/p) − KL). Each row of a gradient for logits adds up to 0."
)
OF_PROBS = (
    "That is the gradient for the probabilities, ln(q/p) + 1. The student has logits: it goes through the "
    "softmax, which gives q (ln(q/p) − KL)."
)
CROSS = "That is −Σ q ln p alone: the student's own entropy, Σ q ln q, belongs to the divergence."
BOTH = "That is half the sum of both divergences. Only KL(q‖p) is asked for."
SHANNON = "That is the Jensen-Shannon divergence, which compares both with their mean."
SUM = "That is the sum over the positions, not their mean."
OF_NUMBERS = "That is a mean over all numbers. Sum over the vocabulary, then the mean over the positions."
COLUMNS = "The softmax runs over the positions here. A distribution is a row: dim=-1."
UPHILL = "The gradient has the wrong sign."
NO_MEAN = "The gradient is that of the sum over the positions; the loss is their mean."
ABOVE_0 = (
    "Terms below 0 were dropped or made positive. Tokens of which the student says too little have such "
    "terms; only the sum is never below 0."
)
TEACHERS = (
    "That is the gradient for the teacher's logits, p − q. The teacher is fixed; the student's is asked for."
)
HINTS_AT = {
    "a teacher that is very sure": (
        "softmax(…).log() is ln 0 where the teacher's probability is too small for float32. log_softmax has "
        "the logarithm itself; adding something before the log changes it."
    ),
    "rows that are far apart": (
        "Each row has a largest number of its own. One for all rows leaves the low ones with exp of nothing, "
        "which is 0; and a low number in place of -inf has to be lower than any that there is."
    ),
    "a token that the student never says": (
        "q is 0 there, and ln q is -inf: 0 · (-inf) is NaN. The term is 0, and so is the gradient: "
        "torch.where(q > 0, log_q - log_p, 0.0)."
    ),
}


def reverse_kl(
    student_logits: Float[Tensor, "N V"], teacher_logits: Float[Tensor, "N V"]
) -> tuple[float, Float[Tensor, "N V"]]:
    """The formulas of the text, in float32."""
    return Reverse()(student_logits, teacher_logits)


@dataclass(frozen=True)
class Reverse:
    """Loss and gradient by their formulas; the fields are what mutants get wrong.

    Args:
        logarithm: of the softmax of logits.
        ratio: of both logarithms.
        divergence: of each position, of q, p and the ratio.
        slope: of each position, of q, p, the ratio and the divergence.
        mean, slope_mean: over the positions, of what each has.
    """

    logarithm: Callable = lambda z: z.log_softmax(-1)
    ratio: Callable = lambda log_q, log_p: torch.where(log_q.exp() > 0, log_q - log_p, 0.0)
    divergence: Callable = lambda q, p, ratio: (q * ratio).sum(-1, keepdim=True)
    slope: Callable = lambda q, p, ratio, divergence: q * (ratio - divergence)
    mean: Callable = lambda each: each.mean()
    slope_mean: Callable = lambda each: each / len(each)

    def __call__(self, student_logits, teacher_logits):
        log_q, log_p = self.logarithm(student_logits), self.logarithm(teacher_logits)
        q, p, ratio = log_q.exp(), log_p.exp(), self.ratio(log_q, log_p)
        divergence = self.divergence(q, p, ratio)
        slope = self.slope(q, p, ratio, (q * ratio).sum(-1, keepdim=True))
        return self.mean(divergence).item(), self.slope_mean(slope)


@dataclass(frozen=True)
class ByAutograd:
    """A loss of both logarithms, and its own gradient."""

    loss: Callable

    def __call__(self, student_logits, teacher_logits):
        z = student_logits.clone().requires_grad_()
        loss = self.loss(z.log_softmax(-1), teacher_logits.log_softmax(-1))
        return loss.item(), torch.autograd.grad(loss, z)[0]


def divergence(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def shannon(log_q, log_p):
    log_m = ((log_q.exp() + log_p.exp()) / 2).log()
    return (divergence(log_q, log_m) + divergence(log_p, log_m)).mean() / 2


FIRST, SURE, NEVER = "some rows", "a teacher that is very sure", "a token that the student never says"
FAR = "rows that are far apart"


def cases(rng: random.Random) -> list[Case]:
    def case(label, student=drawn.logits, teacher=drawn.logits, rows=0, apart=()):
        rows, vocab = rows or rng.randint(4, 6), rng.randint(7, 10)

        def draw():
            both = student(rng, rows, vocab), teacher(rng, rows, vocab)
            return dict(zip(("student_logits", "teacher_logits"), both, strict=True))

        return Case(dict(telling(draw, reverse_kl, (), apart)), label)

    def never(rng, rows, vocab):
        z = drawn.logits(rng, rows, vocab)
        for row in z:
            row[rng.sample(range(vocab), 2)] = -torch.inf
        return z

    def very_sure(rng, rows, vocab):
        return drawn.sure(rng, rows, vocab, 3 * drawn.SURE)

    def far_apart(rng, rows, vocab):
        return drawn.far_apart(rng, drawn.logits(rng, rows, vocab))

    return [
        case(FIRST, apart=TOLD),
        case("a single row", rows=1),
        case(SURE, teacher=very_sure),
        case(NEVER, student=never),
        case(FAR, student=far_apart, teacher=far_apart),
    ]


def _one_largest(z):
    z = z - z.max()
    return z - z.exp().sum(-1, keepdim=True).log()


_forward = ByAutograd(lambda log_q, log_p: divergence(log_p, log_q).mean())
_forward_slope = Reverse(slope=lambda q, p, ratio, divergence: q - p)
_fixed = Reverse(slope=lambda q, p, ratio, divergence: torch.zeros_like(q))
_no_baseline = Reverse(slope=lambda q, p, ratio, divergence: q * ratio)
_of_probs = Reverse(slope=lambda q, p, ratio, divergence: ratio + 1)
_cross = ByAutograd(lambda log_q, log_p: -(log_q.exp() * log_p).sum(-1).mean())
_both = ByAutograd(lambda log_q, log_p: (divergence(log_p, log_q) + divergence(log_q, log_p)).mean() / 2)
_shannon = ByAutograd(shannon)
_sum = Reverse(mean=lambda each: each.sum(), slope_mean=lambda each: each)
_columns = Reverse(logarithm=lambda z: z.log_softmax(0))
_uphill = Reverse(slope=lambda q, p, ratio, divergence: q * (divergence - ratio))
_no_mean = Reverse(slope_mean=lambda each: each)
_above_0 = ByAutograd(lambda log_q, log_p: (log_q.exp() * (log_q - log_p)).relu().sum(-1).mean())
_magnitudes = ByAutograd(lambda log_q, log_p: (log_q.exp() * (log_q - log_p)).abs().sum(-1).mean())
_teachers = Reverse(slope=lambda q, p, ratio, divergence: p - q)
_log_of_softmax = Reverse(logarithm=lambda z: z.softmax(-1).log())
_log_of_more = Reverse(logarithm=lambda z: (z.softmax(-1) + 1e-10).log())
_clamped = Reverse(logarithm=lambda z: z.log_softmax(-1).clamp(min=-200.0))
_for_all_rows = Reverse(logarithm=_one_largest)
_never = Reverse(ratio=lambda log_q, log_p: log_q - log_p)


def _low_for_never(student_logits, teacher_logits):
    return reverse_kl(student_logits.clamp(min=-100.0), teacher_logits)


def _gradient_left(student_logits, teacher_logits):
    """The gradient is added to what the argument has from a call before."""
    log_q = student_logits.requires_grad_().clamp(min=-1e4).log_softmax(-1)
    loss = divergence(log_q, teacher_logits.log_softmax(-1)).mean()
    loss.backward()
    return loss.item(), student_logits.grad


def _numbers(student_logits, teacher_logits):
    loss, gradient = reverse_kl(student_logits, teacher_logits)
    return loss / gradient.shape[1], gradient / gradient.shape[1]


def _in_place(student_logits, teacher_logits):
    student_logits -= student_logits.logsumexp(-1, keepdim=True)
    return reverse_kl(student_logits, teacher_logits)


TOLD = (
    *(_forward, _forward_slope, _fixed, _no_baseline, _of_probs, _cross, _both, _shannon, _sum, _numbers),
    *(_columns, _uphill, _no_mean, _above_0, _magnitudes, _teachers),
)
EXERCISE = Exercise(
    name="06.reverse_kl",
    function="reverse_kl",
    title="The other way round",
    points=10,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="reverse_kl(student_logits, teacher_logits)",
    cases=cases,
    reference=reverse_kl,
    comparison=Parts({"loss": Near(rtol=1e-4), "gradient": Close(atol=1e-5, rtol=1e-4)}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has the divergence of the last exercise", _forward, FIRST, FORWARD),
        Mutant("has the other divergence's gradient", _forward_slope, FIRST, FORWARD_SLOPE),
        Mutant("holds the weights fixed", _fixed, FIRST, FIXED),
        Mutant("does not subtract the divergence", _no_baseline, FIRST, NO_BASELINE),
        Mutant("has the gradient for probabilities", _of_probs, FIRST, OF_PROBS),
        Mutant("leaves out the student's entropy", _cross, FIRST, CROSS),
        Mutant("has half of both", _both, FIRST, BOTH),
        Mutant("has the Jensen-Shannon divergence", _shannon, FIRST, SHANNON),
        Mutant("has a sum over positions", _sum, FIRST, SUM),
        Mutant("has a mean over all numbers", _numbers, FIRST, OF_NUMBERS),
        Mutant("has distributions of columns", _columns, FIRST, COLUMNS),
        Mutant("has a gradient uphill", _uphill, FIRST, UPHILL),
        Mutant("has the gradient of a sum", _no_mean, FIRST, NO_MEAN),
        Mutant("drops terms below 0", _above_0, FIRST, ABOVE_0),
        Mutant("adds magnitudes", _magnitudes, FIRST, ABOVE_0),
        Mutant("has the teacher's gradient", _teachers, FIRST, TEACHERS),
        Mutant("takes the logarithm of a softmax", _log_of_softmax, SURE),
        Mutant("adds a little before the logarithm", _log_of_more, SURE),
        Mutant("multiplies 0 by an infinity", _never, NEVER),
        Mutant("has a least logarithm", _clamped, SURE),
        Mutant("takes one largest away from all rows", _for_all_rows, FAR),
        Mutant("has a low number for what is never said", _low_for_never, FAR),
        Mutant("leaves a gradient in its input", _gradient_left, NoMutation().name),
        Mutant("normalises its input in place", _in_place, NoMutation().name),
    ),
)
