"""01.no_repeat_ngram: which tokens would say the same thing twice."""

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
*n-gram blocking* forbids every token that would complete an $n$-gram which the text already holds (Paulus
et al. 2018): no $n$ tokens in a row come twice.

Write `no_repeat_ngram(logits, tokens, n)`.

- `logits`: floating-point tensor of shape `(B, V)`.
- `tokens`: a list of $B$ lists of token ids, the text of each row. They differ in length and may be empty.
- `n`: an integer, at least 1. With $n = 1$ no token of the text may come again.
- returns logits: a **new** tensor of the shape and dtype of `logits` in which every forbidden token is
  `-inf`, and every other logit is as it was.

The $n$-grams of a text may overlap, and the last of them ends with its last token.

```python
>>> no_repeat_ngram(torch.zeros(1, 5), [[1, 2, 3, 1, 2]], 3)    # 1 2 was followed by 3
tensor([[0., 0., 0., -inf, 0.]])
>>> no_repeat_ngram(torch.zeros(1, 5), [[4, 4]], 2)             # 4 was followed by 4
tensor([[0., 0., 0., 0., -inf]])
```
"""

HINTS = (
    "Write down all n-grams of the example [1, 2, 3, 1, 2] for n = 3. Which of them begin with the two "
    "tokens that the text ends with, and what is their last token?",
    "The prefix is the last n - 1 tokens. Go over every place where a whole n-gram fits, compare its first "
    "n - 1 tokens with the prefix, and forbid its last. How many places are there in a text of length T?",
    "Places 0 to T - n, both included. Beware of text[-(n - 1):] for n = 1: text[-0:] is the whole text, and "
    "text[len(text) - n + 1:] is what you mean; in a text shorter than n - 1 that index would be negative.",
)

HINTS_AT = {
    "several rows": "Row i of the logits belongs to tokens[i], and to no other text.",
    "two tokens that followed": (
        "The prefix occurs more than once: go on after the first place, and forbid what follows at each."
    ),
    "an n-gram at the very end": "The last n-gram begins at place T - n, and counts: range(T - n + 1).",
    "n-grams that overlap": "n-grams may share tokens: go on by one place, not by n.",
    "n = 1": (
        "The prefix is empty, and fits everywhere: every token of the text is forbidden. But text[-0:] is "
        "the whole text."
    ),
    "a text shorter than n": (
        "Where no whole n-gram fits, nothing is forbidden. A negative index would read from the other end."
    ),
    "a text of n - 1 tokens": (
        "The whole text is the prefix, and nothing has followed it yet: nothing is forbidden."
    ),
    "float64": KEEP_DTYPE,
}


def no_repeat_ngram(logits: Float[Tensor, "B V"], tokens: list[list[int]], n: int) -> Float[Tensor, "B V"]:
    """-inf for each token that followed the last n - 1 tokens before."""
    return _forbid(logits, (_followers(text, n) for text in tokens))


def _forbid(logits, forbidden):
    logits = logits.clone()
    for row, ids in enumerate(forbidden):
        logits[row, list(ids)] = -torch.inf
    return logits


def _followers(text, n):
    """The tokens that complete an n-gram which the text holds, in the order of its n-grams."""
    grams = [text[place : place + n] for place in range(len(text) - n + 1)]
    prefix = text[len(text) - n + 1 :]
    return [gram[-1] for gram in grams if gram[:-1] == prefix]


def cases(rng: random.Random) -> list[Case]:
    def case(label, texts, n, dtype=torch.float32):
        return Case({"logits": inputs.logits(rng, len(texts), vocab, dtype), "tokens": texts, "n": n}, label)

    vocab = rng.randint(12, 16)
    a, b, c, d, e, *rest = rng.sample(range(vocab), vocab)  # all different: only what is meant repeats
    bigram = [*rest[:2], a, b, *rest[2:4], a]
    trigram = [d, b, e, a, b, c, *rest[:2], a, b]
    return [
        case("a bigram", [bigram], 2),
        case("a trigram", [trigram], 3),
        case("several rows", [[*rest[2:5], *trigram], [*rest[2:], d], [c, d, e, c, d]], 3),
        case("two tokens that followed", [[a, b, c, *rest[:3], a, b, d, a, b]], 3),
        case("an n-gram at the very end", [[*rest[:4], a, a], [*rest[:2], b, b]], 2),
        case("n-grams that overlap", [[d, a, a, a], [b, c, b, c, b]], 3),
        case("n = 1", [[a, b, b, c], [d]], 1),
        case("a text shorter than n", [[a, b], [a, a], [a], []], 4),
        case("a text of n - 1 tokens", [[a, b, a], [c, c, c]], 4),
        case("float64", [trigram, bigram], 2, torch.float64),
    ]


def _prefix_too_long(logits, tokens, n):
    return no_repeat_ngram(logits, tokens, n + 1)


def _the_prefix(logits, tokens, n):
    return _forbid(logits, (text[-1:] if _followers(text, n) else [] for text in tokens))


def _all_seen(logits, tokens, n):
    return no_repeat_ngram(logits, tokens, 1)


def _only_less_likely(logits, tokens, n):
    return logits - (logits != no_repeat_ngram(logits, tokens, n)).to(logits.dtype)


def _past_the_end(logits, tokens, n):
    def followers(text):
        prefix = text[len(text) - n + 1 :]
        return [text[i + n - 1] for i in range(len(text)) if text[i : i + n - 1] == prefix]

    return _forbid(logits, map(followers, tokens))


def _last_token_alone(logits, tokens, n):
    return _forbid(logits, (_followers(text, 2) if _followers(text, n) else [] for text in tokens))


def _texts_of_all(logits, tokens, n):
    forbidden = {token for text in tokens for token in _followers(text, n)}
    return _forbid(logits, [forbidden] * len(tokens))


def _first_only(logits, tokens, n):
    return _forbid(logits, (_followers(text, n)[:1] for text in tokens))


def _misses_the_last(logits, tokens, n):
    def followers(text):
        places = range(len(text) - n)
        prefix = text[len(text) - n + 1 :]
        return [text[i + n - 1] for i in places if text[i : i + n - 1] == prefix]

    return _forbid(logits, map(followers, tokens))


def _side_by_side(logits, tokens, n):
    def followers(text):
        places = range(0, len(text) - n + 1, n)
        return [text[i + n - 1] for i in places if text[i : i + n - 1] == text[len(text) - n + 1 :]]

    return _forbid(logits, map(followers, tokens))


def _minus_zero(logits, tokens, n):
    def followers(text):
        places = range(len(text) - n + 1)
        return [text[i + n - 1] for i in places if text[i : i + n - 1] == text[-(n - 1) :]]

    return _forbid(logits, map(followers, tokens))


def _shorter_where_short(logits, tokens, n):
    return _forbid(logits, (_followers(text, min(n, max(1, len(text)))) for text in tokens))


def _always_float32(logits, tokens, n):
    return no_repeat_ngram(logits.float(), tokens, n)


def _in_place(logits, tokens, n):
    return logits.copy_(no_repeat_ngram(logits, tokens, n))


def _itself(logits, tokens, n):
    return logits if all(len(text) < n for text in tokens) else no_repeat_ngram(logits, tokens, n)


EXERCISE = Exercise(
    name="01.no_repeat_ngram",
    function="no_repeat_ngram",
    title="No n-gram twice",
    points=10,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="no_repeat_ngram(logits, tokens, n)",
    cases=cases,
    reference=no_repeat_ngram,
    comparison=Close(atol=1e-6, rtol=1e-6),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("lets n-grams come twice, but not longer ones", _prefix_too_long, "a bigram"),
        Mutant("forbids the last token of the text", _the_prefix, "a bigram"),
        Mutant("forbids all tokens of the text", _all_seen, "a bigram"),
        Mutant("makes them less likely only", _only_less_likely, "a bigram"),
        Mutant("reads past the end of the text", _past_the_end, "a bigram"),
        Mutant("compares the last token only", _last_token_alone, "a trigram"),
        Mutant("mixes the texts of the rows", _texts_of_all, "several rows"),
        Mutant("forbids the first follower only", _first_only, "two tokens that followed"),
        Mutant("misses the last n-gram", _misses_the_last, "an n-gram at the very end"),
        Mutant("cuts the text into n-grams side by side", _side_by_side, "n-grams that overlap"),
        Mutant("takes text[-0:] for nothing", _minus_zero, "n = 1"),
        Mutant("blocks shorter n-grams in short texts", _shorter_where_short, "a text shorter than n"),
        Mutant("returns float32 whatever it is given", _always_float32, "float64"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where nothing is forbidden", _itself, NewTensor().name),
    ),
)
