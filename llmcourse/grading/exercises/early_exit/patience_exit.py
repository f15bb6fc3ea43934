"""04.patience_exit: leave when the favourite has been confirmed often enough in a row."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.early_exit import drawn as exits
from llmcourse.grading.exercises.early_exit.runs import Runs
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

Layers = list[int]  # favourites of a row, layer by layer

ASKS = r"""
An exit that is sure may be surely wrong. **Patience** asks for agreement instead: leave when the favourite,
the likeliest answer, has been **confirmed** by so many exits in a row (PABEE, Zhou et al. 2020; chapter 4,
*Early exit*). A count goes up by 1 at each layer whose favourite is that of the layer before, and starts
again from 0 at each layer whose favourite is another. A row leaves at the first layer at which its count
reaches the patience.

Write `patience_exit(logits, patience)`.

- `logits`: `float32` tensor of shape `(E, B, V)`: what the exit of each of $E$ layers says of each row, the
  last layer's being the model's own.
- `patience`: an int, at least 1.
- returns `(layers, answers)`, two `int64` tensors of shape `(B,)`: the layer at which each row leaves, the
  first being 1, and the favourite there. Rows that are never confirmed so often leave at the last layer,
  $E$.

Each row leaves by itself. Of several as likely answers the first is the favourite.

```python
>>> favourites = torch.tensor([[2, 0], [2, 1], [1, 1], [1, 1], [1, 0]])       # five layers, two rows
>>> logits = torch.nn.functional.one_hot(favourites, 3).float()
>>> patience_exit(logits, patience=2)
(tensor([5, 4]), tensor([1, 1]))
```
"""

HINTS = (
    "The favourites are a tensor of shape (E, B). Walk down the layers with a count for each row; a row that "
    "has left is to keep its layer and its answer.",
    "same = favourites[n] == favourites[n - 1]; count = torch.where(same, count + 1, 0): what was counted "
    "before a change is gone.",
    "Begin with layers = torch.full((B,), E) and walk from n = 1 on. Where count >= patience and "
    "layers == E, the row leaves at n + 1. The answers: favourites.gather(0, layers[None] - 1)[0].",
)

LATE = (
    "It leaves a layer late. The layer that brings the count to the patience is the exit: at least, not more."
)
EARLY = (
    "That is a layer early. If the answers are right, it is the number: the first layer is 1, not 0. If not, "
    "the first of equal favourites was counted, which confirms nothing: patience 2 takes three layers of one "
    "mind."
)
ALL_ALIKE = (
    "All layers so far had to agree here. The streak may begin anywhere: only the last layers have to be of "
    "one mind."
)
LAST_ANSWER = "That is what the last layer would have answered. The answer is the favourite at the exit."
LEAVES_LAST = (
    "That is the end of the last streak, or of all: the **first** layer at which the count reaches the "
    "patience is where the row leaves, whatever comes later."
)
HINTS_AT = {
    "a streak that breaks": (
        "A favourite that changes takes the count back to 0, also if it changes back later: confirmed is "
        "what is confirmed in a row."
    ),
    "another favourite for one layer": (
        "One layer of another mind is enough: the count begins again from 0, also where the favourite comes "
        "right back."
    ),
    "a first favourite of 0": (
        "The first layer confirms nothing, also where its favourite is token 0: there is no layer before "
        "it. Begin to compare at the second layer, not with a favourite of 0 before the first."
    ),
    "an answer of 0": (
        "Token 0 is an answer like any other. Whether a row has left is to be kept apart from what it "
        "answered: `answers == 0` does not say that it stays."
    ),
    "a long patience": "Patience may be any number: here it takes many layers of one mind.",
    "several rows": (
        "Each row has a count, an exit and an answer of its own; in a loop over rows, each begins anew."
    ),
    "more patience than layers": "With E layers nothing is confirmed more than E - 1 times: all leave at E.",
    "a change in the last layer": "Whoever gets to the last layer leaves there, with the answer of that one.",
    "a single layer": "With one layer there is nothing to confirm: each row leaves at layer 1.",
    "two favourites": (
        "Two answers are exactly as likely in a layer: the first is its favourite there, as argmax has "
        "it. So it confirms the layer before, or does not."
    ),
}


def patience_exit(
    logits: Float[Tensor, "E B V"], patience: int
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Row by row, up to the layer that confirms it often enough."""
    return Leave()(logits, patience)


