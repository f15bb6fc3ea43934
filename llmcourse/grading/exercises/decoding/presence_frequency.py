"""01.presence_frequency: two penalties that count."""

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
With $c(v)$ for how often token $v$ occurs in the text so far, the *presence* penalty is subtracted once
from every token of the text, and the *frequency* penalty once for every time that it occurs:

$$l_v \leftarrow l_v - \alpha_{\text{presence}} \cdot [c(v) > 0] - \alpha_{\text{frequency}} \cdot c(v)$$

Write `presence_frequency(logits, tokens, presence, frequency)`.

- `logits`: floating-point tensor of shape `(B, V)`; some may be `-inf`.
- `tokens`: a list of $B$ lists of token ids, the text of each row. They differ in length and may be empty.
- `presence`, `frequency`: numbers; 0 switches a penalty off, a negative one encourages repetition.
- returns logits: a **new** tensor of the shape and dtype of `logits`.

```python
>>> presence_frequency(torch.tensor([[4.0, 4.0, 4.0]]), [[0, 1, 1]], 1.0, 0.5)
tensor([[2.5000, 2.0000, 4.0000]])
```
"""

HINTS = (
    "Both penalties are functions of one table, the counts c of shape (B, V). Build that first, and print it "
    "for a text in which a token occurs three times.",
    "counts[row, ids] += 1 counts a repeated id only once. torch.bincount(…, minlength=V) counts right, one "
    "row at a time; mind that an empty list has to become an integer tensor.",
    "(counts > 0) is the presence, counts the frequency. Bring both to the dtype of the logits, subtract "
    "each times its penalty, and let the result be a new tensor.",
)

HINTS_AT = {
    "frequency alone": (
        "The frequency penalty counts: a token that occurs three times is lowered three times, its first "
        "time included."
    ),
    "both together": "Each is subtracted by itself: presence once where c(v) > 0, frequency c(v) times.",
    "several rows": "Count the text of each row by itself: tokens[i] belongs to row i.",
    "a token at -inf": (
        "-inf minus a number is -inf. Only a product with 0 would make NaN of it: subtract from the logits, "
        "and multiply counts alone."
    ),
    "an empty text": (
        "torch.tensor([]) holds floats, which bincount refuses: dtype=torch.long. The row stays as it was."
    ),
    "a negative penalty": "Nothing is clamped: a negative penalty raises the logits of what has occurred.",
    "float64": KEEP_DTYPE,
}


def presence_frequency(
    logits: Float[Tensor, "B V"], tokens: list[list[int]], presence: float | int, frequency: float | int
) -> Float[Tensor, "B V"]:
    """Subtracts one penalty from what is there, and the other as often as it is."""
    counts = counts_of(logits, tokens)
    return logits - presence * (counts > 0).to(logits.dtype) - frequency * counts


def counts_of(logits, tokens):
    """How often each token occurs in the text of each row, (B, V), in the dtype of the logits."""
    counts = torch.zeros_like(logits)
    for row, text in enumerate(tokens):
        for token in text:
            counts[row, token] += 1
    return counts


def cases(rng: random.Random) -> list[Case]:
    def case(label, logits, tokens, presence, frequency):
        arguments = {"logits": logits, "tokens": tokens, "presence": presence, "frequency": frequency}
        return Case(arguments, label)

    vocab = rng.randint(8, 12)
    some, more = (lambda: rng.uniform(0.3, 0.8)), (lambda: rng.uniform(1.0, 2.0))
    one, many, masked = (inputs.logits(rng, rows, vocab) for rows in (1, 3, 2))
    ids = rng.sample(range(vocab), 5)
    text = [ids[0], *[ids[1]] * 2, *[ids[2]] * rng.randint(3, 4)]
    texts = [rng.sample(text, len(text)), [*ids[2:4], ids[3]], [ids[4]]]
    masked[:, ids[1]] = -torch.inf
    wide = inputs.logits(rng, 2, vocab, torch.float64)
    return [
        case("presence alone", one, [texts[0]], more(), 0.0),
        case("frequency alone", one.clone(), [texts[0]], 0.0, some()),
        case("both together", one.clone(), [texts[0]], more(), some()),
        case("several rows", many, texts, more(), some()),
        case("a token at -inf", masked, texts[:2], more(), some()),
        case("an empty text", many.clone(), [texts[2], [], texts[0]], more(), some()),
        case("a negative penalty", one.clone(), [texts[0]], -more(), -some()),
        case("float64", wide, texts[1:], more(), some()),
        case("no penalty", many.clone(), texts, 0.0, 0.0),
    ]


def _presence_every_time(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, 0, presence + frequency)


def _adds(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, -presence, -frequency)


def _from_all(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, 0, frequency) - presence


def _from_probabilities(logits, tokens, presence, frequency):
    return presence_frequency(logits.softmax(-1), tokens, presence, frequency)


def _frequency_once(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, presence + frequency, 0)


def _repeats_only(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, presence - frequency, frequency)


def _share_of_the_text(logits, tokens, presence, frequency):
    rows = [
        presence_frequency(row[None], [text], presence, frequency / max(1, len(text)))
        for row, text in zip(logits, tokens, strict=True)
    ]
    return torch.cat(rows)


def _one_of_the_two(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, presence, 0 if presence else frequency)


def _counts_the_batch(logits, tokens, presence, frequency):
    return presence_frequency(
        logits, [[token for text in tokens for token in text]] * len(tokens), presence, frequency
    )


def _no_empty_text(logits, tokens, presence, frequency):
    counts = [torch.tensor(text).bincount(minlength=logits.shape[-1]) for text in tokens]
    return logits - presence * (torch.stack(counts) > 0).to(logits.dtype) - frequency * torch.stack(counts)


def _only_punishes(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, max(presence, 0), max(frequency, 0))


def _always_float32(logits, tokens, presence, frequency):
    return presence_frequency(logits.float(), tokens, presence, frequency)


def _in_place(logits, tokens, presence, frequency):
    return logits.copy_(presence_frequency(logits, tokens, presence, frequency))


def _itself(logits, tokens, presence, frequency):
    return presence_frequency(logits, tokens, presence, frequency) if presence or frequency else logits


EXERCISE = Exercise(
    name="01.presence_frequency",
    function="presence_frequency",
    title="Presence and frequency penalties",
    points=8,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="presence_frequency(logits, tokens, presence, frequency)",
    cases=cases,
    reference=presence_frequency,
    comparison=Close(atol=1e-5, rtol=1e-5),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("subtracts the presence penalty every time", _presence_every_time, "presence alone"),
        Mutant("adds the penalties", _adds, "presence alone"),
        Mutant("subtracts from all tokens", _from_all, "presence alone"),
        Mutant("penalises probabilities", _from_probabilities, "presence alone"),
        Mutant("subtracts the frequency penalty once", _frequency_once, "frequency alone"),
        Mutant("does not count the first time", _repeats_only, "frequency alone"),
        Mutant("takes the share of the text for the count", _share_of_the_text, "frequency alone"),
        Mutant("applies one of the two", _one_of_the_two, "both together"),
        Mutant("counts over the whole batch", _counts_the_batch, "several rows"),
        Mutant("fails at an empty text", _no_empty_text, "an empty text"),
        Mutant("never encourages", _only_punishes, "a negative penalty"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where nothing changes", _itself, NewTensor().name),
    ),
)
