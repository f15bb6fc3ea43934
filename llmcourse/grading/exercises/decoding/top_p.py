"""01.top_p: the nucleus, with what a long tail and a tie do to it."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.exercises.hints import KEEP_DTYPE
from llmcourse.grading.rules import Forbid, NewTensor, NoMutation

ASKS = r"""
*Top-p* keeps the nucleus: the fewest most probable tokens whose probabilities together reach $p$
(Holtzman et al. 2020), and cuts all others.

Write `top_p_filter(logits, p)`.

- `logits`: floating-point tensor of shape `(B, V)`; some may be `-inf` already. The probabilities of a row
  are its softmax.
- `p`: a number in (0, 1].
- returns logits, not probabilities: a **new** tensor of the shape and dtype of `logits` in which every token
  outside its row's nucleus is `-inf`, and every other logit is as it was.

The mass is counted token by token, from the most probable down. The token with which it reaches $p$ is still
kept. Of tokens that are equally probable, those with lower ids come first, even if the cut then falls between
them. At least one token is always kept, and $p = 1$ keeps them all, however improbable.

```python
>>> logits = torch.tensor([[0.1, 0.5, 0.1, 0.25, 0.05]]).log()
>>> top_p_filter(logits, 0.7).exp()
tensor([[0.0000, 0.5000, 0.0000, 0.2500, 0.0000]])
>>> top_p_filter(logits, 0.8).exp()     # two tokens tie: the one with the lower id is kept
tensor([[0.1000, 0.5000, 0.0000, 0.2500, 0.0000]])
```
"""

HINTS = (
    "Sort a row by falling probability and write the running sum below it. A token's fate does not depend on "
    "the sum that includes it, but on the mass that lies before it.",
    "softmax, sort(descending=True, stable=True), cumsum. A token is cut if the mass before it has reached p "
    "already: the running sum less its own probability. Make p = 1 and the first token cases of their own.",
    "What you know now is in sorted order; the logits are not. scatter along the last dimension, with the "
    "indices that sort returned, brings the mask back to where the tokens are; masked_fill does the rest.",
)

HINTS_AT = {
    "several rows": (
        "Each row has an order and a nucleus of its own: sort, cumsum and scatter along the last dimension."
    ),
    "a tie at the edge": (
        "Only part of the tie is kept, the lower ids: sort with stable=True, and decide by the place in "
        "that order. A comparison of probabilities cannot tell equal ones apart."
    ),
    "tokens at -inf": (
        "Such a token has probability 0 and comes last; it stays at -inf, and the mass of the others is as "
        "if it were not there."
    ),
    "a tiny p": (
        "One token is kept, however small p is. Nothing lies before the first, and 0 is less than any p: it "
        "is the mass before a token that counts."
    ),
    "p = 1": (
        "All are kept, however improbable. By rounding the running sum can reach 1 too early: make p = 1 a "
        "case of its own."
    ),
    "float64": KEEP_DTYPE,
}


def top_p_filter(logits: Float[Tensor, "B V"], p: float | int) -> Float[Tensor, "B V"]:
    """-inf wherever the mass of the more probable tokens, and of equal ones of lower id, reaches p."""
    if p == 1:
        return logits.clone()
    return _cut(logits, lambda mass, probability: mass - probability >= p)


def _cut(logits, outside):
    """Masks, row by row, what is `outside` by its running mass and its probability, in sorted order."""
    falling, ids = logits.softmax(-1).sort(descending=True, stable=True)
    cut = outside(falling.cumsum(-1), falling)
    return logits.masked_fill(torch.zeros_like(cut).scatter(1, ids, cut), -torch.inf)


def cases(rng: random.Random) -> list[Case]:
    def case(label, logits, p):
        return Case({"logits": logits, "p": p}, label)

    def drawn(label, rows, kept, dtype=torch.float32, masked=0):
        def draw():
            logits = inputs.logits(rng, rows, vocab, dtype)
            logits[:, rng.sample(range(vocab), masked)] = -torch.inf
            return logits

        return case(label, *inputs.with_mass(rng, draw, kept))

    vocab = rng.randint(8, 12)
    # Two, then a tie of four: p falls between the second and the third of them.
    values = [3.0, 2.5, *[1.0] * 4, *(-1.0 - 0.5 * i for i in range(vocab - 6))]
    tied = torch.tensor([rng.sample(values, vocab)], dtype=torch.float32)
    masses = torch.tensor(values).softmax(-1).cumsum(-1)
    # The first token has all the mass that float32 can see; the others are kept nevertheless.
    long = inputs.placed(rng, [40.0, *inputs.falling(rng, vocab - 1)], vocab - 1, 0)
    tail = torch.tensor([long], dtype=torch.float32)
    return [
        drawn("one row", 1, range(2, 5)),
        drawn("several rows", 4, range(2, 5)),
        case("a tie at the edge", tied, (masses[3] + masses[4]).item() / 2),
        drawn("tokens at -inf", 2, range(2, 4), masked=3),
        case("a tiny p", inputs.logits(rng, 3, vocab), rng.uniform(1e-9, 1e-8)),
        case("p = 1", tail, 1.0),
        drawn("float64", 2, range(2, 5), torch.float64),
    ]


def _drops_the_last(logits, p):
    return logits.clone() if p == 1 else _cut(logits, lambda mass, probability: mass > p)


def _one_too_many(logits, p):
    late = lambda mass, probability: (mass - probability).roll(1, -1) >= p  # noqa: E731
    return logits.clone() if p == 1 else _cut(logits, late)


def _probabilities(logits, p):
    return top_p_filter(logits, p).softmax(-1)


def _in_sorted_order(logits, p):
    falling = logits.softmax(-1).sort(descending=True).values
    return logits.masked_fill((falling.cumsum(-1) - falling >= p) & (p < 1), -torch.inf)


def _row_0_for_all(logits, p):
    return logits.masked_fill(top_p_filter(logits, p)[:1].isneginf(), -torch.inf)


def _whole_tie(logits, p):
    kept = top_p_filter(logits, p)
    return logits.masked_fill(
        logits < kept.where(kept.isfinite(), torch.inf).amin(-1, keepdim=True), -torch.inf
    )


def _higher_ids(logits, p):
    return top_p_filter(logits.flip(-1), p).flip(-1)


def _keeps_none(logits, p):
    falling, ids = logits.softmax(-1).sort(descending=True, stable=True)
    cut = falling.cumsum(-1) >= p
    cut[:, 1:] = cut[:, :-1].clone()  # and the first token stays cut where it was
    return logits.clone() if p == 1 else logits.masked_fill(cut.scatter(1, ids, cut), -torch.inf)


def _loses_the_tail(logits, p):
    return _cut(logits, lambda mass, probability: mass - probability >= p)


def _always_float32(logits, p):
    return top_p_filter(logits.float(), p)


def _in_place(logits, p):
    return logits.masked_fill_(top_p_filter(logits, p).isneginf(), -torch.inf)


def _itself(logits, p):
    return logits if p == 1 else top_p_filter(logits, p)


EXERCISE = Exercise(
    name="01.top_p",
    function="top_p_filter",
    title="Top-p, the nucleus",
    points=12,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="top_p_filter(logits, p)",
    cases=cases,
    reference=top_p_filter,
    comparison=Close(atol=1e-6, rtol=1e-6),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("drops the token that reaches p", _drops_the_last, "one row"),
        Mutant("keeps one token too many", _one_too_many, "one row"),
        Mutant("returns probabilities", _probabilities, "one row"),
        Mutant("leaves the mask in sorted order", _in_sorted_order, "one row"),
        Mutant("cuts all rows as the first", _row_0_for_all, "several rows"),
        Mutant("keeps the whole tie", _whole_tie, "a tie at the edge"),
        Mutant("keeps the higher ids of a tie", _higher_ids, "a tie at the edge"),
        Mutant("keeps nothing at a tiny p", _keeps_none, "a tiny p"),
        Mutant("loses the tail at p = 1", _loses_the_tail, "p = 1"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where nothing is cut", _itself, NewTensor().name),
    ),
)
