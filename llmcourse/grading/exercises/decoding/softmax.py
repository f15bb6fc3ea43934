"""01.softmax: logits, a temperature, and numbers that overflow."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.exercises.hints import KEEP_DTYPE
from llmcourse.grading.rules import LIBRARIES, Forbid, NewTensor, NoMutation

ASKS = r"""
A model gives logits; softmax with temperature $t$ makes them probabilities:

$$P_j = \frac{\exp(l_j / t)}{\sum_{j'} \exp(l_{j'} / t)}$$

Write `softmax_with_temperature(logits, temperature)`.

- `logits`: floating-point tensor of shape `(B, V)`, one row for each text. A logit may be `-inf`, but never
  all of a row.
- `temperature`: a number, at least 0.
- returns the probabilities, a **new** tensor of shape `(B, V)` and of the dtype of `logits`.

Logits may be as large as 10,000: the result must not overflow. At temperature 0 all the mass of a row lies
on its largest logit; if several are largest, on the one with the lowest token id.

Use neither `softmax` nor `log_softmax` nor `logsumexp`: they are what you build.

```python
>>> softmax_with_temperature(torch.tensor([[0.0, 2.0, 2.0]]), 2.0)
tensor([[0.1554, 0.4223, 0.4223]])
>>> softmax_with_temperature(torch.tensor([[0.0, 2.0, 2.0]]), 0)
tensor([[0., 1., 0.]])
```
"""

HINTS = (
    "Print exp(1000.). Which step of the formula goes wrong for large logits, and what may you subtract from "
    "all logits of a row without changing the result?",
    "Subtract each row's own maximum (keepdim keeps the shapes in line) before you divide by the temperature "
    "and take exp; then divide by the sum over the last dimension.",
    "Temperature 0 is a case of its own: nothing can be divided by it. argmax gives the lowest id of the "
    "largest; put a 1 there into a tensor of zeros that has the shape and dtype of the logits.",
)

HINTS_AT = {
    "several rows": (
        "Each row is a distribution of its own: sum over the last dimension, and keep it with keepdim=True."
    ),
    "a token at -inf": (
        "exp(-inf) is 0, which is what such a token shall have. -inf minus -inf and 0 times inf are NaN: "
        "see that neither is worked out."
    ),
    "large logits": (
        "exp of 10,000 is inf, and inf / inf is NaN. What may be taken away from all logits of a row "
        "without changing the result?"
    ),
    "rows of very different size": (
        "Each row needs a maximum of its own, logits.max(dim=-1, keepdim=True): beside the largest of all "
        "rows, a small row becomes 0 / 0."
    ),
    "temperature 0": (
        "Nothing can be divided by 0. Give temperature 0 a branch of its own: 1 where argmax points, 0 "
        "elsewhere."
    ),
    "temperature 0, a tie": (
        "One token has it all, the one of lowest id. argmax names one; a comparison with the maximum names "
        "all of the tie."
    ),
    "float64": KEEP_DTYPE,
}


def softmax_with_temperature(logits: Float[Tensor, "B V"], temperature: float | int) -> Float[Tensor, "B V"]:
    """exp(l / t) over its sum, after each row's maximum is taken away."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter(1, logits.argmax(-1, keepdim=True), 1)
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def cases(rng: random.Random) -> list[Case]:
    def case(label, logits, temperature):
        return Case({"logits": logits, "temperature": temperature}, label)

    vocab = rng.randint(6, 10)
    warm = [rng.uniform(0.4, 0.8), rng.uniform(1.3, 2.0)]
    # Quarters are exact in float32 even beside 10,000, and so is division by a power of two.
    quarters = (inputs.logits(rng, 3, vocab, gap=2.0) * 4).round() / 4
    far = quarters + torch.tensor([[0.0], [rng.choice([-2000.0, 2000.0])], [500.0]], dtype=torch.float32)
    masked = inputs.logits(rng, 2, vocab)
    masked[:, rng.sample(range(vocab), 2)] = -torch.inf
    tied = inputs.logits(rng, 2, vocab)
    tied[:, sorted(rng.sample(range(vocab), 3))] = 9.0
    certain = torch.eye(vocab)[rng.sample(range(vocab), 2)]
    return [
        case("one row", inputs.logits(rng, 1, vocab), rng.choice(warm)),
        case("several rows", inputs.logits(rng, 4, vocab), rng.choice(warm)),
        case("a token at -inf", masked, rng.choice(warm)),
        case("large logits", quarters + 10_000, rng.choice([0.5, 1.0, 2.0])),
        case("rows of very different size", far, rng.choice([0.5, 1.0, 2.0])),
        case("temperature 0", masked.clone(), 0.0),
        case("temperature 0, a tie", tied, 0.0),
        case("float64", inputs.logits(rng, 2, vocab, torch.float64), rng.choice(warm)),
        case("temperature 0, probabilities already", certain, 0.0),
    ]


