"""06.kd_loss: the teacher's divergence from the student at a temperature, and its gradient."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
The student is to say what the teacher says. How far it is from that, at a position $n$, is the
Kullback-Leibler divergence of the teacher's softened distribution $p_T$ from the student's $q_T$. The loss is
its mean over the positions that count, times $T^2$ (Hinton et al. 2015, section 2):

$$L = \frac{T^2}{|M|} \sum_{n \in M} \mathrm{KL}(p_T \,\Vert\, q_T)_n, \qquad
\mathrm{KL}(p \,\Vert\, q) = \sum_k p(k) \ln \frac{p(k)}{q(k)}, \qquad
\frac{\partial L}{\partial z_{nk}} = \frac{T}{|M|} \big(q_T(k) - p_T(k)\big)_n$$

The gradient is that for the student's logits $z$. Both softmaxes make it smaller by $1/T$ and, since
flattened distributions are closer together, by about $1/T$ again where $T$ is large. There the $T^2$ makes up
for it, so that $T$ can be changed without another learning rate; near 1 it does so only in part. At a
position that does not count the gradient is 0.

Write `kd_loss(student_logits, teacher_logits, temperature, mask)`.

- `student_logits`, `teacher_logits`: `float32` tensors of shape `(N, V)`. The teacher's may be `-inf`, for
  tokens that it never says; these add nothing. The student's are finite. Either may be so sure of a token
  that the probabilities of others are too small for `float32`: their logarithms are not.
- `temperature`: a float above 0.
- `mask`: `bool` tensor of shape `(N,)`, true where a position counts; somewhere it is.
- returns `(loss, gradient)`: $L$, a float, and $\partial L / \partial z$, a `float32` tensor of shape
  `(N, V)`. Write the formula down, or let autograd have it: `z = student_logits.clone().requires_grad_()` and
  `torch.autograd.grad(loss, z)`.

```python
>>> student = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
>>> teacher = torch.tensor([[4.0, 2.0, 0.0], [0.0, 4.0, 4.0]])
>>> loss, gradient = kd_loss(student, teacher, temperature=2.0, mask=torch.tensor([True, False]))
>>> round(loss, 4)
0.2152
>>> gradient
tensor([[-0.1782, -0.0656,  0.2438],
        [ 0.0000,  0.0000,  0.0000]])
```
"""

HINTS = (
    "Two log_softmax along the vocabulary, both of logits divided by T; everything follows from them.",
    "p = log_p.exp(); the divergence of a position is (p * (log_p - log_q)).sum(-1). Then the mean over the "
    "positions of the mask, times T².",
    "F.kl_div(log_q, log_p, log_target=True, reduction='none') has the same terms: the student first, as "
    "logarithms. Its reduction='mean' divides by all numbers, N · V, not by positions.",
)

