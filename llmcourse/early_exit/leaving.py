"""Where a rule leaves, told from what every exit has said: a threshold moves without another pass.

A token leaves at the first exit that lets it go, else after the last layer. `heat_map.heat` asks the rule
itself, exit by exit, and is the slow truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.early_exit.heat_map import Heat
from llmcourse.early_exit.readings import Readings
from llmcourse.early_exit.rules import ConfidenceRule, EntropyRule, ExitRule, PatienceRule


def exit_layers(readings: Readings, rule: ExitRule) -> Int[Tensor, " N"]:
    """After how many layers each position leaves.

    Raises:
        TypeError: a rule other than the three of `rules`, which may look at more than was read.
    """
    return torch.tensor(readings.layers)[exit_numbers(readings, rule)]


def exit_numbers(readings: Readings, rule: ExitRule) -> Int[Tensor, " N"]:
    """At which of the exits, numbered from 0, each position leaves; raises as `exit_layers`."""
    goes = _lets_go(readings, rule)
    always = torch.ones_like(goes[:1])  # the last layer
    return torch.cat((goes, always)).int().argmax(0)


def heat_of(readings: Readings, token_ids: Sequence[int], rule: ExitRule) -> Heat:
    """The map of one text that was read.

    Args:
        token_ids: of the text, without its last token, after which nothing was read.

    Raises:
        TypeError: as `exit_layers`.
        ValueError: not one token for each position.
    """
    positions = readings.favourites.shape[1]
    remedy = "give the tokens of the one text that was read, without its last"
    require(len(token_ids) == positions, "token_ids", f"of {positions} tokens", len(token_ids), remedy)
    left = tuple(exit_layers(readings, rule).tolist())
    return Heat(tuple(token_ids), readings.layers, readings.entropy, readings.favourites, left)


def _lets_go(readings: Readings, rule: ExitRule) -> Bool[Tensor, "E N"]:
    """What the rule says at each exit but the last."""
    if isinstance(rule, EntropyRule):
        return readings.entropy[:-1] < rule.threshold
    if isinstance(rule, ConfidenceRule):
        return readings.confidence[:-1] > rule.threshold
    if not isinstance(rule, PatienceRule):
        raise TypeError(
            f"rule must be an EntropyRule, a ConfidenceRule or a PatienceRule, got {type(rule).__name__}; "
            "use heat, which asks any rule"
        )
    favourites, patience = readings.favourites[:-1], rule.patience
    goes = torch.zeros_like(favourites, dtype=torch.bool)
    for number in range(patience, len(favourites)):
        goes[number] = (favourites[number - patience : number + 1] == favourites[number]).all(0)
    return goes
