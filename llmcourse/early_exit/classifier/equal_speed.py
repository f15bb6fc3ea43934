"""The rule that brings a method to a given speed, so that all methods are compared at one.

Entropies fit every budget of layers closely; patience comes in whole steps, and one more may be layers away.
So some texts may get one patience and the others the next (`taken.MixedRule`). How good the answers are plays
no part here; `early_exit.threshold` weighs that against layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.classifier.taken import MixedRule, Rule, drawn, exits_taken, mean_layers
from llmcourse.early_exit.rules import ExitRule


def layers_of(rules: Sequence[ExitRule], logits: Float[Tensor, "N E K"], exits: Sequence[int]) -> list[float]:
    """The mean number of layers that each rule runs; as in `choose_rule`."""
    return [mean_layers(exits_taken(logits, rule), exits) for rule in rules]


def choose_rule(
    rules: Sequence[ExitRule],
    logits: Float[Tensor, "N E K"],
    exits: Sequence[int],
    layers: int | float,
    *,
    means: Sequence[float] | None = None,
) -> ExitRule:
    """The rule whose mean number of layers is nearest to a budget; the stricter one of two.

    Args:
        rules: to choose from, at least one.
        logits: of validation data; never of the test's.
        exits: after which layers they are.
        layers: the budget, from 1 to the last exit's.
        means: `layers_of` these rules, where several budgets are asked for; None finds them.

    Raises:
        ValueError: no rules, or a budget out of its range.
    """
    _check(rules, exits, layers)
    means = layers_of(rules, logits, exits) if means is None else means
    distances = [(abs(mean - layers), -mean) for mean in means]
    return rules[distances.index(min(distances))]


def mix_rules(
    rules: Sequence[ExitRule],
    logits: Float[Tensor, "N E K"],
    exits: Sequence[int],
    layers: int | float,
    *,
    means: Sequence[float] | None = None,
    seed: int = 0,
) -> Rule:
    """The two rules next to a budget, mixed so that the mean meets it but for the layers of one text.

    Args:
        rules, logits, exits, layers, means: as in `choose_rule`.
        seed: of which text gets which.

    Returns:
        a single rule where one meets the budget, or all of them lie on one side of it.

    Raises:
        ValueError: as `choose_rule`.
    """
    _check(rules, exits, layers)
    means = layers_of(rules, logits, exits) if means is None else means
    below = [place for place, mean in enumerate(means) if mean < layers]
    above = [place for place, mean in enumerate(means) if mean > layers]
    if not below or not above or len(below) + len(above) < len(rules):
        return choose_rule(rules, logits, exits, layers, means=means)
    quick = rules[max(below, key=means.__getitem__)]
    slow = rules[min(above, key=means.__getitem__)]
    after = torch.tensor(exits, dtype=torch.float64)
    ran = {rule: after[exits_taken(logits, rule).cpu()] for rule in (quick, slow)}
    draws = torch.tensor([drawn(seed, number) for number in range(len(logits))], dtype=torch.float64)
    ascending, order = draws.sort()
    added = torch.cat([torch.zeros(1, dtype=torch.float64), (ran[slow] - ran[quick])[order].cumsum(0)])
    off = ran[quick].sum() + added - layers * len(logits)  # by how many of the texts get the slow one
    count = int(off.abs().argmin())
    edges = torch.cat([ascending.new_zeros(1), ascending, ascending.new_ones(1)])
    return MixedRule(quick, slow, (edges[count] + edges[count + 1]).item() / 2, seed)


def _check(rules: Sequence[ExitRule], exits: Sequence[int], layers: int | float) -> None:
    require(len(rules) > 0, "rules", "one or more", 0, "give thresholds to choose from")
    inside = lambda number: 1 <= number <= exits[-1]  # noqa: E731
    require_number(inside, "layers", f"in [1, {exits[-1]}]", layers, "half of them is 2x")
