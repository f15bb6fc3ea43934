"""02.rollback: what a row keeps of a draft, and how long it is then."""

from __future__ import annotations

import random

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.kv_cache.drawn import OWN_WORK, ragged
from llmcourse.grading.rules import NoMutation

ASKS = r"""
Chapter 4 writes several tokens in one step. Somebody guesses the next $K$ tokens of a row, the *draft*; the
model reads the row's newest token and the whole draft at once, and says after each of them which token it
would have written. A row **accepts** its draft up to the first token that is not the model's own choice, and
takes that choice instead. But by then the rejected tokens are in the cache: it has to be rolled back.

Nothing is copied or erased for that. A slot that lies behind a row's length is not visible, and will be
written again: to roll back is only to say how long each row is.

Write `rollback(lengths, draft, target)`.

- `lengths`: `int64` tensor of shape `(B,)`, tokens that each row holds after that step. The last $K + 1$ of
  them are its newest token and its draft.
- `draft`: `int64` tensor of shape `(B, K)`, with $K \ge 1$.
- `target`: `int64` tensor of shape `(B, K + 1)`: `target[b, i]` is the model's choice after the newest token
  and the first `i` drafted ones. So `draft[b, i]` is accepted if it equals `target[b, i]`, and all before it
  are accepted.
- returns `(new_lengths, next_tokens)`, both `int64` of shape `(B,)`: how many tokens each row holds when the
  rejected ones are forgotten, and the model's choice at the place where the row's accepted tokens end. That
  one has not been read yet, so it is not counted.

Raise a `ValueError` if a row holds fewer than $K + 1$ tokens: this step cannot have been its own, and it
could be rolled back past its start. Raise one also if `lengths` has not one entry for each row of the draft:
it belongs to another batch.

```python
>>> draft = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
>>> target = torch.tensor([[5, 6, 9, 8], [4, 6, 7, 8], [5, 6, 7, 8]])   # 2, none and all are accepted
>>> rollback(torch.tensor([14, 14, 20]), draft, target)
(tensor([13, 11, 20]), tensor([9, 4, 8]))
```
"""

HINTS = (
    "How many drafted tokens does each row accept? With that number n, between 0 and K, the length follows: "
    "which of the K + 1 tokens of this step are then in the cache by right?",
    "draft == target[:, :-1] says where the two agree; n counts the agreements before the first difference. "
    "The newest token stays in any case, so the length is lengths - K + n.",
    "A running product of zeros and ones is 1 up to the first 0: "
    "(draft == target[:, :-1]).long().cumprod(-1), summed over the row, is n. And "
    "target.gather(1, n[:, None]) is what the model chose there.",
)

HINTS_AT = {
    "right again after a mistake": (
        "After the first difference the model has read another text than it would have written: what agrees "
        "later agrees by accident, and is rejected too."
    ),
    "all accepted": (
        "Then nothing is rolled back, and there is a token more to gain: the model's choice after the whole "
        "draft, target[b, K]."
    ),
    "rows that differ": "Each row accepts as many as it does, whatever the other rows do.",
    "a row of nothing but this step": (
        "K + 1 tokens are enough: the newest one, at position 0, and the draft. Only fewer are too few."
    ),
    "a row shorter than its step": (
        "Compare lengths with K + 1 before anything else. A negative length, or one that was quietly made 0, "
        "would be noticed much later."
    ),
    "lengths of another batch": (
        "Broadcasting makes one length fit any number of rows, without a word: compare the sizes yourself."
    ),
}


