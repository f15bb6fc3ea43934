"""Self-speculation: the target's own first layers, with its own norm and head, draft for all of them.

No second model has to be trained, stored or matched. Zhang et al. 2024 ("Draft & Verify") leave out chosen
layers of the target while drafting; Elhoushi et al. 2024 ("LayerSkip", section 4.3) stop after the first few,
as here, and train the model so that its head reads those too. A head that was not trained for it agrees
less with itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.model import Decoder
from llmcourse.speculative.model_drafter import ModelDrafter, require_decoder


class EarlyLayersDrafter(ModelDrafter):
    """A `ModelDrafter` by a target's first layers: it takes no memory but a cache of those layers.

    What that cache holds is also in the target's. LayerSkip shares it, and verifies with the other layers
    alone; here the target need not know who drafts.

    Args:
        target: the model whose layers are used.
        num_layers: how many, in [1, layers of the target).

    Raises:
        ValueError: more layers than may be, or none.
    """

    def __init__(self, target: Decoder, num_layers: int):
        super().__init__(first_layers(target, num_layers))


def first_layers(model: Decoder, num_layers: int) -> Decoder:
    """A decoder of a model's first layers, its embedding, norm and head: the very same weights, not copies.

    Raises:
        TypeError: no decoder.
        ValueError: `num_layers` is not in [1, layers of the model).
    """
    require_decoder("target", model)
    most = model.config.num_layers - 1
    require_integer(1, "num_layers", num_layers, "draft with one layer or more")
    remedy = "leave layers to verify with; a draft by all of them costs as much as the text"
    require(num_layers <= most, "num_layers", f"at most {most}", num_layers, remedy)
    with torch.device("meta"):  # weights of its own would only be thrown away
        early = Decoder(replace(model.config, num_layers=num_layers), model.attention)
    early.model.embed_tokens, early.model.norm = model.model.embed_tokens, model.model.norm
    early.model.layers = nn.ModuleList(model.model.layers[:num_layers])
    early.lm_head = model.lm_head
    return early.train(model.training)
