"""06.train_step: one step of training by distillation, on a head that teacher and student both read."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
One step of training, all of it. The student is an early layer of the teacher: its hidden states go through a
matrix of their own, `adapter`, and are read by **the same** `head` as the teacher's last ones (as in Zhang et
al. 2019, section 3). Both `adapter` and `head` are trained:

$$z^S = \text{head} \cdot \text{adapter} \cdot h^S, \qquad z^T = \text{head} \cdot h^T, \qquad
L = \frac{T^2}{N} \sum_{n=1}^{N} \mathrm{KL}\big(p_T \,\Vert\, q_T\big)_n$$

1. **The teacher is fixed.** $p_T$ comes from $z^T$ as a number would: no gradient flows through it, although
   `head` is in it. Else the head would learn to make the teacher say what the student can.
2. **Gradients accumulate.** The batch does not fit into memory at once, so it comes in parts of different
   sizes. Their gradients add up to that of $L$, the mean over **all** $N$ positions of all parts: each
   position counts the same.
3. **Clipping.** $g$ is the norm of both gradients together, the root of the sum of all their squares. Where
   it is above `max_norm`, both are multiplied by `max_norm / g`; else they stay (Pascanu et al. 2013).
4. **The step**: each weight less `lr` times its gradient, once.

Write `train_step(adapter, head, parts, temperature, max_norm, lr)`.

- `adapter`: `float32` tensor of shape `(D, C)`; `head`: of shape `(V, D)`.
- `parts`: a list of tuples `(student_hidden, teacher_hidden)`, `float32` tensors of shapes `(P, C)` and
  `(P, D)`, each part with its own `P`.
- `temperature`, `max_norm`, `lr`: floats above 0.
- returns `(loss, norm, adapter, head)`: $L$ before the step and $g$ before clipping, two floats, and both
  weights after the step, new tensors. Those that are given stay as they are.

```python
>>> adapter, head = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]])
>>> parts = [(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]))]
>>> parts += [(torch.tensor([[0.0]]), torch.tensor([[2.0]]))]       # of which there is nothing to learn
>>> loss, norm, new_adapter, new_head = train_step(adapter, head, parts, 1.0, max_norm=0.1, lr=1.0)
>>> round(loss, 4), round(norm, 4)
(0.154, 0.1729)
>>> new_adapter, new_head
(tensor([[1.0577]]), tensor([[ 1.0577],
        [-0.0577]]))
```
"""

HINTS = (
    "a = adapter.clone().requires_grad_(), and the head too: these two are the leaves. Loss of a part, "
    "backward, next part: .grad adds up by itself.",
    "(teacher_hidden @ h).detach(), or torch.no_grad() around it: otherwise h.grad has the teacher's side in "
    "it, too.",
    "N is the sum of all sizes, known before the first part: divide the sum over each part's positions by N. "
    "The norm is that of all numbers, torch.cat((a.grad.flatten(), h.grad.flatten())).norm().",
)

