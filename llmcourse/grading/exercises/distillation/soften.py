"""06.soften: a distribution at a temperature, and its entropy."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.distillation import drawn
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
A label says which token came. A teacher's distribution also says which others would have done, and how well:
its **soft labels**. A teacher that is nearly sure says little of that in its probabilities, and more when its
logits $z$ are divided by a temperature $T > 1$ before the softmax (Hinton et al. 2015, section 2). How much
a distribution leaves open is its entropy, here in nats:

$$p_T(k) = \frac{\exp(z_k / T)}{\sum_j \exp(z_j / T)}, \qquad H(p_T) = -\sum_k p_T(k) \ln p_T(k)$$

where a token of probability 0 adds nothing: $0 \ln 0 = 0$.

Write `soften(logits, temperature)`.

- `logits`: `float32` tensor of shape `(N, V)`, a row for each position. Some may be `-inf`: tokens that
  cannot come. In each row some are not. Others may be very large.
- `temperature`: a float above 0; below 1 it sharpens.
- returns `(probs, entropy)`: $p_T$, a `float32` tensor of shape `(N, V)`, and $H(p_T)$, a `float32` tensor of
  shape `(N,)`.

```python
>>> logits = torch.tensor([[4.0, 2.0, 0.0], [1.0, 1.0, -torch.inf]])
>>> probs, entropy = soften(logits, temperature=2.0)
>>> probs
tensor([[0.6652, 0.2447, 0.0900],
        [0.5000, 0.5000, 0.0000]])
>>> entropy                         # the second row leaves two tokens open: ln 2
tensor([0.8324, 0.6931])
```
"""

HINTS = (
    "Divide the logits first; everything else follows from the softmax of each row, dim=-1.",
    "probs = (logits / temperature).softmax(dim=-1). The entropy of a row is minus the sum of p ln p.",
    "Where p is 0, p * p.log() is 0 · (-inf), which is NaN. torch.special.xlogy(p, p) has 0 there, and so "
    "has torch.special.entr(p), with the sign of the entropy.",
)

TIMES = (
    "The logits are multiplied by T. Dividing makes their distances smaller, and the distribution flatter."
)
NONE = "That is the distribution at T = 1: the temperature changes nothing here."
SQUARED = "The logits are divided by T². The T² of distillation belongs to the loss, not to the softmax."
AFTER = "The probabilities are divided by T, after the softmax: they no longer add up to 1."
POWER = "p^(1/T) is right but for a factor: divide each row by its sum, so that it adds up to 1."
TWICE = "Two softmaxes: what is softened here are probabilities. Divide the logits, and take one softmax."
COLUMNS = "The columns add up to 1 here. A row is a distribution: the softmax runs along dim=-1."
LOGS = "These are logarithms of the probabilities. Here the probabilities themselves are asked for."
BITS = "That entropy is in bits. Nats are asked for: the natural logarithm, .log()."
SIGN = "The entropy has the wrong sign. It is never below 0: there is a minus before the sum."
UNSOFTENED = "That is the entropy at T = 1. It is to be that of the softened distribution."
MEAN = "The entropy is a sum over the tokens, not their mean."
TOGETHER = "That is one entropy for all rows. Each row, a position, has its own."
HINTS_AT = {
    "a temperature below 1": "T below 1 is a temperature as any other: it makes distances larger.",
    "large logits": (
        "exp of a number above 88 is infinite in float32. Take the largest of each row away first; the "
        "softmax is the same. PyTorch's softmax does that."
    ),
    "a single row at a temperature near 0": (
        "T is used as it is, however small; and the entropy of one row has the shape (1,): squeeze() takes "
        "that dimension, too."
    ),
    "rows that are far apart": (
        "Each row has a largest number of its own: taken away from another row it leaves exp of all of that "
        "at 0, or infinite. dim=-1, keepdim=True. And nothing finite stands for -inf: it may be the largest."
    ),
    "a large vocabulary": (
        "Shares are very small here, and there are very many: what is added to p before the logarithm, 1e-9 "
        "perhaps, adds up. Nothing need be added: torch.special.entr, or torch.where(p > 0, …)."
    ),
    "a token that cannot come": (
        "0 · ln 0 is NaN in floats. In an entropy it is 0: torch.special.entr, or torch.where(p > 0, …)."
    ),
}


def soften(
    logits: Float[Tensor, "N V"], temperature: float
) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"]]:
    """A softmax of logits that were divided, and its entropy."""
    return Soften()(logits, temperature)


def at_temperature(z, t):
    return (z / t).softmax(-1)


@dataclass(frozen=True)
class Soften:
    """Both lines; the fields are what mutants get wrong.

    Args:
        probs: of the logits and the temperature.
        entropy: of the probabilities and the logits.
    """

    probs: Callable = at_temperature
    entropy: Callable = lambda p, z: torch.special.entr(p).sum(-1)

    def __call__(self, logits, temperature):
        p = self.probs(logits, temperature)
        return p, self.entropy(p, logits)


FIRST = "a temperature above 1"
LARGE = 131072  # tokens, as many as Llama 3 has