def rollback(
    lengths: Int[Tensor, " rows"], draft: Int[Tensor, "B K"], target: Int[Tensor, "B more"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The newest token and the accepted ones stay; the model's choice follows them."""
    rows, drafted = draft.shape
    if len(lengths) != rows:
        raise ValueError(f"lengths must have {rows} entries, one a row of the draft, got {len(lengths)}")
    if (lengths <= drafted).any():
        raise ValueError(f"lengths must be at least {drafted + 1}, got {lengths.tolist()}")
    return _kept(lengths, target, _accepted(draft, target))


def _accepted(draft, target):
    return (draft == target[:, :-1]).long().cumprod(-1).sum(-1)


def _kept(lengths, target, accepted):
    drafted = target.shape[1] - 1
    return lengths - drafted + accepted, target.gather(1, accepted[:, None])[:, 0]


def cases(rng: random.Random) -> list[Case]:
    vocab, drafted = rng.randint(16, 20), rng.randint(4, 5)

    def case(label, accepted, lengths=None, again=False, raises=None):
        """Rows that accept so many tokens each; `again`: the draft is right once more, after a mistake."""
        drawn = [_texts(rng, vocab, drafted, n, again) for n in accepted]
        draft, target = (torch.tensor(part) for part in zip(*drawn, strict=True))
        if lengths is None:
            lengths = rng.sample(range(drafted + 3, drafted + 15), len(accepted))
        arguments = {"lengths": torch.as_tensor(lengths), "draft": draft, "target": target}
        return Case(arguments, label, raises=raises)

    some = [2, 0, drafted, 1]
    return [
        case("some accepted", [rng.randint(1, drafted - 2)]),
        case("right again after a mistake", [rng.randint(0, drafted - 3)], again=True),
        case("none accepted", [0]),
        case("all accepted", [drafted]),
        case("rows that differ", some, ragged(rng, 4, drafted + 2, drafted + 9)),
        case("a row of nothing but this step", [1, 0, 2], [drafted + 4, drafted + 1, drafted + 2]),
        case(
            "a row shorter than its step", [2, 1, 0], [drafted + 5, drafted, drafted + 2], raises=ValueError
        ),
        case("lengths of another batch", some, [drafted + rng.randint(3, 8)], raises=ValueError),
    ]


def _texts(rng, vocab, drafted, accepted, again):
    """A draft and the model's choices, no two of which are the same token."""
    target = rng.sample(range(vocab), drafted + 1)
    others = rng.sample([token for token in range(vocab) if token not in target], drafted - accepted)
    draft = target[:accepted] + others
    if again:
        draft[accepted + 1 :] = target[accepted + 1 : -1]
    return draft, target


def _keeps_all(lengths, draft, target):
    return lengths.clone(), rollback(lengths, draft, target)[1]


def _keeps_none(lengths, draft, target):
    new, following = rollback(lengths, draft, target)
    return new - _accepted(draft, target), following


def _forgets_the_newest(lengths, draft, target):
    new, following = rollback(lengths, draft, target)
    return new - 1, following


def _counts_the_next(lengths, draft, target):
    new, following = rollback(lengths, draft, target)
    return new + 1, following


def _next_of_the_draft(lengths, draft, target):
    place = _accepted(draft, target).clamp(max=draft.shape[1] - 1)
    return rollback(lengths, draft, target)[0], draft.gather(1, place[:, None])[:, 0]


def _last_choice(lengths, draft, target):
    return rollback(lengths, draft, target)[0], target[:, -1].clone()


def _counts_accidents(lengths, draft, target):
    rollback(lengths, draft, target)
    return _kept(lengths, target, (draft == target[:, :-1]).sum(-1))


def _keeps_accidents(lengths, draft, target):
    _, following = rollback(lengths, draft, target)
    return lengths - draft.shape[1] + (draft == target[:, :-1]).sum(-1), following


def _one_less_of_all(lengths, draft, target):
    rollback(lengths, draft, target)
    return _kept(lengths, target, _accepted(draft, target).clamp(max=draft.shape[1] - 1))


def _worst_row_for_all(lengths, draft, target):
    rollback(lengths, draft, target)
    return _kept(lengths, target, _accepted(draft, target).min().expand(len(draft)))


def _first_row_for_all(lengths, draft, target):
    rollback(lengths, draft, target)
    return _kept(lengths, target, _accepted(draft, target)[:1].expand(len(draft)))


def _too_strict(lengths, draft, target):
    if (lengths <= draft.shape[1] + 1).any():
        raise ValueError("too short")
    return rollback(lengths, draft, target)


def _at_least_0(lengths, draft, target):
    new, following = _kept(lengths, target, _accepted(draft, target))
    return new.clamp(min=0), following


def _only_below_0(lengths, draft, target):
    new, following = _kept(lengths, target, _accepted(draft, target))
    if (new < 0).any():
        raise ValueError("past the start")
    return new, following


def _broadcasts(lengths, draft, target):
    return rollback(lengths.expand(len(draft)), draft, target)


def _in_place(lengths, draft, target):
    new, following = rollback(lengths, draft, target)
    return lengths.copy_(new), following


EXERCISE = Exercise(
    name="02.rollback",
    function="rollback",
    title="Rolling back a draft",
    points=7,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="rollback(lengths, draft, target)",
    cases=cases,
    reference=rollback,
    comparison=Parts({"lengths": Close(axes=("row",)), "next tokens": Close(axes=("row",))}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("keeps the whole draft", _keeps_all, "some accepted"),
        Mutant("keeps nothing of the draft", _keeps_none, "some accepted"),
        Mutant("forgets the newest token", _forgets_the_newest, "some accepted"),
        Mutant("counts the next token", _counts_the_next, "some accepted"),
        Mutant("goes on with the draft's token", _next_of_the_draft, "some accepted"),
        Mutant("takes the last choice", _last_choice, "some accepted"),
        Mutant("counts what is right by accident", _counts_accidents, "right again after a mistake"),
        Mutant("keeps what is right by accident", _keeps_accidents, "right again after a mistake"),
        Mutant("never accepts all", _one_less_of_all, "all accepted"),
        Mutant("treats all rows as the worst", _worst_row_for_all, "rows that differ"),
        Mutant("treats all rows as the first", _first_row_for_all, "rows that differ"),
        Mutant("asks for a token too many", _too_strict, "a row of nothing but this step"),
        Mutant("stops at 0", _at_least_0, "a row shorter than its step"),
        Mutant("looks only at the new length", _only_below_0, "a row shorter than its step"),
        Mutant("lets one length do for all rows", _broadcasts, "lengths of another batch"),
        Mutant("changes its input", _in_place, NoMutation().name),
    ),
)
