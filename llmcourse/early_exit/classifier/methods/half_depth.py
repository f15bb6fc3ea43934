"""The first half of the layers of the pre-trained encoder, fine-tuned as if there were no others.

The baseline "BERT-6L" of Zhou et al. 2020 (section 4.2) and Liao et al. 2021: twice as fast for every
text, the easy and the hard ones.
"""

from __future__ import annotations

from dataclasses import replace

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.classifier.exits import SeparateExits
from llmcourse.early_exit.classifier.methods.full import build_full
from llmcourse.early_exit.classifier.methods.method import Method, Stage, last_exit_loss, learnable


def first_half(encoder: Encoder) -> Encoder:
    """A copy of the first layers of an encoder, half of them.

    Raises:
        ValueError: an odd number of layers.
    """
    depth = encoder.config.num_layers
    require(depth % 2 == 0, "num_layers", "even", depth, "an odd number has no half")
    half = Encoder(replace(encoder.config, num_layers=depth // 2), encoder.embed_tokens.weight)
    kept = half.state_dict()
    half.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if name in kept})
    return half.to(encoder.device)


def build_half(encoder: Encoder, num_classes: int) -> SeparateExits:
    return build_full(first_half(encoder), num_classes)


HALF_DEPTH = Method("half_depth", "half the layers", build_half, (Stage(last_exit_loss, learnable),))
