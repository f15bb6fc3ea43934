"""04.exit_threshold: the best threshold for a budget of layers, from held-out readings."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.early_exit.readings import (
    Plan,
    above_one,
    above_three,
    all_layers,
    at_the_edge,
    below_all,
    entropies_too,
    equal,
    falling,
    in_threes,
    just_under,
    none_agrees,
    one_fits,
    one_of_them,
    rising,
    several,
    shuffled,
    single,
    single_one,
    unlimited,
    with_0,
)
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

ASKS = r"""
Which threshold? Say that a token may cost so many layers on average: the **budget**. All layers were run
over held-out text, and every exit's entropy and favourite written down. From these **readings** one sees
what each threshold would have come to, without running anything again: a token leaves at the first layer
whose entropy is **less** than the threshold, or else at the last, and what it answers there agrees with the
whole model, that is with the favourite of the last layer, or does not. (Chapter 4, *Early exit*.)

Write `exit_threshold(entropies, favourites, thresholds, budget)`.

- `entropies`: `float32` tensor of shape `(E, N)`: the entropy of the exit of each of $E$ layers at each of
  $N$ tokens, in nats.
- `favourites`: `int64` tensor of shape `(E, N)`: the likeliest token of each exit.
- `thresholds`: a list of floats, those to choose from, at least one, in any order. One may be 0.0, which
  takes all layers.
- `budget`: a number, the largest **mean** number of layers a token, unrounded; a token that leaves at the
  first took 1.
- returns `(threshold, mean_layers, agreement)`: of the thresholds that keep to the budget the one with the
  highest agreement, the share of tokens whose answer is the whole model's; and both figures. Among equal
  agreements take the fewest layers, and if these are equal too the lowest threshold.

A higher threshold never takes more layers; agreement may go up and down. Raise a `ValueError` where none
keeps to the budget.

```python
>>> entropies = torch.tensor([[0.9, 2.0, 0.3], [0.2, 1.0, 0.5], [0.1, 0.1, 0.1]])       # three layers
>>> favourites = torch.tensor([[5, 6, 7], [4, 8, 7], [4, 8, 7]])
>>> threshold, layers, agreement = exit_threshold(entropies, favourites, [0.1, 0.4, 1.0, 1.5], budget=2.5)
>>> threshold, round(layers, 2), agreement
(0.4, 2.0, 1.0)
```
"""

HINTS = (
    "Write a function first that says what a threshold comes to on the readings: the layer at which each "
    "token leaves, from that the mean number of layers and the agreement.",
    "sure = entropies < threshold; sure[-1] = True: at the last layer everything leaves. The first True "
    "of each column is sure.int().argmax(0), counted from 0.",
    "answers = favourites.gather(0, left[None])[0]; agreement = (answers == "
    "favourites[-1]).double().mean(). Of the thresholds with mean layers <= budget take min(..., "
    "key=lambda found: (-agreement, layers, threshold)).",
)

OVER = (
    "That takes more layers than the budget allows. The mean number of layers is at most the budget; of "
    "what is on that side the best is asked for."
)
FEWEST = (
    "That saves most layers. As many as the budget allows may be spent: take the highest agreement for them."
)
NEAREST = (
    "That spends most of the budget. Agreement need not grow with layers: of all thresholds within the "
    "budget take the one that agrees best."
)
FROM_0 = "Layers are counted from 1 here: a token that leaves at the first exit took one."
OF_THE_EARLY = (
    "The agreement is a share of all tokens. Those that run all layers agree for certain, and count too."
)
OTHER_WAY = "Sure is what has a low entropy: a token leaves where it is less than the threshold."
NEVER_SURE = "A token that is never sure leaves at the last layer; argmax over no True at all says the first."
OTHER_EXIT = (
    "Agreement compares the favourite at the exit, the layer at which the token leaves, with the last "
    "layer's. Counted from 0, as rows of a tensor are, that layer is one less than counted from 1."
)
ROUNDED = "The mean and the agreement are asked for as they are; nothing is to be rounded."
NEIGHBOUR = "Agreement is with the whole model, the last layer; not with the next layer."
HINTS_AT = {
    "exactly the budget": (
        "At most the budget: a threshold that takes exactly so many layers keeps to it. And a token that is "
        "never sure leaves at the last layer (argmax over no True at all says the first)."
    ),
    "an entropy that is a threshold": (
        "An entropy that equals the threshold is not less than it: the token goes on to the next layer."
    ),
    "as good, for fewer layers": (
        "Several thresholds agree equally often: the one with fewer layers is asked for, and if these "
        "are equal the lowest."
    ),
    "thresholds that do the same": "Where agreement and layers are equal, the lowest threshold is asked for.",
    "thresholds in any order": "The thresholds need not rise: look at all of them.",
    "just over the budget": "Means are compared with the budget as they are; nothing is to be rounded.",
    "only the first fits": "All thresholds are to be tried, also the first of the list.",
    "only the last fits": "All thresholds are to be tried, also the last of the list.",
    "a threshold of 0": "A threshold of 0.0 is one to choose: it takes all layers (`not 0.0` is True).",
    "a single threshold": "A list of one threshold leaves no choice, if that keeps to the budget.",
    "agreement below a half": "The best agreement may be low, less than a half: it has no least value.",
    "no agreement at all": (
        "The best agreement may be 0, and is an answer all the same. "
        "If the best so far begins with 0, nothing is above it."
    ),
    "more than can be saved": "If no threshold keeps to the budget, raise a ValueError.",
}


def exit_threshold(
    entropies: Float[Tensor, "E N"],
    favourites: Int[Tensor, "E N"],
    thresholds: list[float],
    budget: float | int,
) -> tuple[float, float, float]:
    """All thresholds tried on the readings, and the best within the budget."""
    return Choose()(entropies, favourites, thresholds, budget)


def first_sure(entropies: Tensor, threshold: float) -> Tensor:
    """The layer at which each token leaves, from 0."""
    sure = entropies < threshold
    sure[-1] = True
    return sure.int().argmax(0)


def with_the_last(answers: Tensor, favourites: Tensor, left: Tensor) -> float:
    """How often an answer is the whole model's."""
    return (answers == favourites[-1]).double().mean().item()


