"""What a method of the table consists of: a classifier, what it is trained to, and rules to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.classifier.equal_speed import choose_rule
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.taken import Rule
from llmcourse.early_exit.rules import EntropyRule, ExitRule, PatienceRule, entropy

NUM_THRESHOLDS = 100


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        loss: of a classifier, a batch of token rows and their labels.
        trained: the parameters that change.
    """

    loss: Callable[[ExitClassifier, Tensor, Tensor], Tensor]
    trained: Callable[[ExitClassifier], list[nn.Parameter]]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as in names of files and figures.
        title: as in the table.
        build: a classifier, from an encoder that becomes a part of it and the number of classes.
        stages: trainings, one after the other.
        rules: from the logits of all exits on validation data to the rules to choose from; None where
            nothing is chosen: all layers run.
        choose: one of them, or a mixture, for a budget of layers; called as `choose_rule`.
        after: another method whose trained classifier this one starts from, None for a fresh one.
        adopt: takes over what it needs of that: `adopt(own, other)`.
    """

    name: str
    title: str
    build: Callable[[Encoder, int], ExitClassifier]
    stages: tuple[Stage, ...]
    rules: Callable[[Tensor], Sequence[ExitRule]] | None = None
    choose: Callable[..., Rule] = choose_rule
    after: str | None = None
    adopt: Callable[[ExitClassifier, ExitClassifier], None] | None = None


def every_layer(encoder: Encoder) -> tuple[int, ...]:
    """Exits after all layers."""
    return tuple(range(1, encoder.config.num_layers + 1))


def learnable(classifier: nn.Module) -> list[nn.Parameter]:
    """All parameters but the embedding table."""
    return [parameter for parameter in classifier.parameters() if parameter.requires_grad]


def last_exit_loss(
    classifier: ExitClassifier, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the last exit alone."""
    states = classifier.states(tokens)
    return F.cross_entropy(classifier.read(states).float(), labels)


def exit_losses(logits: Float[Tensor, "B E K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " E"]:
    """Cross-entropy of every exit."""
    batch, exits, _ = logits.shape
    repeated = labels[:, None].expand(batch, exits)
    return F.cross_entropy(logits.float().transpose(1, 2), repeated, reduction="none").mean(0)


def weighted_by_depth(losses: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Σ_i i L_i / Σ_i i: later exits have more to say (Kaya et al. 2019; Zhou et al. 2020)."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype, device=losses.device)
    return (weights * losses).sum() / weights.sum()


def entropy_rules(logits: Float[Tensor, "N E K"]) -> list[EntropyRule]:
    """Thresholds between entropies that were seen before the last exit, at their quantiles; and 0.

    Between, for on one of them the text that it came from would leave or stay by a rounding error.

    Raises:
        ValueError: a single exit, where nothing can be chosen.
    """
    require(logits.shape[1] > 1, "exits", "two or more", logits.shape[1], "run all layers")
    seen = entropy(logits[:, :-1]).flatten().double().sort().values
    highest = seen.new_tensor([math.log(max(2, logits.shape[2])) + 0.01])
    edges = torch.cat([seen.new_zeros(1), seen.clamp(min=0), highest])
    between = (edges[1:] + edges[:-1]) / 2
    places = [round(step * (len(between) - 1) / NUM_THRESHOLDS) for step in range(NUM_THRESHOLDS + 1)]
    thresholds = {0.0, *(between[place].item() for place in places)}
    return [EntropyRule(threshold) for threshold in sorted(thresholds)]


def patience_rules(logits: Float[Tensor, "N E K"]) -> list[PatienceRule]:
    """Every patience with which somebody can leave before the last exit, and one that is too long."""
    return [PatienceRule(patience) for patience in range(1, max(2, logits.shape[1]))]