def first(logits: Tensor) -> Tensor:
    """The favourites, `(E, B)`."""
    return logits.argmax(-1)


def in_a_row(row: Layers) -> Layers:
    """The count after each layer."""
    counts = [0]
    for before, favourite in pairwise(row):
        counts.append(counts[-1] + 1 if favourite == before else 0)
    return counts


@dataclass(frozen=True)
class Leave:
    """Every row by itself; the fields are what mutants get wrong.

    Args:
        favourites: of each layer.
        counts: after each layer of a row.
        enough: whether a count is.
        which: of the layers at which it is, numbered from 0.
        answer: of a row's favourites, by the layer at which it leaves.
        number: of that layer.
    """

    favourites: Callable = first
    counts: Callable = in_a_row
    enough: Callable = lambda count, patience: count >= patience
    which: Callable = min
    answer: Callable = lambda row, layer: row[layer]
    number: Callable = lambda layer: layer + 1

    def __call__(self, logits, patience):
        layers, answers = [], []
        for row in self.favourites(logits).T.tolist():
            there = [n for n, count in enumerate(self.counts(row)) if self.enough(count, patience)]
            layer = self.which(there) if there else len(row) - 1
            layers.append(self.number(layer))
            answers.append(self.answer(row, layer))
        return torch.tensor(layers), torch.tensor(answers)


def cases(rng: random.Random) -> list[Case]:
    vocab = rng.randint(7, 9)
    drawing = Runs(rng, vocab)

    def case(label, plan, wrong=(), apart=(), changed=lambda said, rows, patience: None):
        """What is asked for by a plan, a function that draws rows of favourites and a patience."""

        def draw():
            rows, patience = plan()
            layers = zip(*rows, strict=True)
            said = [[exits.favouring(rng, vocab, token) for token in layer] for layer in layers]
            changed(said, rows, patience)
            return {"logits": torch.tensor(said, dtype=torch.float32), "patience": patience}

        return Case(drawn.telling(draw, patience_exit, wrong, apart), label)

    def tied(said, rows, patience):
        """In layers behind a change, the answer before it is as likely again, or stands in front."""
        (row,) = rows
        change = next(n for n, token in enumerate(row) if token != row[0])
        low, high = sorted(row[change : change + 2])
        for layer in range(change + 1, change + 2 + patience):
            values = [-float(token) for token in range(vocab)]
            values[low] = values[high] = 5.0
            said[layer][0] = values

    return [
        case("a streak", drawing.a_streak, apart=TOLD),
        case("a streak that breaks", drawing.a_break, BROKEN),
        case("a first favourite of 0", drawing.first_0, (_confirmed_by_zeros,)),
        case("an answer of 0", drawing.answer_0, (_answer_0_is_none, _leaves_again)),
        case("a long patience", drawing.a_long_patience, (_at_most_4,)),
        case("several rows", drawing.several, SEVERAL),
        case("more patience than layers", drawing.too_few, (_first_for_want,)),
        case("a change in the last layer", drawing.a_late_change, (_never_the_last,)),
        case("two favourites", drawing.one_change, (_last_of_equals,), changed=tied),
        case("a patience of 1", lambda: (drawing.rows(rng.randint(5, 8), 3), 1)),
        case("another favourite for one layer", drawing.a_blink, (_over_one_layer, _forgives_one)),
        case("a single layer", lambda: (drawing.rows(1, 1), rng.randint(1, 2))),
    ]


