"""DeeBERT: exits put on a model that was fine-tuned without them, left when their entropy is low.

Two stages (Xin et al. 2020). First everything is trained as if there were one exit, the last.
Then all of that is frozen, and the other exits learn to read the states as they are, by the sum of their
losses. The full model stays as good as it was, and its lower layers were never asked to know the answer. At
inference an exit is taken where the entropy of its distribution is below a threshold.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier, SeparateExits
from llmcourse.early_exit.classifier.methods.full import FULL
from llmcourse.early_exit.classifier.methods.method import (
    Method,
    Stage,
    entropy_rules,
    every_layer,
    exit_losses,
)


def build_deebert(encoder: Encoder, num_classes: int) -> SeparateExits:
    return SeparateExits(encoder, num_classes, every_layer(encoder))


def adopt_full(classifier: ExitClassifier, full: ExitClassifier) -> None:
    """The first stage's result: the full model's layers, and its exit as the last."""
    classifier.encoder.load_state_dict(full.encoder.state_dict())
    classifier.poolers[-1].load_state_dict(full.poolers[-1].state_dict())
    classifier.classifiers[-1].load_state_dict(full.classifiers[-1].state_dict())


def inner_exits(classifier: ExitClassifier) -> list[nn.Parameter]:
    """What the second stage trains: all exits but the last."""
    modules = (*classifier.poolers[:-1], *classifier.classifiers[:-1])
    return [parameter for module in modules for parameter in module.parameters()]


def inner_exits_loss(
    classifier: ExitClassifier, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """The sum of the losses of all exits but the last, through layers that get no gradient."""
    x, context = classifier.encoder.start(tokens)
    states = []
    for index, pooler in enumerate(classifier.poolers[:-1]):
        with torch.no_grad():
            x = classifier.encoder.layer(index, x, context)
        states.append(pooler(x))
    logits = [classifier.read(states[:count]) for count in range(1, len(states) + 1)]
    return exit_losses(torch.stack(logits, 1), labels).sum()


DEEBERT = Method(
    "deebert",
    "DeeBERT (entropy)",
    build_deebert,
    (Stage(inner_exits_loss, inner_exits),),
    entropy_rules,
    after=FULL.name,  # the first stage is the full model's training
    adopt=adopt_full,
)
