"""06.projection_loss: hidden states of another width, over texts of different lengths."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
What a teacher says last is a small part of what it has worked out. **Feature-based** distillation compares
hidden states. Those of a student are narrower, so a projection $\Phi$, a matrix that is trained with the
student and thrown away afterwards, brings them to the teacher's width (FitNets, Romero et al. 2015,
section 2.2):

$$d_{bn} = \Phi\, h^S_{bn} - h^T_{bn}, \qquad
L = \frac{1}{|M| \, D} \sum_{(b, n) \in M} \lVert d_{bn} \rVert^2, \qquad
\frac{\partial L}{\partial \Phi} = \frac{2}{|M| \, D} \sum_{(b, n) \in M} d_{bn}\, (h^S_{bn})^\top$$

(The chapter divides by the squares of $h^T$ in place of their number $|M| D$, so that large states and small
ones count alike; the best $\Phi$ is the same.)

The texts of a batch are of different lengths, and are padded on the **right**. $M$ holds the positions of all
texts that are no padding: $n < \text{lengths}_b$. Each of these counts the same, in whichever text it is.

Write `projection_loss(student_hidden, teacher_hidden, weight, lengths)`.

- `student_hidden`: $h^S$, a `float32` tensor of shape `(B, N, C)`; `teacher_hidden`: $h^T$, of shape
  `(B, N, D)`. What stands in the padding is anything, NaN among it: memory that nobody has written.
- `weight`: $\Phi$, a `float32` tensor of shape `(D, C)`, as `nn.Linear(C, D)` has it.
- `lengths`: `int64` tensor of shape `(B,)`, each from 0 to `N`; not all are 0.
- returns `(loss, gradient)`: $L$, a float, and $\partial L / \partial \Phi$, a `float32` tensor of shape
  `(D, C)`.

```python
>>> student = torch.tensor([[[1.0], [2.0]], [[3.0], [torch.nan]]])       # B = 2, N = 2, C = 1
>>> teacher = torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[3.0, 2.0], [0.0, 0.0]]])
>>> weight = torch.tensor([[1.0], [0.0]])
>>> projection_loss(student, teacher, weight, torch.tensor([2, 1]))     # 1² + 2² over 3 positions and D = 2
(0.8333333134651184, tensor([[ 0.0000],
        [-2.6667]]))
```
"""

HINTS = (
    "Which positions count? mask = torch.arange(N) < lengths[:, None], of shape (B, N). student_hidden[mask] "
    "is then a matrix with a row for each.",
    "With these two matrices nothing is ragged any more: d = h_s @ weight.T - h_t, and the loss is "
    "d.square().mean().",
    "The gradient is 2 * d.T @ h_s / d.numel(); or autograd's, for weight.clone().requires_grad_().",
)

TRANSPOSED = "Φ is the wrong way round: a linear layer computes h @ weight.T, row n makes output n."
PROJECTED_TEACHER = "The teacher was projected. Φ brings the student's states to the teacher's width."
DIFFERENCE = "The difference was projected. Only the student's states are; the teacher's stay as they are."
UNPROJECTED = "Nothing was projected: compare Φ h of the student with the teacher's state."
SUM_WIDTH = (
    "The squares are added up along the width. L is divided by D too: a mean over all numbers that count."
)
SUM = "That is the sum of the squares. It is to be divided by the number of positions, and by D."
ROOT = "Those are lengths of differences, with a root. The squares themselves are averaged."
MAGNITUDES = "Those are magnitudes. The squares of the differences are averaged."
NORMALISED = (
    "The states were brought to length 1 first, as a cosine has it. Here they are compared as they are."
)
NO_TWO = "The gradient lacks the factor 2 of the square; or the loss was halved for it."
GRADIENT_T = "The gradient is transposed: it has the shape of the weight, (D, C): d is on the left."
UPHILL = "The gradient has the wrong sign: d is the student's minus the teacher's."
NO_MEAN = "The gradient is that of the sum of squares. It is divided by |M| · D, as the loss is."
NOTHING = "The gradient is 0: something was detached on the way, the student's projected states perhaps."
FIRST_TOKENS = "Only the first token of each text is compared. All positions count."
ONE_LESS = "The last token of each text is missing: the positions are those with t < lengths, from 0."
TEXTS = (
    "Each text counts the same here, by a mean of its own. Each **position** counts the same: one sum, one "
    "number of positions, for the whole batch."
)
HINTS_AT = {
    "another width": "The shapes are those of nn.Linear(C, D): (D, C) times a column of C numbers.",
    "texts of different lengths": (
        "Padding adds nothing, and is not counted: |M| is lengths.sum(). The padding is on the right."
    ),
    "padding that is no number": (
        "0 · NaN is NaN, and so is 0 · inf: a mask cannot be multiplied with. Pick the positions that "
        "count, hidden[mask], or put 0 there with torch.where before anything is computed."
    ),
    "a text of no tokens": "A text without tokens adds nothing. Its own mean would be 0 / 0.",
}


