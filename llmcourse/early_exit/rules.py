"""When a layer is sure enough to answer: three rules over the distributions of the layers so far.

entropy     the distribution of the last layer is narrow (DeeBERT, Xin et al. 2020)
confidence  its likeliest answer is likely enough (a softmax response; CALM, Schuster et al. 2022, section
            3.5, takes how far it is ahead of the second)
patience    its answer has been the likeliest for several layers (PABEE, Zhou et al. 2020)

A rule is pure: it looks at the logits of all layers so far, so that rows of a batch exit one by one. It never
speaks of the last layer of a model, where everything exits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding import sampling
from llmcourse.decoding.errors import require, require_integer, require_number


def entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """H = −Σ p ln p of the softmax, in nats: from 0, where one answer has it all, to ln V."""
    return sampling.entropy(logits.float())


def confidence(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """The largest probability of the softmax: from 1 / V to 1."""
    return logits.float().softmax(-1).amax(-1)


@runtime_checkable
class ExitRule(Protocol):
    """Says after a layer which rows need no further one."""

    def exits(self, history: Sequence[Float[Tensor, "B V"]]) -> Bool[Tensor, " B"]:
        """Whether each row exits here.

        Args:
            history: the logits of every exit so far, this one's last; at least one.

        Raises:
            ValueError: no logits.
        """


@dataclass(frozen=True)
class EntropyRule:
    """Exit below an entropy.

    Attributes:
        threshold: in nats, at least 0; 0 never exits, and above ln V everything does at the first layer.

    Raises:
        ValueError: a threshold that is negative, infinite or no number.
    """

    threshold: int | float

    def __post_init__(self):
        remedy = "use 0 to run all layers; ln V is the entropy of knowing nothing"
        allowed = "at least 0 nats and finite"
        most = sys.float_info.max  # an integer may be beyond, which no entropy can be compared with
        require_number(lambda x: 0 <= x <= most, "threshold", allowed, self.threshold, remedy)

    def __str__(self) -> str:
        return f"entropy below {self.threshold:.2f} nats"

    def exits(self, history: Sequence[Float[Tensor, "B V"]]) -> Bool[Tensor, " B"]:
        return entropy(_last(history)) < self.threshold


@dataclass(frozen=True)
class ConfidenceRule:
    """Exit above a probability of the likeliest answer.

    Attributes:
        threshold: in [0, 1]; 1 never exits, and 0 always does at the first layer.

    Raises:
        ValueError: a threshold that is no probability.
    """

    threshold: int | float

    def __post_init__(self):
        inside = lambda x: 0 <= x <= 1  # noqa: E731
        require_number(inside, "threshold", "in [0, 1]", self.threshold, "use 1 to run all layers")

    def __str__(self) -> str:
        return f"confidence above {self.threshold:.0%}"

    def exits(self, history: Sequence[Float[Tensor, "B V"]]) -> Bool[Tensor, " B"]:
        return confidence(_last(history)) > self.threshold


@dataclass(frozen=True)
class PatienceRule:
    """Exit where the last exits all have one favourite.

    Attributes:
        patience: how often the favourite has been confirmed by a later exit, at least 1: so no row leaves
            before exit `patience` + 1.

    Raises:
        ValueError: a patience that is no integer of at least 1.
    """

    patience: int

    def __post_init__(self):
        require_integer(1, "patience", self.patience, "use more than there are exits to run all layers")

    def __str__(self) -> str:
        return f"patience of {self.patience}"

    def exits(self, history: Sequence[Float[Tensor, "B V"]]) -> Bool[Tensor, " B"]:
        last = _last(history)
        if len(history) <= self.patience:
            return torch.zeros(len(last), dtype=torch.bool, device=last.device)
        favourites = torch.stack([logits.argmax(-1) for logits in history[-self.patience - 1 :]])
        return (favourites == favourites[-1]).all(0)


def _last(history: Sequence[Tensor]) -> Tensor:
    remedy = "ask after the first exit, with its logits"
    require(len(history) > 0, "history", "the logits of at least one exit", "none", remedy)
    return history[-1]