def _counts_all(row):
    """How often a favourite was that of the layer before, in all."""
    counts = [0]
    for before, favourite in pairwise(row):
        counts.append(counts[-1] + (favourite == before))
    return counts


def _counts_votes(row):
    """How many layers before had the favourite, in a row or not."""
    return [row[:n].count(favourite) for n, favourite in enumerate(row)]


def _counts_from_the_first(row):
    return [n if len(set(row[: n + 1])) == 1 else 0 for n in range(len(row))]


def _counts_down(row):
    """The count goes down by one at a change, instead of back to 0."""
    counts = [0]
    for n in range(1, len(row)):
        alike = row[n] == row[n - 1]
        counts.append(counts[-1] + 1 if alike else max(0, counts[-1] - 1))
    return counts


def _counts_from_zeros(row):
    """As if a layer before the first had favoured token 0."""
    return in_a_row([0, *row])[1:]


_late = Leave(enough=lambda count, patience: count > patience)
_early = Leave(enough=lambda count, patience: count >= patience - 1)
_all_alike = Leave(counts=_counts_from_the_first)
_last_answer = Leave(answer=lambda row, layer: row[-1])
_from_0 = Leave(number=lambda layer: layer)
_leaves_last = Leave(which=max)
_never_reset = Leave(counts=_counts_all)
_votes = Leave(counts=_counts_votes)
_takes_back_one = Leave(counts=_counts_down)
_last_of_equals = Leave(favourites=lambda logits: logits.shape[-1] - 1 - logits.flip(-1).argmax(-1))
_confirmed_by_zeros = Leave(counts=_counts_from_zeros)
_at_most_4 = Leave(enough=lambda count, patience: count >= min(patience, 4))


def _counts_over_one_layer(row):
    """As if a favourite that comes back behind another had not been away."""
    counts = [0]
    for n in range(1, len(row)):
        counts.append(counts[-1] + 1 if row[n] in row[max(0, n - 2) : n] else 0)
    return counts


def _counts_but_for_one(row):
    """A single layer of another mind leaves the count as it is."""
    counts = [0]
    for n in range(1, len(row)):
        back = n > 1 and row[n] == row[n - 2]
        strays = n + 1 < len(row) and row[n + 1] == row[n - 1]
        counts.append(counts[-1] + 1 if row[n] == row[n - 1] else counts[-1] if back or strays else 0)
    return counts


def _row_by_row(goes_on):
    """In a loop over rows where the count, the favourite before, or both are those of the last row's end."""

    def leave(logits, patience):
        found, count, before = [], 0, None
        for row in first(logits).T.tolist():
            count = count if "count" in goes_on else 0
            before = before if "favourite" in goes_on else None
            for layer, favourite in enumerate(row, 1):
                if before is not None:
                    count = count + 1 if favourite == before else 0
                before = favourite
                if count >= patience or layer == len(row):
                    found.append((layer, favourite))
                    break
        layers, answers = zip(*found, strict=True)
        return torch.tensor(layers), torch.tensor(answers)

    return leave


def _answer_0_is_none(logits, patience):
    """Fills in what the last layer says where an answer is still 0."""
    layers, answers = patience_exit(logits, patience)
    return layers, torch.where(answers == 0, logits[-1].argmax(-1), answers)


def _leaves_again(logits, patience):
    """Takes a row whose answer is 0 for one that has not left: it leaves again at later layers."""
    layers, answers = patience_exit(logits, patience)
    later, last = Leave(which=max)(logits, patience)
    return torch.where(answers == 0, later, layers), torch.where(answers == 0, last, answers)


def _shared(logits, patience):
    """One count for all rows: up where all agree."""
    favourites, count = logits.argmax(-1), 0
    for n in range(1, len(favourites)):
        count = count + 1 if torch.equal(favourites[n], favourites[n - 1]) else 0
        if count >= patience:
            break
    return torch.full((logits.shape[1],), n + 1), favourites[n].clone()