def projection_loss(
    student_hidden: Float[Tensor, "B N C"],
    teacher_hidden: Float[Tensor, "B N D"],
    weight: Float[Tensor, "D C"],
    lengths: Int[Tensor, " B"],
) -> tuple[float, Float[Tensor, "D C"]]:
    """Two matrices of the positions that count, and their mean square."""
    return Projection()(student_hidden, teacher_hidden, weight, lengths)


def padded_right(lengths, size):
    return torch.arange(size) < lengths[:, None]


@dataclass(frozen=True)
class Projection:
    """The loss and its gradient by the formulas; the fields are what mutants get wrong.

    Args:
        mask: positions that count, of the lengths and the longest.
        states: of the student and of the teacher, of those of both.
        difference: of both and the weight.
        count: what the sum is divided by, of the differences and the size of the batch in numbers.
        power: of the differences, in the sum.
        gradient: of the right one, the number that it was divided by.
    """

    mask: Callable = padded_right
    states: Callable = lambda student, teacher: (student, teacher)
    difference: Callable = lambda student, teacher, weight: student @ weight.T - teacher
    count: Callable = lambda r, size: r.numel()
    power: Callable = torch.square
    gradient: Callable = lambda gradient, count: gradient

    def __call__(self, student_hidden, teacher_hidden, weight, lengths):
        mask = self.mask(lengths, student_hidden.shape[1])
        student, teacher = self.states(student_hidden[mask], teacher_hidden[mask])
        r = self.difference(student, teacher, weight)
        count = self.count(r, teacher_hidden.numel())
        gradient = 2 * r.T @ student / count
        return (self.power(r).sum() / count).item(), self.gradient(gradient, count)


@dataclass(frozen=True)
class ByAutograd:
    """A loss of the states that count and the weight, and its own gradient."""

    loss: Callable

    def __call__(self, student_hidden, teacher_hidden, weight, lengths):
        mask = padded_right(lengths, student_hidden.shape[1])
        phi = weight.clone().requires_grad_()
        loss = self.loss(student_hidden[mask], teacher_hidden[mask], phi)
        return loss.item(), torch.autograd.grad(loss, phi)[0]


FIRST, RAGGED = "as wide as each other", "texts of different lengths"
NO_NUMBER = "padding that is no number"


def cases(rng: random.Random) -> list[Case]:
    def case(label, width, teacher_width, lengths, size=4, padding=None, wrong=(), apart=()):
        def draw():
            given = {
                "student_hidden": normal(rng, len(lengths), size, width),
                "teacher_hidden": normal(rng, len(lengths), size, teacher_width),
                "weight": normal(rng, teacher_width, width),
                "lengths": torch.tensor(lengths),
            }
            if padding is not None:
                for name in ("student_hidden", "teacher_hidden"):
                    places = ~padded_right(given["lengths"], size)
                    given[name][places] = padding(given[name][places].shape)
            return given

        return Case(dict(telling(draw, projection_loss, wrong, apart)), label)

    def unwritten(shape):
        values = [rng.choice((torch.nan, torch.inf, -torch.inf, 1e30)) for _ in range(shape.numel())]
        return torch.tensor(values).view(shape)

    ragged = rng.sample([1, 2, 3, 5], 3)
    masks = (_unmasked, _by_all, _one_more, _padded_left, _of_texts)
    return [
        case(FIRST, 3, 3, [4, 4], apart=TOLD),
        case("another width", 2, rng.randint(4, 5), [4, 4, 4]),
        case(RAGGED, 2, 3, ragged, 6, wrong=masks),
        case(NO_NUMBER, 2, 4, ragged, 5, unwritten, (_by_product, _without_nan)),
        case("a text of no tokens", 3, 4, rng.sample([0, 2, 4], 3)),
    ]


def mean_square(r):
    return r.square().mean()


_transposed = ByAutograd(lambda s, t, phi: mean_square(s @ phi - t))
_projected_teacher = ByAutograd(lambda s, t, phi: mean_square(s - t @ phi.T))
_difference = ByAutograd(lambda s, t, phi: mean_square((s - t) @ phi.T))
_root = ByAutograd(lambda s, t, phi: (s @ phi.T - t).norm(dim=-1).mean())
_normalised = ByAutograd(
    lambda s, t, phi: mean_square(
        torch.nn.functional.normalize(s @ phi.T, dim=-1) - t / t.norm(dim=-1)[:, None]
    )
)
_magnitudes = ByAutograd(lambda s, t, phi: (s @ phi.T - t).abs().mean())
_unprojected = Projection(difference=lambda student, teacher, weight: student - teacher)
_sum_width = Projection(count=lambda r, size: len(r))
_sum = Projection(count=lambda r, size: 1)
_no_two = Projection(gradient=lambda gradient, count: gradient / 2)
_gradient_t = Projection(gradient=lambda gradient, count: gradient.T.contiguous())
_uphill = Projection(gradient=lambda gradient, count: -gradient)
_no_mean = Projection(gradient=lambda gradient, count: gradient * count)
_nothing = Projection(gradient=lambda gradient, count: torch.zeros_like(gradient))
_first_tokens = Projection(mask=lambda lengths, size: padded_right(lengths.clamp(max=1), size))
_unmasked = Projection(mask=lambda lengths, size: torch.ones(len(lengths), size, dtype=torch.bool))
_by_all = Projection(count=lambda r, size: size)
_one_more = Projection(mask=lambda lengths, size: padded_right(lengths + 1, size))
_one_less = Projection(mask=lambda lengths, size: padded_right(lengths - 1, size))
_padded_left = Projection(mask=lambda lengths, size: padded_right(lengths, size).flip(1))