def best(threshold: float, layers: float, agreement: float, budget: float | int) -> tuple[float, ...]:
    """What is least for the threshold that is asked for."""
    return -agreement, layers, threshold


@dataclass(frozen=True)
class Choose:
    """The choice; the fields are what mutants get wrong.

    Args:
        left: the layer at which each token leaves, from 0.
        agree: how often the answers are the whole model's.
        first: the number of the first layer.
        able: whether so many layers keep to the budget.
        order: the least of it is chosen.
        given: those of the thresholds that are looked at.
    """

    left: Callable = first_sure
    agree: Callable = with_the_last
    first: int = 1
    able: Callable = lambda layers, budget: layers <= budget
    order: Callable = best
    given: Callable = list

    def __call__(self, entropies, favourites, thresholds, budget):
        found = []
        for threshold in self.given(thresholds):
            left = self.left(entropies, threshold)
            answers = favourites.gather(0, left[None])[0]
            layers = left.double().mean().item() + self.first
            found.append((threshold, layers, self.agree(answers, favourites, left)))
        able = [each for each in found if self.able(each[1], budget)]
        if not able:
            raise ValueError("no threshold keeps to the budget")
        return min(able, key=lambda each: self.order(*each, budget))


def cases(rng: random.Random) -> list[Case]:
    def case(label, plan, wrong=(), apart=()):
        draw = partial(plan.arguments, rng)
        if plan.budget is below_all:
            return Case(draw(), label, raises=ValueError)
        return Case(drawn.telling(draw, exit_threshold, wrong, apart), label)

    return [
        case("a budget", Plan(single), (_surest,), TOLD),
        case("exactly the budget", Plan(at_the_edge, budget=one_of_them), (_below_budget,)),
        case("just over the budget", Plan(single, budget=just_under, close=True), (_rounds_layers, _nearly)),
        case("an entropy that is a threshold", Plan(single, grid=entropies_too), (_or_equal,)),
        case("as good, for fewer layers", Plan(several), (_highest_first,)),
        case("thresholds in any order", Plan(single, grid=shuffled), (_down_to_the_budget,)),
        case("thresholds that do the same", Plan(equal, grid=in_threes), EQUALS),
        case("only the first fits", Plan(one_fits, falling, above_one, ends=True), (_without_first,)),
        case("only the last fits", Plan(one_fits, rising, above_one, ends=True), (_without_last,)),
        case("a threshold of 0", Plan(all_layers, with_0, unlimited, ends=True), (_without_lowest, _not_0)),
        case("a single threshold", Plan(grid=single_one, budget=above_one, ends=True)),
        case("agreement below a half", Plan(late=True), (_above_half,)),
        case("no agreement at all", NONE_AGREES, (_above_0, _instead_of_0)),
        case("more than can be saved", Plan(budget=below_all)),
    ]