TEACHER_LEARNS = (
    "The head's gradient has the teacher's side in it: z^T is read by the head that is trained. Detach it."
)
HEAD_DETACHED = (
    "The head stays as it was: it was detached for the student too. Only the teacher's side is fixed."
)
ADAPTER_ALONE = "The adapter alone makes a step. The head is trained too."
HEAD_ALONE = "The head alone makes a step. The adapter is trained too."
NO_SQUARE = "The T² is missing in the loss, and so in the step."
REVERSED = "The divergence is the other way round. It is KL(p‖q), weighted by the teacher."
CROSS = "The loss is the cross-entropy: the step is right, but the teacher's entropy is to be taken away."
UPHILL = "The step goes uphill: it is the weight **less** lr times its gradient."
ALWAYS = (
    "The gradients were made as long as max_norm though they are shorter. Clipping never makes them longer."
)
SQUARED_NORM = "The norm lacks its root: g is the root of the sum of the squares."
TWO_NORMS = "That is the sum of two norms. g is one norm, of all numbers of both gradients together."
LARGEST = "That is the largest magnitude of a gradient. The norm is the root of the sum of squares."
AFTER = "The loss is to be that before the step; this one is computed with the new weights."
SUM = "That is the sum over all positions; L is their mean."
MEAN_OF_MEANS = (
    "The mean of each part was averaged: a position in a small part counts for more. Divide the sum of each "
    "part by N, the number of all positions."
)
PART_SUMS = (
    "The means of the parts were added up, and not divided by anything: with more parts the step grows."
)
LAST = "Only the last part's gradient is there: it was set to 0, or written over, at each part."
FIRST_PART = "Only the first part's gradient is there."
EACH = "The weights change after every part. A step is made once, when all gradients have been added up."
CLIPPED_NORM = "The norm that is told is that after clipping. The one before it is asked for."
NO_CLIP = "Nothing is clipped: the norm is above max_norm here, so both gradients are scaled down."
BY_VALUE = (
    "Single numbers were clamped. Clipping by the norm multiplies all of a gradient by one factor, so that "
    "its direction stays."
)
EACH_TENSOR = "Each gradient was clipped by itself. There is one norm and one factor, for both together."
LAST_LOSS = "That is the last part's loss alone: it is written over at each part. The parts' losses add up."
EACH_PART = "The gradients were clipped after each part. Clip once, when all parts have been added up."
HINTS_AT = {
    "parts of different sizes": "Each position counts the same, and the step is made after the last part.",
    "a norm that is too large": "Above max_norm both gradients are multiplied by max_norm / g; g is told.",
    "parts that are clipped": "First all parts add up, then one norm, one factor, one step.",
    "a temperature near 0": (
        "T is used as it is, however small. Then both are very sure: log_softmax has logarithms of what is "
        "too small for float32, softmax(…).log() has not."
    ),
    "nothing to learn": (
        "The gradients are 0 here, and g is too: it is not above max_norm, so they stay. Divide by g only "
        "where it is above."
    ),
    "a part of one position": "A part may have any size; N is the sum of them.",
}


def train_step(
    adapter: Float[Tensor, "D C"],
    head: Float[Tensor, "V D"],
    parts: Sequence,
    temperature: float,
    max_norm: float,
    lr: float,
) -> tuple[float, float, Float[Tensor, "D C"], Float[Tensor, "V D"]]:
    """Loss and gradients of each part, one norm, one step."""
    return Step()(adapter, head, parts, temperature, max_norm, lr)


def kl(student, teacher, t):
    log_p, log_q = (teacher / t).log_softmax(-1), (student / t).log_softmax(-1)
    return t**2 * (log_p.exp() * (log_p - log_q)).sum()


