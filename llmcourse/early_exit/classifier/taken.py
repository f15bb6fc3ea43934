"""Which exit a rule takes, of logits that are there already: no layer runs, for many texts at once.

Texts may be given one of two rules (`MixedRule`). For decoders, whose logits are too many to keep, `leaving`
tells the same from what is left of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require_number
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
