"""The whole encoder, fine-tuned, with one exit after its last layer (Devlin et al. 2019, section 3.2)."""

from __future__ import annotations

from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.classifier.exits import SeparateExits
from llmcourse.early_exit.classifier.methods.method import Method, Stage, last_exit_loss, learnable


def build_full(encoder: Encoder, num_classes: int) -> SeparateExits:
    return SeparateExits(encoder, num_classes, (encoder.config.num_layers,))


FULL = Method("full", "full model", build_full, (Stage(last_exit_loss, learnable),))
