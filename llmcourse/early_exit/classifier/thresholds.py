"""Which exit a rule would take, of logits that are there already; and the rule that fits a budget.

Entropies fit every budget closely; patience comes in whole steps, and one more may be layers away. So that
all methods are compared at one speed, some texts may get one patience and the others the next (`MixedRule`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.rules import ExitRule


@dataclass(frozen=True)
class MixedRule:
    """One of two rules for each text, drawn by the text's number alone.

    Attributes:
        quick, slow: the rules.
        share: of the texts that get the slow one, in [0, 1].
        seed: of the draw.

    Raises:
        ValueError: a share out of its range.
    """

    quick: ExitRule
    slow: ExitRule
    share: int | float
    seed: int = 0

    def __post_init__(self):
        inside = lambda share: 0 <= share <= 1  # noqa: E731
        require_number(inside, "share", "in [0, 1]", self.share, "0 gives all texts the quick rule")

    def of(self, number: int) -> ExitRule:
        """The rule of a text, by its place among the texts of its side."""
        return self.slow if drawn(self.seed, number) < self.share else self.quick


Rule = ExitRule | MixedRule


def drawn(seed: int, number: int) -> float:
    """Uniform in [0, 1), the same one for the same text."""
    return random.Random(f"{seed} {number}").random()


def rule_of(rule: Rule | None, number: int) -> ExitRule | None:
    """What a classifier asks about one text.

    Args:
        number: the text's place among those of its side.
    """
    return rule.of(number) if isinstance(rule, MixedRule) else rule


def exits_taken(logits: Float[Tensor, "N E K"], rule: Rule | None) -> Int[Tensor, " N"]:
    """The exit of each text, counted from 0: the first one where the rule says so, or the last.

    What `ExitClassifier.answer` finds by running the layers, for many texts at once.

    Args:
        rule: None for the last.
    """
    if isinstance(rule, MixedRule):
        slow = torch.tensor([rule.of(number) is rule.slow for number in range(len(logits))])
        both = (exits_taken(logits, one) for one in (rule.slow, rule.quick))
        return torch.where(slow.to(logits.device), *both)
    count = logits.shape[1]
    taken = torch.full((len(logits),), count - 1, device=logits.device)
    if rule is None:
        return taken
    history = list(logits.unbind(1))
    for place in reversed(range(count - 1)):
        taken[rule.exits(history[: place + 1])] = place
    return taken


def mean_layers(taken: Int[Tensor, " N"], exits: Sequence[int]) -> float:
    """Layers that run, on average."""
    return torch.tensor(exits, dtype=torch.float64)[taken.cpu()].mean().item()


def choose_rule(
    rules: Sequence[ExitRule], logits: Float[Tensor, "N E K"], exits: Sequence[int], layers: int | float
) -> ExitRule:
    """The rule whose mean number of layers is nearest to a budget; the stricter one of two.

    Args:
        rules: to choose from, at least one.
        logits: of validation data; never of the test's.
        exits: after which layers they are.
        layers: the budget, from 1 to the last exit's.

    Raises:
        ValueError: no rules, or a budget out of its range.
    """
    means = _means(rules, logits, exits, layers)
    distances = [(abs(mean - layers), -mean) for mean in means]
    return rules[distances.index(min(distances))]


def mix_rules(
    rules: Sequence[ExitRule],
    logits: Float[Tensor, "N E K"],
    exits: Sequence[int],
    layers: int | float,
    *,
    seed: int = 0,
) -> Rule:
    """The two rules next to a budget, mixed so that the mean meets it but for the layers of one text.

    Args:
        rules, logits, exits, layers: as in `choose_rule`.
        seed: of which text gets which.

    Returns:
        a single rule where one meets the budget, or all of them lie on one side of it.

    Raises:
        ValueError: as `choose_rule`.
    """
    means = _means(rules, logits, exits, layers)
    below = [place for place, mean in enumerate(means) if mean < layers]
    above = [place for place, mean in enumerate(means) if mean > layers]
    if not below or not above or len(below) + len(above) < len(rules):
        return choose_rule(rules, logits, exits, layers)
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


def _means(
    rules: Sequence[ExitRule], logits: Tensor, exits: Sequence[int], layers: int | float
) -> list[float]:
    """Layers of each rule, after the arguments were checked."""
    require(len(rules) > 0, "rules", "one or more", 0, "give thresholds to choose from")
    inside = lambda number: 1 <= number <= exits[-1]  # noqa: E731
    require_number(inside, "layers", f"in [1, {exits[-1]}]", layers, "half of them is 2x")
    return [mean_layers(exits_taken(logits, rule), exits) for rule in rules]