def _all_or_none(logits, patience):
    """All rows wait for the last one."""
    layers, _ = patience_exit(logits, patience)
    layers = layers.max().expand(len(layers)).clone()
    return layers, logits.argmax(-1).gather(0, layers[None] - 1)[0]


def _first_for_want(logits, patience):
    """Layer 1 for want of a layer, as argmax over nothing but False gives it."""
    layers, answers = patience_exit(logits, patience)
    if patience < len(logits):
        return layers, answers
    return torch.ones_like(layers), logits[0].argmax(-1)


def _never_the_last(logits, patience):
    """The last exit before the end answers for rows that get there."""
    layers, answers = patience_exit(logits, patience)
    before = logits[-2].argmax(-1)
    return layers, torch.where((layers == len(logits)) & (patience < len(logits)), before, answers)


def _needs_two_layers(logits, patience):
    """Takes the layer before the last for one that is there."""
    before = logits[:-1].argmax(-1)[-1]  # raises without one
    layers, answers = patience_exit(logits, patience)
    return layers, torch.where(layers == len(logits) - 1, before, answers)


def _in_place(logits, patience):
    found = patience_exit(logits, patience)
    logits[:, :, 0] = 0
    return found


_over_one_layer = Leave(counts=_counts_over_one_layer)
_forgives_one = Leave(counts=_counts_but_for_one)
_count_goes_on = _row_by_row(("count",))
_favourite_goes_on = _row_by_row(("favourite",))
_both_go_on = _row_by_row(("count", "favourite"))

TOLD = (_late, _early, _all_alike, _last_answer, _leaves_last)
BROKEN = (_never_reset, _votes, _takes_back_one)
SEVERAL = (_shared, _all_or_none, _count_goes_on, _favourite_goes_on, _both_go_on)

EXERCISE = Exercise(
    name="04.patience_exit",
    function="patience_exit",
    title="Leave when it is confirmed",
    points=7,
    minutes=15,
    level=3,
    asks=ASKS,
    signature="patience_exit(logits, patience)",
    cases=cases,
    reference=patience_exit,
    comparison=Parts({"layers": Close(axes=("row",)), "answers": Close(axes=("row",))}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("leaves a layer late", _late, "a streak", LATE),
        Mutant("leaves a layer early", _early, "a streak", EARLY),
        Mutant("wants all layers of one mind", _all_alike, "a streak", ALL_ALIKE),
        Mutant("answers as the last layer", _last_answer, "a streak", LAST_ANSWER),
        Mutant("counts layers from 0", _from_0, "a streak", EARLY),
        Mutant("leaves at the end of a streak", _leaves_last, "a streak", LEAVES_LAST),
        Mutant("counts without a reset", _never_reset, "a streak that breaks"),
        Mutant("counts votes", _votes, "a streak that breaks"),
        Mutant("takes back one for a change", _takes_back_one, "a streak that breaks"),
        Mutant("compares the first layer with zeros", _confirmed_by_zeros, "a first favourite of 0"),
        Mutant("takes answer 0 for none", _answer_0_is_none, "an answer of 0"),
        Mutant("leaves again behind an answer of 0", _leaves_again, "an answer of 0"),
        Mutant("has a patience of at most 4", _at_most_4, "a long patience"),
        Mutant("has one count for all rows", _shared, "several rows"),
        Mutant("lets all rows wait for the last", _all_or_none, "several rows"),
        Mutant("goes on with the count of the row before", _count_goes_on, "several rows"),
        Mutant("compares with the row before", _favourite_goes_on, "several rows"),
        Mutant("takes all rows for one", _both_go_on, "several rows"),
        Mutant("leaves at layer 1 for want of another", _first_for_want, "more patience than layers"),
        Mutant("answers a layer before the last", _never_the_last, "a change in the last layer"),
        Mutant("takes the last of two favourites", _last_of_equals, "two favourites"),
        Mutant("needs two layers", _needs_two_layers, "a single layer"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
