"""04.exit_threshold: the best threshold for a budget of layers, from held-out readings."""

from __future__ import annotations

import random
from functools import partial

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.early_exit import choices
from llmcourse.grading.exercises.early_exit.choices import exit_threshold
from llmcourse.grading.exercises.early_exit.readings import (
    MANY,
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
    nearly_equal,
    none_agrees,
    one_fits,
    one_of_them,
    rising,
    several,
    shuffled,
    side_by_side,
    single,
    single_one,
    unlimited,
    up_and_down,
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
    "up and down": (
        "Agreement may fall from one threshold to the next and rise again behind it: try all thresholds."
    ),
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
    "many layers": (
        "Agreement comes first, whatever it costs within the budget. A score of both, agreement less a bit "
        "for each layer, is another order where there are many layers."
    ),
    "nearly as good": (
        "Agreements are compared as they are, however near: nothing is to be rounded. The fewest layers "
        "decide where agreements are equal, not before."
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


UP_AND_DOWN = Plan(up_and_down, shuffled, agrees=0.5, tokens=(8, 16))
MANY_LAYERS = Plan(grid=shuffled, layers=(20, 28), agrees=0.9, tokens=(32, 64), ends=True)
NEARLY = Plan(nearly_equal, side_by_side, unlimited, tokens=MANY, ends=True)
NONE_AGREES = Plan(none_agrees, shuffled, above_three, late=True, agrees=0.0, ends=True)


def cases(rng: random.Random) -> list[Case]:
    def case(label, plan, wrong=(), apart=()):
        draw = partial(plan.arguments, rng)
        if plan.budget is below_all:
            return Case(draw(), label, raises=ValueError)
        return Case(drawn.telling(draw, exit_threshold, wrong, apart), label)

    return [
        case("a budget", Plan(single), (choices.surest,), choices.TOLD),
        case("exactly the budget", Plan(at_the_edge, budget=one_of_them), choices.AT_THE_EDGE),
        case(
            "just over the budget",
            Plan(single, budget=just_under, close=True),
            choices.OVER_IT,
        ),
        case("an entropy that is a threshold", Plan(single, grid=entropies_too), (choices.or_equal,)),
        case("as good, for fewer layers", Plan(several), (choices.highest_first, choices.rounds_tied_layers)),
        case("thresholds in any order", Plan(single, grid=shuffled), (choices.down_to_the_budget,)),
        case("thresholds that do the same", Plan(equal, grid=in_threes), choices.EQUALS),
        case("only the first fits", Plan(one_fits, falling, above_one, ends=True), (choices.without_first,)),
        case("only the last fits", Plan(one_fits, rising, above_one, ends=True), (choices.without_last,)),
        case(
            "a threshold of 0",
            Plan(all_layers, with_0, unlimited, ends=True),
            (choices.without_lowest, choices.not_0),
        ),
        case("a single threshold", Plan(grid=single_one, budget=above_one, ends=True)),
        case("agreement below a half", Plan(late=True), (choices.above_half,)),
        case("no agreement at all", NONE_AGREES, (choices.above_0, choices.instead_of_0)),
        case("nearly as good", NEARLY, choices.ROUNDED),
        case("many layers", MANY_LAYERS, choices.WEIGHED),
        case("up and down", UP_AND_DOWN, choices.HASTY),
        case("more than can be saved", Plan(budget=below_all)),
    ]


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
        Mutant("is on the wrong side of the budget", choices.over, "a budget", OVER),
        Mutant("saves as many layers as it can", choices.fewest, "a budget", FEWEST),
        Mutant("spends as much as it may", choices.nearest, "a budget", NEAREST),
        Mutant("counts layers from 0", choices.from_0, "a budget", FROM_0),
        Mutant("asks only those that left early", choices.of_the_early, "a budget", OF_THE_EARLY),
        Mutant("compares with the next layer", choices.neighbour, "a budget", NEIGHBOUR),
        Mutant("leaves at layer 1 for want of a sure one", choices.unforced, "a budget", NEVER_SURE),
        Mutant("answers a layer too late", choices.other_exit, "a budget", OTHER_EXIT),
        Mutant("rounds what it returns", choices.rounds_result, "a budget", ROUNDED),
        Mutant("leaves at the surest layer", choices.surest, "a budget"),
        Mutant("leaves where the entropy is high", choices.other_way, "a budget", OTHER_WAY),
        Mutant("looks at agreement alone", choices.ignores_budget, "a budget", OVER),
        Mutant("wants less than the budget", choices.below_budget, "exactly the budget"),
        Mutant("leaves at equality", choices.or_equal, "an entropy that is a threshold"),
        Mutant("takes more layers for the same", choices.highest_first, "as good, for fewer layers"),
        Mutant(
            "rounds layers where agreements are equal",
            choices.rounds_tied_layers,
            "as good, for fewer layers",
        ),
        Mutant(
            "takes the highest of equal thresholds", choices.highest_of_equals, "thresholds that do the same"
        ),
        Mutant("takes the thresholds for sorted", choices.down_to_the_budget, "thresholds in any order"),
        Mutant("takes the first of equal thresholds", choices.first_of_equals, "thresholds that do the same"),
        Mutant("takes the last of equal thresholds", choices.last_of_equals, "thresholds that do the same"),
        Mutant("rounds the mean layers", choices.rounds_layers, "just over the budget"),
        Mutant("takes nearly the budget for within it", choices.nearly, "just over the budget"),
        Mutant("skips the first threshold", choices.without_first, "only the first fits"),
        Mutant("skips the last threshold", choices.without_last, "only the last fits"),
        Mutant("skips the lowest threshold", choices.without_lowest, "a threshold of 0"),
        Mutant("takes a threshold of 0 for none", choices.not_0, "a threshold of 0"),
        Mutant("begins with an agreement of a half", choices.above_half, "agreement below a half"),
        Mutant("begins with an agreement of 0", choices.above_0, "no agreement at all"),
        Mutant(
            "begins with the first threshold, as if it agreed at 0",
            choices.instead_of_0,
            "no agreement at all",
        ),
        Mutant("rounds agreements", choices.rounds_agreement, "nearly as good"),
        Mutant("weighs layers against agreement", choices.weighs, "many layers"),
        Mutant(
            "takes all layers for want of a threshold", choices.all_layers_instead, "more than can be saved"
        ),
        Mutant("writes into its input", choices.in_place, NoMutation().name),
    ),
)