def _surest_of_all(entropies, threshold):
    """The layer of the lowest entropy, if that is low enough."""
    low = entropies.min(0)
    return torch.where(low.values < threshold, low.indices, len(entropies) - 1)


def _above(entropies, threshold):
    sure = entropies > threshold
    sure[-1] = True
    return sure.int().argmax(0)


def _never_forced(entropies, threshold):
    """The first layer for want of a sure one."""
    return (entropies < threshold).int().argmax(0)


def _at_most(entropies, threshold):
    sure = entropies <= threshold
    sure[-1] = True
    return sure.int().argmax(0)


def _of_the_early_ones(answers, favourites, left):
    early = left < len(favourites) - 1
    return (answers == favourites[-1])[early].double().mean().item() if early.any() else 0.0


def _with_the_next(answers, favourites, left):
    following = favourites.gather(0, (left + 1).clamp(max=len(favourites) - 1)[None])[0]
    return (answers == following).double().mean().item()


def _with_the_last_a_layer_on(answers, favourites, left):
    """The answer is read a row too far down."""
    later = favourites.gather(0, (left + 1).clamp(max=len(favourites) - 1)[None])[0]
    return with_the_last(later, favourites, left)


_unforced = Choose(left=_never_forced)
_other_exit = Choose(agree=_with_the_last_a_layer_on)
_over = Choose(able=lambda layers, budget: layers >= budget)
_fewest = Choose(order=lambda threshold, layers, agreement, budget: (layers, threshold))
_nearest = Choose(order=lambda threshold, layers, agreement, budget: (-layers, threshold))
_from_0 = Choose(first=0)
_of_the_early = Choose(agree=_of_the_early_ones)
_neighbour = Choose(agree=_with_the_next)
_surest = Choose(left=_surest_of_all)
_other_way = Choose(left=_above)
_or_equal = Choose(left=_at_most)
_below_budget = Choose(able=lambda layers, budget: layers < budget)
_highest_first = Choose(order=lambda threshold, layers, agreement, budget: (-agreement, -layers, threshold))
_highest_of_equals = Choose(
    order=lambda threshold, layers, agreement, budget: (-agreement, layers, -threshold)
)
_first_of_equals = Choose(order=lambda threshold, layers, agreement, budget: (-agreement, layers))
_last_of_equals = Choose(order=_first_of_equals.order, given=lambda thresholds: thresholds[::-1])
_rounds_layers = Choose(able=lambda layers, budget: round(layers, 1) <= budget)
_nearly = Choose(able=lambda layers, budget: layers < budget + 0.05)
_without_first = Choose(given=lambda thresholds: thresholds[1:])
_without_last = Choose(given=lambda thresholds: thresholds[:-1])
_without_lowest = Choose(given=lambda thresholds: sorted(thresholds)[1:])
_ignores_budget = Choose(able=lambda layers, budget: True)


def _rounds_result(entropies, favourites, thresholds, budget):
    threshold, layers, agreement = exit_threshold(entropies, favourites, thresholds, budget)
    return threshold, round(layers, 1), round(agreement, 1)


def _down_to_the_budget(entropies, favourites, thresholds, budget):
    """From the last threshold back to the first that takes too many layers."""
    able = []
    for threshold in reversed(thresholds):
        if first_sure(entropies, threshold).double().mean() + 1 > budget:
            break
        able.append(threshold)
    return exit_threshold(entropies, favourites, able, budget)


def _not_0(entropies, favourites, thresholds, budget):
    """Takes a threshold of 0 for none."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if not found[0]:
        raise ValueError("no threshold keeps to the budget")
    return found


def _above_half(entropies, favourites, thresholds, budget):
    """The best agreement begins at a half."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if found[2] <= 0.5:
        raise ValueError("no threshold keeps to the budget")
    return found