NO_SQUARE = "The T² is missing: loss and gradient are smaller by T². Without it a larger T is a smaller step."
T_ONCE = "Times T, not T². The gradient is T (q − p), but the loss has the square."
DIVIDED = "Divided by T², where it is to be multiplied: the gradient vanishes with T as 1/T⁴."
REVERSED = (
    "That is KL(q‖p), the divergence the other way round: the student's logarithms are weighted by the "
    "student. Weight by the teacher: Σ p (ln p − ln q)."
)
CROSS = (
    "That is the cross-entropy −Σ p ln q. Its gradient is right, but it is larger than the divergence by "
    "the teacher's entropy: Σ p (ln p − ln q)."
)
OF_NUMBERS = (
    "That is a mean over all numbers, N · V of them: F.kl_div's reduction='mean' does that. The sum over the "
    "vocabulary is a divergence; the mean is over positions alone."
)
COLUMNS = "The softmax runs over the positions here. A distribution is a row: dim=-1."
SUM = "That is the sum over the positions, not their mean."
TEACHER_ALONE = "Only the teacher is softened. Student and teacher have the same temperature."
STUDENT_ALONE = "Only the student is softened. Student and teacher have the same temperature."
NO_T = "There is no temperature in these distributions: divide both logits by T before the softmax."
UPHILL = "The gradient has the wrong sign: it is q − p, so that a step against it brings q nearer to p."
NO_MEAN = "The gradient is that of the sum; the loss is a mean over the positions that count."
INNER = (
    "The gradient is T² (q − p): the division of the logits by T was forgotten, which is a factor 1/T by "
    "the chain rule."
)
TEACHERS = (
    "That is the gradient for the teacher's logits. The teacher is fixed, and gets none; the student's is "
    "asked for."
)
HINTS_AT = {
    "positions that do not count": (
        "Where the mask is false, nothing is added and the gradient is 0; and the mean is over the positions "
        "where it is true, mask.sum() of them."
    ),
    "a token that the teacher never says": (
        "p is 0 there, and ln p is -inf: 0 · (-inf) is NaN. The term is 0: torch.where(p > 0, …), or "
        "F.kl_div with probabilities."
    ),
    "a student that is very sure": (
        "softmax(…).log() is ln 0 where a probability is too small for float32. log_softmax has the "
        "logarithm itself, which is no small number; adding something before the log changes it."
    ),
    "a temperature below 1": "T below 1 is a temperature as any other, and T² is below 1 then.",
    "rows that are far apart": (
        "Each row has a largest number of its own. One for all rows leaves the low ones with exp of nothing, "
        "which is 0; and a low number in place of -inf may be the largest there."
    ),
    "a teacher that is very sure": "softmax(…).log() is -inf for the other tokens, and 0 · (-inf) is NaN.",
}


def kd_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    temperature: float,
    mask: Bool[Tensor, " N"],
) -> tuple[float, Float[Tensor, "N V"]]:
    """The formulas of the text, in float32."""
    log_p = (teacher_logits / temperature).log_softmax(-1)
    log_q = (student_logits / temperature).log_softmax(-1)
    p, count = log_p.exp(), mask.sum()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    loss = temperature**2 * terms.sum(-1)[mask].sum() / count
    gradient = temperature * (log_q.exp() - p) / count
    return loss.item(), torch.where(mask[:, None], gradient, 0.0)


def forward(log_p, log_q):
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


@dataclass(frozen=True)
class KD:
    """The loss, and its gradient by autograd; the fields are what mutants get wrong.

    Args:
        teacher, student: temperature of either, of the one given.
        logarithm: of the probabilities of divided logits.
        terms: (N, V), of both logarithms.
        mean: of the terms, over positions of the mask.
        factor: of the temperature.
        gradient: what is told of it, of the right one, the temperature and the mask.
    """

    teacher: Callable = lambda t: t
    student: Callable = lambda t: t
    logarithm: Callable = lambda z: z.log_softmax(-1)
    terms: Callable = forward
    mean: Callable = lambda terms, mask: terms.sum(-1)[mask].mean()
    factor: Callable = lambda t: t**2
    gradient: Callable = lambda gradient, t, mask: gradient

    def __call__(self, student_logits, teacher_logits, temperature, mask):
        z = student_logits.clone().requires_grad_()
        log_p = self.logarithm(teacher_logits / self.teacher(temperature))
        log_q = self.logarithm(z / self.student(temperature))
        loss = self.factor(temperature) * self.mean(self.terms(log_p, log_q), mask)
        (gradient,) = torch.autograd.grad(loss, z)
        return loss.item(), self.gradient(gradient, temperature, mask)


FIRST = "every position counts"


