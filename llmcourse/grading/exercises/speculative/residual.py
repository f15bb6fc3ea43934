"""04.residual: what a draft that fell is replaced from."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NewTensor, NoMutation

ASKS = r"""
Where a draft falls, the target writes another token in its place. Drawing that from $p$ would be wrong:
tokens that the drafter proposes too often have had their chance already. What is left is what $q$ gave too
little:

$$p'(x) = \frac{\max\big(0,\ p(x) - q(x)\big)}{\sum_{x'} \max\big(0,\ p(x') - q(x')\big)}$$

A token then comes out with probability $\min(p, q)$ as a draft that stood, and with $p - \min(p, q)$ as a
replacement: together $p$, whatever $q$ is.

Write `residual(p, q)`.

- `p`, `q`: floating-point tensors of shape `(B, V)`; each row is a distribution, and may hold zeros.
- returns $p'$, a **new** tensor of the same shape and dtype, whose rows sum to 1. Where $p$ and $q$ are the
  same in a whole row, nothing is left; no draft can fall there, and $p'$ shall be $p$.

```python
>>> p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
>>> q = torch.tensor([[0.75, 0.125, 0.125], [0.5, 0.5, 0.0]])
>>> residual(p, q)
tensor([[0.0000, 0.5000, 0.5000],
        [0.5000, 0.5000, 0.0000]])
```
"""

HINTS = (
    "Write p and q of the example one below the other. Which tokens does q give less than p, and how much "
    "less? What do these differences sum to?",
    "(p - q).clamp(min=0), and then each row divided by its own sum: .sum(-1, keepdim=True).",
    "A row whose sum is 0 would be 0/0. torch.where(total > 0, left / total, p) takes p there.",
)

NOT_RENORMALISED = (
    "The differences are right, but they sum to less than 1: a distribution sums to 1. Divide each row by "
    "its own sum."
)
HINTS_AT = {
    "several rows": "Each row is a distribution and has a sum of its own: .sum(-1, keepdim=True).",
    "zeros in both": "A token that p never writes has nothing left, whatever q says: 0, not less.",
    "nothing left": (
        "p and q are the same in one of the rows: all differences are 0, and so is their sum. There p itself "
        "is asked for, and 0/0 is no number."
    ),
    "little left": "However little is left, it is all there is to draw from: it sums to 1 again.",
    "float64": "The result has the dtype of p.",
}


def residual(p: Float[Tensor, "B V"], q: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """What q left out, as a distribution; p where that is nothing."""
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


def cases(rng: random.Random) -> list[Case]:
    vocab = rng.randint(6, 9)

    def sides(rows, dtype=torch.float32):
        p, q = (drawn.distributions(side).to(dtype) for side in zip(*rows, strict=True))
        return {"p": p, "q": q}

    def case(label, *rows):
        return Case(sides(*rows), label)

    def pair():
        p = drawn.shares(rng, vocab)
        return p, drawn.doubted(rng, p)[0]

    def little():
        """A 64th moves from one token to another: that is all that p and q differ in."""
        p = drawn.shares(rng, vocab)
        most = max(range(vocab), key=p.__getitem__)
        q = [part + (token == (most + 1) % vocab) - (token == most) for token, part in enumerate(p)]
        return p, q

    def with_zeros():
        """p and q have no token in common but three."""
        p, q = pair()
        for side, token in ((p, 0), (q, 1), (p, 2), (q, 2)):
            side[3] += side[token]
            side[token] = 0
        return (p, q) if p != q else with_zeros()

    same = drawn.shares(rng, vocab)
    return [
        Case(drawn.telling(lambda: sides([pair()]), residual, FIRST), "one row"),
        case("several rows", [pair() for _ in range(3)]),
        case("zeros in both", [with_zeros(), with_zeros()]),
        case("little left", [little()]),
        case("nothing left", [pair(), (same, same)]),
        case("float64", [pair(), pair()], torch.float64),
    ]


def _not_renormalised(p, q):
    left = (p - q).clamp(min=0)
    return torch.where(left.sum(-1, keepdim=True) > 0, left, p)


def _p_itself(p, q):
    return p.clone()


def _absolute(p, q):
    return (p - q).abs() / (p - q).abs().sum(-1, keepdim=True)


def _the_other_way(p, q):
    return residual(q, p)


def _softmax(p, q):
    return (p - q).softmax(-1)


def _not_clamped(p, q):
    return (p - q) / (p - q).clamp(min=0).sum(-1, keepdim=True)


def _tokens_kept_whole(p, q):
    """Tokens that q gives too little keep all of p, not what is left of it."""
    kept = p.where(p > q, 0)
    return kept / kept.sum(-1, keepdim=True)


def _one_sum_for_all(p, q):
    left = (p - q).clamp(min=0)
    return left / left.sum()


def _no_number(p, q):
    left = (p - q).clamp(min=0)
    return left / left.sum(-1, keepdim=True)


def _zeros(p, q):
    left = (p - q).clamp(min=0)
    return left / left.sum(-1, keepdim=True).clamp(min=1e-12)


def _even(p, q):
    left = (p - q).clamp(min=0)
    return torch.where(left.sum(-1, keepdim=True) > 0, residual(p, q), 1 / p.shape[-1])


def _a_little_added(p, q):
    """A constant against the division by 0, so large that it shows."""
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0.02, residual(p, q), left / (total + 1e-3))


def _always_float32(p, q):
    return residual(p, q).float()


def _in_place(p, q):
    result = residual(p, q)
    p.sub_(q)
    return result


def _into_p(p, q):
    return p.copy_(residual(p, q))


FIRST = (_not_renormalised, _p_itself, _absolute, _the_other_way, _tokens_kept_whole)

EXERCISE = Exercise(
    name="04.residual",
    function="residual",
    title="What is left to draw from",
    points=6,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="residual(p, q)",
    cases=cases,
    reference=residual,
    comparison=Close(atol=1e-6, rtol=1e-5),
    rules=(NoMutation(), NewTensor(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("does not renormalise", _not_renormalised, "one row", NOT_RENORMALISED),
        Mutant(
            "draws from p",
            _p_itself,
            "one row",
            "This is p itself. Then tokens that q proposes too often come out too often: once as drafts that "
            "stood, and again here.",
        ),
        Mutant("takes the distance", _absolute, "one row"),
        Mutant(
            "subtracts the other way round",
            _the_other_way,
            "one row",
            "This is what p left out of q; what is asked for is what q left out of p: max(0, p - q).",
        ),
        Mutant("takes a softmax", _softmax, "one row"),
        Mutant("has negative probabilities", _not_clamped, "one row"),
        Mutant("keeps all of p where q is less", _tokens_kept_whole, "one row"),
        Mutant("has one sum for all rows", _one_sum_for_all, "several rows"),
        Mutant("adds to a small sum", _a_little_added, "little left"),
        Mutant("divides by 0", _no_number, "nothing left"),
        Mutant("gives a row of zeros", _zeros, "nothing left"),
        Mutant("draws evenly where nothing is left", _even, "nothing left"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes p", _in_place, NoMutation().name),
        Mutant("writes the result into p", _into_p, NoMutation().name),
    ),
)