def _above_0(entropies, favourites, thresholds, budget):
    """The best agreement begins at 0, and is replaced by a higher one."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if found[2] <= 0:
        raise ValueError("no threshold keeps to the budget")
    return found


def _instead_of_0(entropies, favourites, thresholds, budget):
    """The same, with the first threshold as the best so far."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    return found if found[2] > 0 else exit_threshold(entropies, favourites, thresholds[:1], len(entropies))


def _all_layers_instead(entropies, favourites, thresholds, budget):
    try:
        return exit_threshold(entropies, favourites, thresholds, budget)
    except ValueError:
        return min(thresholds), float(len(entropies)), 1.0


def _in_place(entropies, favourites, thresholds, budget):
    found = exit_threshold(entropies, favourites, thresholds, budget)
    entropies[-1] = -math.inf  # so that everything leaves there
    return found


NONE_AGREES = Plan(none_agrees, shuffled, above_three, late=True, agrees=0.0, ends=True)
EQUALS = (_highest_of_equals, _first_of_equals, _last_of_equals)
TOLD = (
    *(_ignores_budget, _fewest, _nearest, _from_0, _of_the_early, _neighbour, _other_way, _unforced),
    *(_other_exit, _rounds_result),
)

EXERCISE = Exercise(
    name="04.exit_threshold",
    function="exit_threshold",
    title="A threshold for a budget",
    points=8,
    minutes=20,
    level=4,
    asks=ASKS,
    signature="exit_threshold(entropies, favourites, thresholds, budget)",
    cases=cases,
    reference=exit_threshold,
    comparison=Parts({"threshold": Near(), "mean_layers": Near(), "agreement": Near()}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("is on the wrong side of the budget", _over, "a budget", OVER),
        Mutant("saves as many layers as it can", _fewest, "a budget", FEWEST),
        Mutant("spends as much as it may", _nearest, "a budget", NEAREST),
        Mutant("counts layers from 0", _from_0, "a budget", FROM_0),
        Mutant("asks only those that left early", _of_the_early, "a budget", OF_THE_EARLY),
        Mutant("compares with the next layer", _neighbour, "a budget", NEIGHBOUR),
        Mutant("leaves at layer 1 for want of a sure one", _unforced, "a budget", NEVER_SURE),
        Mutant("answers a layer too late", _other_exit, "a budget", OTHER_EXIT),
        Mutant("rounds what it returns", _rounds_result, "a budget", ROUNDED),
        Mutant("leaves at the surest layer", _surest, "a budget"),
        Mutant("leaves where the entropy is high", _other_way, "a budget", OTHER_WAY),
        Mutant("looks at agreement alone", _ignores_budget, "a budget", OVER),
        Mutant("wants less than the budget", _below_budget, "exactly the budget"),
        Mutant("leaves at equality", _or_equal, "an entropy that is a threshold"),
        Mutant("takes more layers for the same", _highest_first, "as good, for fewer layers"),
        Mutant("takes the highest of equal thresholds", _highest_of_equals, "thresholds that do the same"),
        Mutant("takes the thresholds for sorted", _down_to_the_budget, "thresholds in any order"),
        Mutant("takes the first of equal thresholds", _first_of_equals, "thresholds that do the same"),
        Mutant("takes the last of equal thresholds", _last_of_equals, "thresholds that do the same"),
        Mutant("rounds the mean layers", _rounds_layers, "just over the budget"),
        Mutant("takes nearly the budget for within it", _nearly, "just over the budget"),
        Mutant("skips the first threshold", _without_first, "only the first fits"),
        Mutant("skips the last threshold", _without_last, "only the last fits"),
        Mutant("skips the lowest threshold", _without_lowest, "a threshold of 0"),
        Mutant("takes a threshold of 0 for none", _not_0, "a threshold of 0"),
        Mutant("begins with an agreement of a half", _above_half, "agreement below a half"),
        Mutant("begins with an agreement of 0", _above_0, "no agreement at all"),
        Mutant("begins with the first threshold, as if it agreed at 0", _instead_of_0, "no agreement at all"),
        Mutant("takes all layers for want of a threshold", _all_layers_instead, "more than can be saved"),
        Mutant("writes into its input", _in_place, NoMutation().name),
    ),
)
