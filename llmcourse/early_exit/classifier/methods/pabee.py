"""PABEE: all exits and layers trained together, left when several exits in a row agree.

The loss is Σ_i i L_i / Σ_i i over the exits' cross-entropies L_i (Zhou et al. 2020). At inference a text
leaves when its answer has stayed the same for `patience` more exits. Where no patience meets a budget of
layers, the table lets some texts be more patient than others by one (`equal_speed.mix_rules`): that is ours,
as is a pooler for each exit.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.early_exit.classifier.equal_speed import mix_rules
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.methods.deebert import build_deebert
from llmcourse.early_exit.classifier.methods.method import (
    Method,
    Stage,
    exit_losses,
    learnable,
    patience_rules,
    weighted_by_depth,
)


def joint_loss(
    classifier: ExitClassifier, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Of all exits, the later the weightier."""
    return weighted_by_depth(exit_losses(classifier(tokens), labels))


PABEE = Method(
    "pabee",
    "PABEE (patience)",
    build_deebert,
    (Stage(joint_loss, learnable),),
    patience_rules,
    choose=mix_rules,
)
