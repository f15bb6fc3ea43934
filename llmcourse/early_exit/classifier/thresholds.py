"""Which exit a rule would take, of logits that are there already; and the rule that fits a budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.rules import ExitRule


def exits_taken(logits: Float[Tensor, "N E K"], rule: ExitRule | None) -> Int[Tensor, " N"]:
    """The exit of each text, counted from 0: the first one where the rule says so, or the last.

    What `ExitClassifier.answer` finds by running the layers, for many texts at once.

    Args:
        rule: None for the last.
    """
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
    require(len(rules) > 0, "rules", "one or more", 0, "give thresholds to choose from")
    inside = lambda number: 1 <= number <= exits[-1]  # noqa: E731
    require_number(inside, "layers", f"in [1, {exits[-1]}]", layers, "half of them is 2x")
    distances = []
    for rule in rules:
        mean = mean_layers(exits_taken(logits, rule), exits)
        distances.append((abs(mean - layers), -mean))
    return rules[distances.index(min(distances))]