def cases(rng: random.Random) -> list[Case]:
    several, vocab = rng.randint(3, 5), rng.randint(5, 8)

    def case(label, temperature, changed=lambda z: z, rows=several, wrong=(), apart=()):
        def draw():
            z = changed(drawn.logits(rng, rows, vocab))
            return {"logits": z, "temperature": temperature}

        return Case(dict(telling(draw, soften, wrong, apart)), label)

    def without(z):
        for row in z:
            row[rng.sample(range(vocab), 2)] = -torch.inf
        return z

    return [
        case(FIRST, rng.uniform(1.7, 3.0), apart=TOLD),
        case("temperature 1", 1.0),
        case("a temperature below 1", rng.uniform(0.3, 0.7), wrong=(_at_least_1,)),
        case("large logits", rng.uniform(1.5, 2.0), lambda z: 10 * z + 240),
        case("a token that cannot come", rng.uniform(1.5, 3.0), without),
        case("a single row at a temperature near 0", rng.uniform(0.02, 0.05), lambda z: z / 10, rows=1),
        case("rows that are far apart", rng.uniform(1.5, 2.0), lambda z: without(drawn.far_apart(rng, z))),
        case("a large vocabulary", rng.uniform(1.7, 1.8), lambda z: _many(rng)),
    ]


def _many(rng: random.Random) -> Tensor:
    """A favourite, and so many others that each has about a millionth, and all have much of the entropy."""
    z = 0.5 * drawn.logits(rng, 1, LARGE) - 24
    z[0, rng.randrange(LARGE)] = 0.0
    return z


def _of_probs(wrong):
    """Other probabilities, and their own entropy as far as it can be had."""
    return Soften(probs=wrong)


def _exponentials(z, t):
    weights = (z / t).exp()
    return weights / weights.sum(-1, keepdim=True)


def _one_largest(z, t):
    return _exponentials(z - z.max(), t)


_times = _of_probs(lambda z, t: (z * t).softmax(-1))
_none = _of_probs(lambda z, t: z.softmax(-1))
_squared = _of_probs(lambda z, t: (z / t**2).softmax(-1))
_after = _of_probs(lambda z, t: z.softmax(-1) / t)
_power = _of_probs(lambda z, t: z.softmax(-1) ** (1 / t))
_twice = _of_probs(lambda z, t: (z.softmax(-1) / t).softmax(-1))
_columns = _of_probs(lambda z, t: (z / t).softmax(0))
_at_least_1 = _of_probs(lambda z, t: at_temperature(z, max(t, 1.0)))
_overflow = _of_probs(_exponentials)
_at_least_a_tenth = _of_probs(lambda z, t: at_temperature(z, max(t, 0.1)))
_for_all_rows = _of_probs(_one_largest)
_low_for_never = _of_probs(lambda z, t: at_temperature(z.clamp(min=-100.0), t))
_bits = Soften(entropy=lambda p, z: torch.special.entr(p).sum(-1) / torch.log(torch.tensor(2.0)))
_sign = Soften(entropy=lambda p, z: -torch.special.entr(p).sum(-1))
_unsoftened = Soften(entropy=lambda p, z: torch.special.entr(z.softmax(-1)).sum(-1))
_mean = Soften(entropy=lambda p, z: torch.special.entr(p).mean(-1))
_together = Soften(entropy=lambda p, z: torch.special.entr(p).sum(-1).mean().expand(len(p)).clone())
_squeezed = Soften(entropy=lambda p, z: torch.special.entr(p).sum(-1).squeeze())
_a_little_more = Soften(entropy=lambda p, z: -(p * (p + 1e-5).log()).sum(-1))
_a_billionth_more = Soften(entropy=lambda p, z: -(p * (p + 1e-9).log()).sum(-1))
_no_zero = Soften(entropy=lambda p, z: -(p * p.log()).sum(-1))


def _logs(logits, temperature):
    p, entropy = soften(logits, temperature)
    return p.log(), entropy


def _in_place(logits, temperature):
    logits.div_(temperature)
    return soften(logits, 1.0)


TOLD = (
    *(_times, _none, _squared, _after, _power, _twice, _columns, _logs),
    *(_bits, _sign, _unsoftened, _mean, _together),
)
EXERCISE = Exercise(
    name="06.soften",
    function="soften",
    title="Soft labels",
    points=8,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="soften(logits, temperature)",
    cases=cases,
    reference=soften,
    comparison=Parts({"probs": Close(atol=2e-5), "entropy": Close(atol=2e-5, axes=("row",))}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("multiplies by the temperature", _times, FIRST, TIMES),
        Mutant("has no temperature", _none, FIRST, NONE),
        Mutant("divides by its square", _squared, FIRST, SQUARED),
        Mutant("divides probabilities", _after, FIRST, AFTER),
        Mutant("takes a root and stops", _power, FIRST, POWER),
        Mutant("takes two softmaxes", _twice, FIRST, TWICE),
        Mutant("has distributions of columns", _columns, FIRST, COLUMNS),
        Mutant("gives logarithms", _logs, FIRST, LOGS),
        Mutant("counts in bits", _bits, FIRST, BITS),
        Mutant("forgets the minus", _sign, FIRST, SIGN),
        Mutant("has the entropy at temperature 1", _unsoftened, FIRST, UNSOFTENED),
        Mutant("has a mean over the tokens", _mean, FIRST, MEAN),
        Mutant("has one entropy for all", _together, FIRST, TOGETHER),
        Mutant("sharpens nothing", _at_least_1, "a temperature below 1"),
        Mutant("overflows", _overflow, "large logits"),
        Mutant("has 0 times an infinity", _no_zero, "a token that cannot come"),
        Mutant("adds a little before the logarithm", _a_little_more, FIRST),
        Mutant("adds a billionth before the logarithm", _a_billionth_more, "a large vocabulary"),
        Mutant("has a least temperature", _at_least_a_tenth, "a single row at a temperature near 0"),
        Mutant("squeezes", _squeezed, "a single row at a temperature near 0"),
        Mutant("takes one largest away from all rows", _for_all_rows, "rows that are far apart"),
        Mutant("has a low number for what never comes", _low_for_never, "rows that are far apart"),
        Mutant("divides its input in place", _in_place, NoMutation().name),
    ),
)
