"""01.top_k: the k likeliest, and those that are as likely as the last of them."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.rules import Forbid, NewTensor, NoMutation

ASKS = r"""
*Top-k* keeps the $k$ most probable tokens of each row and cuts all others (Fan et al. 2018).

Write `top_k_filter(logits, k)`.

- `logits`: floating-point tensor of shape `(B, V)`; some may be `-inf` already.
- `k`: an integer, at least 1. If it is larger than $V$, every token is kept.
- returns logits, not probabilities: a **new** tensor of the shape and dtype of `logits` in which every token
  that is cut is `-inf`, and every other logit is as it was.

Tokens as probable as the last one kept are kept too, so that a tie may keep more than $k$.

```python
>>> top_k_filter(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), 2)
tensor([[-inf, 3., 2., 2.]])
>>> top_k_filter(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), 9)
tensor([[1., 3., 2., 2.]])
```
"""

HINTS = (
    "You do not need to know which k tokens are kept, only the smallest logit among them: it decides about "
    "all others.",
    "torch.topk(logits, k).values is sorted; its last column is the bar of each row. Keep it as (B, 1), so "
    "that it is compared with its own row. What does topk say to a k above V?",
    "With min(k, V) nothing can go wrong. masked_fill puts -inf where a logit is strictly below the bar, and "
    "returns a new tensor; a logit that equals the bar stays.",
)

HINTS_AT = {
    "several rows": "Each row has a bar of its own: keep it as (B, 1), so that it is compared with its row.",
    "a tie with the last one kept": (
        "Compare logits with the smallest one that is kept, instead of keeping the places that topk "
        "returns: what equals it stays."
    ),
    "more asked for than are left": (
        "The k-th largest is -inf in these rows: nothing lies below it, and all stays as it was."
    ),
    "k as large as the vocabulary": (
        "The bar is the smallest logit of the row, and it is kept too: cut what is strictly below."
    ),
    "k above the vocabulary": "topk refuses a k above V; min(k, V) is what it can do.",
    "bfloat16": (
        "masked_fill keeps the dtype of what it fills, and -inf fits into each. Nothing has to become "
        "float32 on the way."
    ),
}


def top_k_filter(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """-inf below the k-th largest logit of each row."""
    bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < bar, -torch.inf)


def cases(rng: random.Random) -> list[Case]:
    def case(label, logits, k):
        return Case({"logits": logits, "k": k}, label)

    vocab = rng.randint(8, 12)
    steps = 20.0 * torch.arange(4, dtype=torch.float32)[:, None]  # no row's bar is good for another
    k = rng.randint(3, 5)
    values = [3.0 - i / 4 if i < k - 1 else 1.0 if i < k + 2 else -float(i) for i in range(vocab)]
    tied = torch.tensor([rng.sample(values, vocab) for _ in range(2)], dtype=torch.float32)
    masked = inputs.logits(rng, 2, vocab)
    masked[:, rng.sample(range(vocab), vocab - 3)] = -torch.inf
    return [
        case("one row", inputs.logits(rng, 1, vocab), rng.randint(2, vocab - 3)),
        case("several rows", inputs.logits(rng, 4, vocab) + steps, rng.randint(2, vocab - 3)),
        case("k = 1", inputs.logits(rng, 2, vocab), 1),
        case("a tie with the last one kept", tied, k),
        case("more asked for than are left", masked, rng.randint(4, 5)),
        case("k as large as the vocabulary", inputs.logits(rng, 2, vocab), vocab),
        case("k above the vocabulary", inputs.logits(rng, 2, vocab), vocab + rng.randint(1, 9)),
        case("bfloat16", inputs.logits(rng, 2, vocab, torch.bfloat16), 3),
    ]


def _drops_the_last(logits, k):
    bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits <= bar, -torch.inf)


def _one_too_many(logits, k):
    return top_k_filter(logits, k + 1)


def _probabilities(logits, k):
    return top_k_filter(logits, k).softmax(-1)


def _sorted_output(logits, k):
    kept = logits.topk(min(k, logits.shape[-1])).values
    return torch.nn.functional.pad(kept, (0, logits.shape[-1] - kept.shape[-1]), value=-torch.inf)


def _nearly_cut(logits, k):
    return top_k_filter(logits, k).clamp(min=-1e9)


def _bar_of_row_0(logits, k):
    bar = logits.topk(min(k, logits.shape[-1])).values[0, -1]
    return logits.masked_fill(logits < bar, -torch.inf)


def _bar_of_the_batch(logits, k):
    return top_k_filter(logits.reshape(1, -1), k).view_as(logits)


def _exactly_k(logits, k):
    values, ids = logits.topk(min(k, logits.shape[-1]))
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, values)


def _cannot_keep_all(logits, k):
    return top_k_filter(logits, logits.topk(k).values.shape[-1])


def _cuts_one_always(logits, k):
    return top_k_filter(logits, min(k, logits.shape[-1] - 1))


def _always_float32(logits, k):
    return top_k_filter(logits.float(), k)


def _in_place(logits, k):
    return logits.masked_fill_(top_k_filter(logits, k).isneginf(), -torch.inf)


def _itself(logits, k):
    return logits if k >= logits.shape[-1] else top_k_filter(logits, k)


EXERCISE = Exercise(
    name="01.top_k",
    function="top_k_filter",
    title="Top-k",
    points=8,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="top_k_filter(logits, k)",
    cases=cases,
    reference=top_k_filter,
    comparison=Close(atol=1e-6, rtol=1e-6),
    rules=(NoMutation(), NewTensor(), Forbid()),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("drops the k-th token", _drops_the_last, "one row"),
        Mutant("keeps one token too many", _one_too_many, "one row"),
        Mutant("returns probabilities", _probabilities, "one row"),
        Mutant("returns them in sorted order", _sorted_output, "one row"),
        Mutant("writes -1e9 for -inf", _nearly_cut, "one row"),
        Mutant("takes the bar of row 0 for all", _bar_of_row_0, "several rows"),
        Mutant("takes one bar for the batch", _bar_of_the_batch, "several rows"),
        Mutant("cuts through a tie", _exactly_k, "a tie with the last one kept"),
        Mutant("always cuts a token", _cuts_one_always, "k as large as the vocabulary"),
        Mutant("fails where k is above V", _cannot_keep_all, "k above the vocabulary"),
        Mutant("returns float32 whatever it is given", _always_float32, "bfloat16"),
        Mutant("changes its input", _in_place, NoMutation().name),
        Mutant("returns its input where nothing is cut", _itself, NewTensor().name),
    ),
)