def together(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


def scaled_down(gradients, norm, max_norm):
    return [gradient * (max_norm / norm) if norm > max_norm else gradient for gradient in gradients]


@dataclass(frozen=True)
class Step:
    """The step; the fields are what mutants get wrong.

    Args:
        teacher: its logits, of its states and the head.
        student: its logits, of its states and both weights.
        loss: summed over the positions of a part, of both logits and the temperature.
        weight: of a part, of its size, all sizes and its number.
        norm: of both gradients.
        clip: both gradients, their norm and the largest that is allowed.
        told: norm, of that and the largest.
        rates: of adapter and head, of the one that is given.
    """

    teacher: Callable = lambda states, head: (states @ head.T).detach()
    student: Callable = lambda states, adapter, head: states @ adapter.T @ head.T
    loss: Callable = kl
    weight: Callable = lambda size, sizes, number: 1 / sum(sizes)
    norm: Callable = together
    clip: Callable = scaled_down
    told: Callable = lambda norm, max_norm: norm
    rates: Callable = lambda lr: (lr, lr)

    def __call__(self, adapter, head, parts, temperature, max_norm, lr):
        leaves = [weight.clone().requires_grad_() for weight in (adapter, head)]
        sizes = [len(states) for states, _ in parts]
        loss, gradients = 0.0, [torch.zeros_like(weight) for weight in (adapter, head)]
        for number, (states, teacher_states) in enumerate(parts):
            logits = self.student(states, *leaves), self.teacher(teacher_states, leaves[1])
            part = self.loss(*logits, temperature) * self.weight(len(states), sizes, number)
            own = torch.autograd.grad(part, leaves, allow_unused=True)
            own = [torch.zeros_like(w) if g is None else g for g, w in zip(own, leaves, strict=True)]
            loss += part.item()
            gradients = [one + other for one, other in zip(gradients, own, strict=True)]
        norm = self.norm(gradients)
        steps = zip((adapter, head), self.clip(gradients, norm, max_norm), self.rates(lr), strict=True)
        after = [weight - rate * gradient for weight, gradient, rate in steps]
        return loss, float(self.told(norm, max_norm)), *after


FIRST, SIZES = "one part, nothing to clip", "parts of different sizes"
CLIPPED, BOTH = "a norm that is too large", "parts that are clipped"
NEAR_0 = "a temperature near 0"


def cases(rng: random.Random) -> list[Case]:
    def case(label, sizes, share, apart=(), low=1.5, states=1.0):
        """`share`: of the norm, that is allowed; `states`: what the student's are multiplied by."""
        width, own_width, vocab = rng.randint(3, 4), rng.randint(2, 4), rng.randint(5, 7)
        temperature, lr = rng.uniform(low, 1.6 * low), rng.uniform(0.5, 1.0)

        def draw():
            given = {
                "adapter": normal(rng, width, own_width),
                "head": normal(rng, vocab, width),
                "parts": [
                    (states * normal(rng, size, own_width), normal(rng, size, width)) for size in sizes
                ],
                "temperature": temperature,
                "max_norm": 1e9,
                "lr": lr,
            }
            given["max_norm"] = share * train_step(**given)[1] or share
            return given

        return Case(dict(telling(draw, train_step, (), apart)), label)

    sizes = rng.sample([2, 3, 5, 7], 3)
    return [
        case(FIRST, [rng.randint(4, 6)], rng.uniform(2.0, 4.0), TOLD_FIRST),
        case(SIZES, sizes, rng.uniform(8.0, 9.0), TOLD_SIZES),
        case(CLIPPED, [rng.randint(4, 6)], rng.uniform(0.2, 0.4), TOLD_CLIPPED),
        case(BOTH, sizes[::-1], rng.uniform(0.2, 0.4), (_each_part,)),
        case("a part of one position", [1, rng.randint(2, 4)], rng.uniform(0.5, 0.8)),
        case(NEAR_0, [rng.randint(4, 6)], rng.uniform(2.0, 4.0), low=0.02),
        case("nothing to learn", [2, 1], 1.0, states=0.0),
    ]


def _reversed_kl(student, teacher, t):
    log_p, log_q = (teacher / t).log_softmax(-1), (student / t).log_softmax(-1)
    return t**2 * (log_q.exp() * (log_q - log_p)).sum()


def _always_scaled(gradients, norm, max_norm):
    return [gradient * max_norm / norm for gradient in gradients]


def _clamped(gradients, norm, max_norm):
    return [gradient.clamp(-max_norm, max_norm) for gradient in gradients]


def _by_the_norm(gradients, norm, max_norm):
    """To length 1 first, which is 0 / 0 where there is nothing."""
    return [gradient / norm * norm.clamp(max=max_norm) for gradient in gradients]


def _of_softmax(student, teacher, t):
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    return t**2 * torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum()


def _each_clipped(gradients, norm, max_norm):
    return [gradient * min(1.0, max_norm / gradient.norm()) for gradient in gradients]


_teacher_learns = Step(teacher=lambda states, head: states @ head.T)
_head_detached = Step(student=lambda states, adapter, head: states @ adapter.T @ head.detach().T)
_adapter_alone = Step(rates=lambda lr: (lr, 0.0))
_head_alone = Step(rates=lambda lr: (0.0, lr))
_no_square = Step(loss=lambda student, teacher, t: kl(student, teacher, t) / t**2)
_reversed = Step(loss=_reversed_kl)
_cross = Step(loss=lambda s, p, t: -(t**2) * ((p / t).softmax(-1) * (s / t).log_softmax(-1)).sum())
_uphill = Step(rates=lambda lr: (-lr, -lr))
_always = Step(clip=_always_scaled)
_squared_norm = Step(told=lambda norm, max_norm: norm**2)
_two_norms = Step(norm=lambda gradients: sum(gradient.norm() for gradient in gradients))
_largest = Step(norm=lambda gradients: max(gradient.abs().max() for gradient in gradients))
_sum = Step(weight=lambda size, sizes, number: 1.0)
_mean_of_means = Step(weight=lambda size, sizes, number: 1 / (size * len(sizes)))
_part_sums = Step(weight=lambda size, sizes, number: 1 / size)
_last = Step(weight=lambda size, sizes, number: float(number == len(sizes) - 1) / sum(sizes))
_first_part = Step(weight=lambda size, sizes, number: float(number == 0) / sum(sizes))
_clipped_norm = Step(told=lambda norm, max_norm: min(norm, max_norm))
_log_of_softmax = Step(loss=_of_softmax)
_to_one = Step(clip=_by_the_norm)
_no_clip = Step(clip=lambda gradients, norm, max_norm: gradients)
_by_value = Step(clip=_clamped)
_each_tensor = Step(clip=_each_clipped)


def _after(adapter, head, parts, temperature, max_norm, lr):
    _, norm, *weights = train_step(adapter, head, parts, temperature, max_norm, lr)
    return train_step(*weights, parts, temperature, max_norm, lr)[0], norm, *weights


def _stepping(told: Callable, *, own_means: bool = False) -> Callable:
    """A step after each part, with its share of the gradient or its own mean's; `told` is of all norms."""

    def mistaken(adapter, head, parts, temperature, max_norm, lr):
        size, norms, loss = sum(len(states) for states, _ in parts), [], 0.0
        for part in parts:
            share = len(part[0]) / size
            scale = 1.0 if own_means else share
            given = adapter, head, [part], temperature, max_norm / scale, lr * scale
            own, norm, adapter, head = train_step(*given)
            loss, norms = loss + share * own, [*norms, scale * norm]
        return loss, told(norms), adapter, head

    return mistaken


def _each_part(adapter, head, parts, temperature, max_norm, lr):
    """What has been added up is clipped whenever a part has been added."""
    size, loss, gradients = sum(len(states) for states, _ in parts), 0.0, [0.0, 0.0]
    for part in parts:
        share = len(part[0]) / size
        own, _, *after = train_step(adapter, head, [part], temperature, 1e9, 1.0)
        befores = zip((adapter, head), after, gradients, strict=True)
        gradients = [so_far + share * (before - new) for before, new, so_far in befores]
        norm, loss = together(gradients), loss + share * own
        gradients = scaled_down(gradients, norm, max_norm)
    return loss, norm.item(), adapter - lr * gradients[0], head - lr * gradients[1]


def _at_least_1(adapter, head, parts, temperature, max_norm, lr):
    return train_step(adapter, head, parts, max(temperature, 1.0), max_norm, lr)


def _last_loss(adapter, head, parts, temperature, max_norm, lr):
    """A loss that is written over at each part, of gradients that are not."""
    _, *right = train_step(adapter, head, parts, temperature, max_norm, lr)
    size, last = sum(len(states) for states, _ in parts), parts[-1:]
    loss = train_step(adapter, head, last, temperature, max_norm, lr)[0] * len(last[0][0]) / size
    return loss, *right


def _gradient_left(adapter, head, parts, temperature, max_norm, lr):
    """Gradients are added to what the arguments have from a call before."""
    found = train_step(adapter, head, parts, temperature, max_norm, lr)
    adapter.requires_grad_().sum().backward()
    return found


def _in_place(adapter, head, parts, temperature, max_norm, lr):
    loss, norm, *after = train_step(adapter, head, parts, temperature, max_norm, lr)
    return loss, norm, adapter.copy_(after[0]), head.copy_(after[1])


_each = _stepping(sum)
_each_of_the_mean = _stepping(lambda norms: norms[-1])
_each_of_its_mean = _stepping(lambda norms: norms[-1], own_means=True)
TOLD_FIRST = (
    *(_teacher_learns, _head_detached, _adapter_alone, _head_alone, _no_square, _reversed, _cross, _uphill),
    *(_always, _squared_norm, _two_norms, _largest, _after, _sum),
)
EVERY = (_each, _each_of_its_mean, _each_of_the_mean)
TOLD_SIZES = (_mean_of_means, _part_sums, _last, _first_part, _last_loss, *EVERY)
TOLD_CLIPPED = (_clipped_norm, _no_clip, _by_value, _each_tensor)
WEIGHT = Close(atol=2e-5, rtol=1e-4, axes=("row", "column"))
EXERCISE = Exercise(
    name="06.train_step",
    function="train_step",
    title="A step of training",
    points=14,
    minutes=30,
    level=5,
    asks=ASKS,
    signature="train_step(adapter, head, parts, temperature, max_norm, lr)",
    cases=cases,
    reference=train_step,
    comparison=Parts({"loss": Near(rtol=1e-4), "norm": Near(rtol=1e-4), "adapter": WEIGHT, "head": WEIGHT}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has a teacher with gradients", _teacher_learns, FIRST, TEACHER_LEARNS),
        Mutant("detaches the head altogether", _head_detached, FIRST, HEAD_DETACHED),
        Mutant("trains the adapter alone", _adapter_alone, FIRST, ADAPTER_ALONE),
        Mutant("trains the head alone", _head_alone, FIRST, HEAD_ALONE),
        Mutant("forgets T²", _no_square, FIRST, NO_SQUARE),
        Mutant("has the divergence the wrong way round", _reversed, FIRST, REVERSED),
        Mutant("has the cross-entropy", _cross, FIRST, CROSS),
        Mutant("goes uphill", _uphill, FIRST, UPHILL),
        Mutant("clips always", _always, FIRST, ALWAYS),
        Mutant("tells the norm squared", _squared_norm, FIRST, SQUARED_NORM),
        Mutant("adds two norms", _two_norms, FIRST, TWO_NORMS),
        Mutant("takes the largest for the norm", _largest, FIRST, LARGEST),
        Mutant("tells the loss after the step", _after, FIRST, AFTER),
        Mutant("has a sum over positions", _sum, FIRST, SUM),
        Mutant("has a mean of means", _mean_of_means, SIZES, MEAN_OF_MEANS),
        Mutant("adds up means", _part_sums, SIZES, PART_SUMS),
        Mutant("keeps the last part's gradient", _last, SIZES, LAST),
        Mutant("keeps the first part's gradient", _first_part, SIZES, FIRST_PART),
        Mutant("tells the last part's loss", _last_loss, SIZES, LAST_LOSS),
        Mutant("makes a step for each part", _each, SIZES, EACH),
        Mutant("makes a step of its own for each part", _each_of_its_mean, SIZES, EACH),
        Mutant("makes a step for each part's share", _each_of_the_mean, SIZES, EACH),
        Mutant("tells the norm after clipping", _clipped_norm, CLIPPED, CLIPPED_NORM),
        Mutant("does not clip", _no_clip, CLIPPED, NO_CLIP),
        Mutant("clips numbers", _by_value, CLIPPED, BY_VALUE),
        Mutant("clips each gradient", _each_tensor, CLIPPED, EACH_TENSOR),
        Mutant("clips each part", _each_part, BOTH, EACH_PART),
        Mutant("sharpens nothing", _at_least_1, NEAR_0),
        Mutant("takes the logarithm of a softmax", _log_of_softmax, NEAR_0),
        Mutant("divides by a norm of 0", _to_one, "nothing to learn"),
        Mutant("leaves gradients in its inputs", _gradient_left, NoMutation().name),
        Mutant("writes into the weights", _in_place, NoMutation().name),
    ),
)