def _multiplies(logits, temperature):
    return softmax_with_temperature(logits, 1 / temperature if temperature else 0)


def _divides_twice(logits, temperature):
    return softmax_with_temperature(logits, temperature**2)


def _down_the_batch(logits, temperature):
    return softmax_with_temperature(logits.T, temperature).T


def _one_sum_for_all(logits, temperature):
    weights = softmax_with_temperature(logits, temperature)
    return weights / weights.sum()


def _unmasks(logits, temperature):
    return softmax_with_temperature(logits.nan_to_num(neginf=0.0), temperature)


def _overflows(logits, temperature):
    if temperature == 0:
        return softmax_with_temperature(logits, 0)
    weights = (logits / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def _one_maximum_for_all(logits, temperature):
    if temperature == 0:
        return softmax_with_temperature(logits, 0)
    weights = ((logits - logits.max()) / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def _divides_by_zero(logits, temperature):
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def _shares_a_tie(logits, temperature):
    return softmax_with_temperature(logits, temperature or 1e-4)


def _always_float32(logits, temperature):
    return softmax_with_temperature(logits.float(), temperature)


def _in_place(logits, temperature):
    logits -= logits.amax(-1, keepdim=True)
    return softmax_with_temperature(logits, temperature)


def _borrows(logits, temperature):
    return torch.softmax(logits / temperature, -1) if temperature else softmax_with_temperature(logits, 0)


def _itself(logits, temperature):
    probabilities = softmax_with_temperature(logits, temperature)
    return logits if torch.equal(logits, probabilities) else probabilities


OWN_WORK = Forbid(("softmax", "log_softmax", "logsumexp"), (*LIBRARIES, "softmin", "gumbel_softmax"))

EXERCISE = Exercise(
    name="01.softmax",
    function="softmax_with_temperature",
    title="Softmax with temperature",
    points=8,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="softmax_with_temperature(logits, temperature)",
    cases=cases,
    reference=softmax_with_temperature,
    comparison=Close(atol=1e-6, rtol=1e-4),
    rules=(OWN_WORK, NoMutation(), NewTensor()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("multiplies by the temperature", _multiplies, "one row"),
        Mutant("applies the temperature twice", _divides_twice, "one row"),
        Mutant("normalises down the batch", _down_the_batch, "one row"),
        Mutant("one sum for the whole batch", _one_sum_for_all, "several rows"),
        Mutant("takes -inf for 0", _unmasks, "a token at -inf"),
        Mutant("overflows", _overflows, "large logits"),
        Mutant("one maximum for the whole batch", _one_maximum_for_all, "rows of very different size"),
        Mutant("divides by zero", _divides_by_zero, "temperature 0"),
        Mutant("shares the mass of a tie", _shares_a_tie, "temperature 0, a tie"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where it is the answer already", _itself, NewTensor().name),
        Mutant("calls torch.softmax", _borrows, OWN_WORK.name),
    ),
)
