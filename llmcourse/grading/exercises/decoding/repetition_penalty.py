"""01.repetition_penalty: division that makes negative logits larger, and what is done about it."""

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
The *multiplicative* penalty of Keskar et al. 2019 makes tokens that a text already holds less likely:

$$l_v \leftarrow \begin{cases} l_v / \theta & \text{if } l_v > 0 \\ l_v \cdot \theta & \text{otherwise}
\end{cases} \qquad \text{for every } v \text{ in the text}$$

Write `repetition_penalty(logits, tokens, theta)`.

- `logits`: floating-point tensor of shape `(B, V)`; some may be `-inf`.
- `tokens`: a list of $B$ lists of token ids, the text of each row. They differ in length and may be empty.
- `theta`: a positive number. Above 1 it punishes repetition, below 1 it encourages it.
- returns logits: a **new** tensor of the shape and dtype of `logits`.

A token is penalised once, however often it occurs, and only in the rows that it occurs in.

```python
>>> repetition_penalty(torch.tensor([[4.0, -1.0, 3.0]]), [[0, 1, 1]], 2.0)
tensor([[ 2., -2.,  3.]])
```
"""

HINTS = (
    "Try theta = 2 on the logits 4 and -4 by hand. Which of them becomes less likely if both are divided?",
    "Make a boolean mask (B, V) of the tokens that each row has seen: a mask cannot count, so a token that "
    "occurs twice is no problem. An empty list must leave its row without any.",
    "torch.where chooses twice: between division and multiplication by the sign of the logit, then between "
    "the penalised logit and the old one by the mask. (A mask times -inf would be NaN.)",
)

HINTS_AT = {
    "several rows": "Row i of the logits belongs to tokens[i], and to no other text.",
    "a token that occurs twice": (
        "Once is enough: set(text) holds each token once, and so does a boolean mask."
    ),
    "tokens at -inf": (
        "0 times -inf is NaN: choose with torch.where, instead of multiplying by a mask. -inf itself stays "
        "what it is."
    ),
    "an empty text": (
        "Without a text a row stays as it was. torch.tensor([]) holds floats, with which nothing can be "
        "indexed: dtype=torch.long."
    ),
    "theta below 1": (
        "The formula is the same, and nothing is clamped: what has occurred now becomes likelier."
    ),
    "float64": KEEP_DTYPE,
}


def repetition_penalty(
    logits: Float[Tensor, "B V"], tokens: list[list[int]], theta: float | int
) -> Float[Tensor, "B V"]:
    """Divides the positive logits of seen tokens, multiplies the others."""
    penalised = torch.where(logits > 0, logits / theta, logits * theta)
    return torch.where(seen_in(logits, tokens), penalised, logits)


def seen_in(logits, tokens):
    """Which tokens the text of each row holds, (B, V)."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, text in enumerate(tokens):
        seen[row, list(text)] = True
    return seen


def cases(rng: random.Random) -> list[Case]:
    def case(label, logits, tokens, theta=None):
        return Case({"logits": logits, "tokens": tokens, "theta": theta or rng.uniform(1.2, 2.0)}, label)

    vocab = rng.randint(8, 12)
    one, many, masked = (inputs.logits(rng, rows, vocab) for rows in (1, 3, 2))
    # The peak is positive and the lowest logit negative: a text with both, and texts with nothing in common.
    texts = [[row, 3 + row, 6 + row - (row == 2)] for row in range(3)]
    both = [vocab - 1, 0, *rng.sample(range(1, vocab - 1), 2)]
    twice = [token for token in both for _ in range(rng.randint(2, 3))]
    masked[:, both[:2]] = -torch.inf
    masked[:, both[2]] = 1.5
    return [
        case("one row", one, [both]),
        case("several rows", many, rng.sample(texts, 3)),
        case("a token that occurs twice", one.clone(), [rng.sample(twice, len(twice))]),
        case("tokens at -inf", masked, [both, both[1:]]),
        case("an empty text", many.clone(), [[], both, []]),
        case("theta below 1", one.clone(), [both], rng.uniform(0.5, 0.8)),
        case("float64", inputs.logits(rng, 2, vocab, torch.float64), [both, both[:1]]),
        case("theta = 1", many.clone(), texts, 1.0),
    ]


def _divides_all(logits, tokens, theta):
    return torch.where(seen_in(logits, tokens), logits / theta, logits)


def _wrong_way_round(logits, tokens, theta):
    return repetition_penalty(logits, tokens, 1 / theta)


def _subtracts(logits, tokens, theta):
    return torch.where(seen_in(logits, tokens), logits - theta, logits)


def _the_unseen(logits, tokens, theta):
    return torch.where(seen_in(logits, tokens), logits, repetition_penalty(logits, tokens, theta) / theta)


def _probabilities(logits, tokens, theta):
    return repetition_penalty(logits.softmax(-1), tokens, theta)


def _all_texts_for_all(logits, tokens, theta):
    return repetition_penalty(logits, [[token for text in tokens for token in text]] * len(tokens), theta)


def _every_time(logits, tokens, theta):
    logits = logits.clone()
    for row, text in enumerate(tokens):
        for token in text:
            logits[row, token] *= theta if logits[row, token] < 0 else 1 / theta
    return logits


def _mask_times_logits(logits, tokens, theta):
    seen = seen_in(logits, tokens).to(logits.dtype)
    return seen * torch.where(logits > 0, logits / theta, logits * theta) + (1 - seen) * logits


def _no_empty_text(logits, tokens, theta):
    return repetition_penalty(logits, [[text[0], *text] for text in tokens], theta)


def _only_punishes(logits, tokens, theta):
    return repetition_penalty(logits, tokens, max(theta, 1.0))


def _always_float32(logits, tokens, theta):
    return repetition_penalty(logits.float(), tokens, theta)


def _in_place(logits, tokens, theta):
    return logits.copy_(repetition_penalty(logits, tokens, theta))


def _itself(logits, tokens, theta):
    return logits if theta == 1 else repetition_penalty(logits, tokens, theta)


EXERCISE = Exercise(
    name="01.repetition_penalty",
    function="repetition_penalty",
    title="The multiplicative penalty",
    points=10,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="repetition_penalty(logits, tokens, theta)",
    cases=cases,
    reference=repetition_penalty,
    comparison=Close(atol=1e-5, rtol=1e-5),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("divides negative logits too", _divides_all, "one row"),
        Mutant("encourages repetition", _wrong_way_round, "one row"),
        Mutant("subtracts theta", _subtracts, "one row"),
        Mutant("penalises the unseen", _the_unseen, "one row"),
        Mutant("penalises probabilities", _probabilities, "one row"),
        Mutant("mixes the texts of the rows", _all_texts_for_all, "several rows"),
        Mutant("penalises every occurrence", _every_time, "a token that occurs twice"),
        Mutant("multiplies -inf by a mask", _mask_times_logits, "tokens at -inf"),
        Mutant("fails at an empty text", _no_empty_text, "an empty text"),
        Mutant("never encourages", _only_punishes, "theta below 1"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where nothing changes", _itself, NewTensor().name),
    ),
)