def cases(rng: random.Random) -> list[Case]:
    def case(label, student=drawn.logits, teacher=drawn.logits, masked=0, low=1.6, wrong=(), apart=()):
        """`masked`: how many positions do not count, None for all but one."""
        rows, vocab = rng.randint(4, 6), rng.randint(7, 10)
        temperature = rng.uniform(low, 1.9 * low)
        left_out = rows - 1 if masked is None else masked

        def draw():
            mask = torch.ones(rows, dtype=torch.bool)
            mask[rng.sample(range(rows), left_out)] = False
            return {
                "student_logits": student(rng, rows, vocab),
                "teacher_logits": teacher(rng, rows, vocab),
                "temperature": temperature,
                "mask": mask,
            }

        return Case(dict(telling(draw, kd_loss, wrong, apart)), label)

    def never(rng, rows, vocab):
        z = drawn.logits(rng, rows, vocab)
        for row in z:
            row[rng.sample(range(vocab), 2)] = -torch.inf
        return z

    def very_sure(rng, rows, vocab):
        return drawn.sure(rng, rows, vocab, 3 * drawn.SURE)  # also after the division by a temperature

    def far_apart(rng, rows, vocab):
        return drawn.far_apart(rng, drawn.logits(rng, rows, vocab))

    def far_and_never(rng, rows, vocab):
        return drawn.far_apart(rng, never(rng, rows, vocab))

    masks = (_unmasked, _by_all, _gradient_everywhere)
    return [
        case(FIRST, apart=TOLD),
        case("positions that do not count", masked=2, wrong=masks),
        case("a token that the teacher never says", teacher=never, masked=1),
        case("a student that is very sure", student=very_sure, masked=None),
        case("a teacher that is very sure", teacher=very_sure),
        case("a temperature below 1", low=0.4, masked=1),
        case("rows that are far apart", student=far_apart, teacher=far_and_never),
    ]


def _times_p(log_p, log_q):
    """0 · (-inf) as floats have it."""
    return log_p.exp() * (log_p - log_q)


def _one_largest(z):
    z = z - z.detach().max()
    return z - z.exp().sum(-1, keepdim=True).log()


_no_square = KD(factor=lambda t: 1.0)
_t_once = KD(factor=lambda t: t)
_divided = KD(factor=lambda t: t**-2)
_reversed = KD(terms=lambda log_p, log_q: log_q.exp() * (log_q - log_p))
_cross = KD(terms=lambda log_p, log_q: -log_p.exp() * log_q)
_of_numbers = KD(mean=lambda terms, mask: terms[mask].mean())
_columns = KD(logarithm=lambda z: z.log_softmax(0))
_sum = KD(mean=lambda terms, mask: terms[mask].sum())
_teacher_alone = KD(student=lambda t: 1.0)
_student_alone = KD(teacher=lambda t: 1.0)
_no_t = KD(student=lambda t: 1.0, teacher=lambda t: 1.0)
_uphill = KD(gradient=lambda gradient, t, mask: -gradient)
_no_mean = KD(gradient=lambda gradient, t, mask: gradient * mask.sum())
_inner = KD(gradient=lambda gradient, t, mask: gradient * t)
_unmasked = KD(mean=lambda terms, mask: terms.sum(-1).mean())
_by_all = KD(mean=lambda terms, mask: terms.sum(-1)[mask].sum() / len(mask))
_never = KD(terms=_times_p)
_log_of_softmax = KD(logarithm=lambda z: z.softmax(-1).log())
_for_all_rows = KD(logarithm=_one_largest)
_log_of_more = KD(logarithm=lambda z: (z.softmax(-1) + 1e-10).log())


def _gradient_everywhere(student_logits, teacher_logits, temperature, mask):
    loss, _ = kd_loss(student_logits, teacher_logits, temperature, mask)
    _, gradient = kd_loss(student_logits, teacher_logits, temperature, torch.ones_like(mask))
    return loss, gradient * len(mask) / mask.sum()


def _at_least_1(student_logits, teacher_logits, temperature, mask):
    return kd_loss(student_logits, teacher_logits, max(temperature, 1.0), mask)


def _by_product(student_logits, teacher_logits, temperature, mask):
    """Positions that do not count as logits of 0, of student and teacher."""
    loss, gradient = kd_loss(student_logits, teacher_logits * mask[:, None], temperature, mask)
    nothing = (teacher_logits * mask[:, None]).amax(-1) * 0
    return loss + nothing.sum().item(), gradient


def _squeezed(student_logits, teacher_logits, temperature, mask):
    """A mean over the first dimension, of whatever is left."""
    z = student_logits.clone().requires_grad_()
    log_p, log_q = ((x[mask].squeeze() / temperature).log_softmax(-1) for x in (teacher_logits, z))
    loss = temperature**2 * forward(log_p, log_q).sum() / len(log_p)
    return loss.item(), torch.autograd.grad(loss, z)[0]