def _of_texts(student_hidden, teacher_hidden, weight, lengths):
    parts = [
        projection_loss(student_hidden[b : b + 1], teacher_hidden[b : b + 1], weight, lengths[b : b + 1])
        for b in range(len(lengths))
        if lengths[b]
    ]
    losses, gradients = zip(*parts, strict=True)
    return sum(losses) / len(losses), torch.stack(gradients).mean(0)


def _by_product(student_hidden, teacher_hidden, weight, lengths):
    mask = padded_right(lengths, student_hidden.shape[1])[..., None]
    r = (student_hidden @ weight.T - teacher_hidden) * mask
    count = mask.sum() * r.shape[-1]
    return (r.square().sum() / count).item(), 2 * torch.einsum("btd,btc->dc", r, student_hidden) / count


def _without_nan(student_hidden, teacher_hidden, weight, lengths):
    return _by_product(student_hidden.nan_to_num(), teacher_hidden.nan_to_num(), weight, lengths)


def _not_empty(student_hidden, teacher_hidden, weight, lengths):
    return projection_loss(student_hidden, teacher_hidden, weight, lengths.clamp(min=1))


def _gradient_left(student_hidden, teacher_hidden, weight, lengths):
    """The gradient is added to what the argument has from a call before."""
    mask = padded_right(lengths, student_hidden.shape[1])
    loss = mean_square(student_hidden[mask] @ weight.requires_grad_().T - teacher_hidden[mask])
    loss.backward()
    return loss.item(), weight.grad


def _in_place(student_hidden, teacher_hidden, weight, lengths):
    found = projection_loss(student_hidden, teacher_hidden, weight, lengths)
    weight -= found[1]
    return found


TOLD = (
    *(_transposed, _projected_teacher, _difference, _unprojected, _sum_width, _sum, _root, _magnitudes),
    *(_normalised, _no_two, _gradient_t, _uphill, _no_mean, _nothing, _first_tokens, _one_less),
)
EXERCISE = Exercise(
    name="06.projection_loss",
    function="projection_loss",
    title="What the teacher has worked out",
    points=12,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="projection_loss(student_hidden, teacher_hidden, weight, lengths)",
    cases=cases,
    reference=projection_loss,
    comparison=Parts(
        {"loss": Near(rtol=1e-4), "gradient": Close(atol=1e-5, rtol=1e-4, axes=("row", "column"))}
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("has the projection the wrong way round", _transposed, FIRST, TRANSPOSED),
        Mutant("projects the teacher", _projected_teacher, FIRST, PROJECTED_TEACHER),
        Mutant("projects the difference", _difference, FIRST, DIFFERENCE),
        Mutant("projects nothing", _unprojected, FIRST, UNPROJECTED),
        Mutant("adds up along the width", _sum_width, FIRST, SUM_WIDTH),
        Mutant("has a sum", _sum, FIRST, SUM),
        Mutant("has lengths of differences", _root, FIRST, ROOT),
        Mutant("has magnitudes", _magnitudes, FIRST, MAGNITUDES),
        Mutant("brings states to length 1", _normalised, FIRST, NORMALISED),
        Mutant("forgets the 2", _no_two, FIRST, NO_TWO),
        Mutant("has the gradient transposed", _gradient_t, FIRST, GRADIENT_T),
        Mutant("has a gradient uphill", _uphill, FIRST, UPHILL),
        Mutant("has the gradient of a sum", _no_mean, FIRST, NO_MEAN),
        Mutant("has no gradient", _nothing, FIRST, NOTHING),
        Mutant("compares first tokens", _first_tokens, FIRST, FIRST_TOKENS),
        Mutant("has a mean of means of texts", _of_texts, RAGGED, TEXTS),
        Mutant("sees no lengths", _unmasked, RAGGED),
        Mutant("divides by all positions", _by_all, RAGGED),
        Mutant("counts one more of each", _one_more, RAGGED),
        Mutant("counts one less of each", _one_less, FIRST, ONE_LESS),
        Mutant("takes padding for left", _padded_left, RAGGED),
        Mutant("multiplies with the mask", _by_product, NO_NUMBER),
        Mutant("multiplies what was no number with the mask", _without_nan, NO_NUMBER),
        Mutant("has a position of each text", _not_empty, "a text of no tokens"),
        Mutant("leaves a gradient in the weight", _gradient_left, NoMutation().name),
        Mutant("takes the step in place", _in_place, NoMutation().name),
    ),
)