def _gradient_left(student_logits, teacher_logits, temperature, mask):
    """The gradient is added to what the argument has from a call before."""
    z = student_logits.requires_grad_()
    terms = forward((teacher_logits / temperature).log_softmax(-1), (z / temperature).log_softmax(-1))
    loss = temperature**2 * terms.sum(-1)[mask].mean()
    loss.backward()
    return loss.item(), z.grad


def _teachers(student_logits, teacher_logits, temperature, mask):
    z = teacher_logits.clone().requires_grad_()
    terms = forward((z / temperature).log_softmax(-1), (student_logits / temperature).log_softmax(-1))
    loss = temperature**2 * terms.sum(-1)[mask].mean()
    return loss.item(), torch.autograd.grad(loss, z)[0]


def _in_place(student_logits, teacher_logits, temperature, mask):
    student_logits /= temperature
    teacher_logits /= temperature
    loss, gradient = kd_loss(student_logits, teacher_logits, 1.0, mask)
    return temperature**2 * loss, temperature * gradient


TOLD = (
    *(_no_square, _t_once, _divided, _reversed, _cross, _of_numbers, _columns, _sum, _teacher_alone),
    *(_student_alone, _no_t, _uphill, _no_mean, _inner, _teachers),
)
EXERCISE = Exercise(
    name="06.kd_loss",
    function="kd_loss",
    title="What the teacher says",
    points=12,
    minutes=20,
    level=2,
    asks=ASKS,
    signature="kd_loss(student_logits, teacher_logits, temperature, mask)",
    cases=cases,
    reference=kd_loss,
    comparison=Parts({"loss": Near(rtol=1e-4), "gradient": Close(atol=2e-6, rtol=1e-4)}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("forgets T²", _no_square, FIRST, NO_SQUARE),
        Mutant("multiplies by T once", _t_once, FIRST, T_ONCE),
        Mutant("divides by T²", _divided, FIRST, DIVIDED),
        Mutant("has the divergence the wrong way round", _reversed, FIRST, REVERSED),
        Mutant("has the cross-entropy", _cross, FIRST, CROSS),
        Mutant("has a mean over all numbers", _of_numbers, FIRST, OF_NUMBERS),
        Mutant("has distributions of columns", _columns, FIRST, COLUMNS),
        Mutant("has a sum over positions", _sum, FIRST, SUM),
        Mutant("softens the teacher alone", _teacher_alone, FIRST, TEACHER_ALONE),
        Mutant("softens the student alone", _student_alone, FIRST, STUDENT_ALONE),
        Mutant("softens neither", _no_t, FIRST, NO_T),
        Mutant("has a gradient uphill", _uphill, FIRST, UPHILL),
        Mutant("has the gradient of a sum", _no_mean, FIRST, NO_MEAN),
        Mutant("forgets the chain rule", _inner, FIRST, INNER),
        Mutant("has the teacher's gradient", _teachers, FIRST, TEACHERS),
        Mutant("sees no mask", _unmasked, "positions that do not count"),
        Mutant("divides by all positions", _by_all, "positions that do not count"),
        Mutant("has gradients everywhere", _gradient_everywhere, "positions that do not count"),
        Mutant("multiplies 0 by an infinity", _never, "a token that the teacher never says"),
        Mutant("takes the logarithm of a softmax", _log_of_softmax, "a student that is very sure"),
        Mutant("adds a little before the logarithm", _log_of_more, "a student that is very sure"),
        Mutant("multiplies with the mask", _by_product, "a token that the teacher never says"),
        Mutant("squeezes what is left", _squeezed, "a student that is very sure"),
        Mutant("sharpens nothing", _at_least_1, "a temperature below 1"),
        Mutant("takes one largest away from all rows", _for_all_rows, "rows that are far apart"),
        Mutant("leaves a gradient in its input", _gradient_left, NoMutation().name),
        Mutant("divides its inputs in place", _in_place, NoMutation().name),
    ),
)
