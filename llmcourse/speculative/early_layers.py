"""Self-speculation: the target's own first layers, with its own norm and head, draft for all of them.

No second model has to be trained, stored or matched. Zhang et al. 2024 ("Draft & Verify") leave out chosen
layers of the target while drafting; Elhoushi et al. 2024 ("LayerSkip", section 4.3) stop after the first few,
as here, and train the model so that its head reads those too. A head that was not trained for it agrees
less with itself; another one, trained to read those layers, may take its place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.model import Decoder, RMSNorm
from llmcourse.speculative.model_drafter import ModelDrafter, require_decoder


class EarlyLayersDrafter(ModelDrafter):
    """A `ModelDrafter` by a target's first layers: it takes no memory but a cache of those layers.

    What that cache holds is also in the target's. LayerSkip shares it, and verifies with the other layers
    alone; here the target need not know who drafts.

    Args:
        target: the model whose layers are used.
        num_layers: how many, in [1, layers of the target).
        norm, lm_head: instead of the target's own, as in `first_layers`.

    Raises:
        ValueError: more layers than may be, or none.
    """

    def __init__(
        self,
        target: Decoder,
        num_layers: int,
        *,
        norm: RMSNorm | None = None,
        lm_head: nn.Linear | None = None,
    ):
        super().__init__(first_layers(target, num_layers, norm=norm, lm_head=lm_head))


def first_layers(
    model: Decoder, num_layers: int, *, norm: RMSNorm | None = None, lm_head: nn.Linear | None = None
) -> Decoder:
    """A decoder of a model's first layers, its embedding, norm and head: the very same weights, not copies.

    Args:
        norm, lm_head: those of a trained exit, instead of the model's own.

    Raises:
        TypeError: no decoder.
        ValueError: `num_layers` is not in [1, layers of the model), or a norm or head of another shape.
    """
    require_decoder("target", model)
    most = model.config.num_layers - 1
    require_integer(1, "num_layers", num_layers, "draft with one layer or more")
    remedy = "leave layers to verify with; a draft by all of them costs as much as the text"
    require(num_layers <= most, "num_layers", f"at most {most}", num_layers, remedy)
    norm = _of_shape("norm", norm, model.model.norm)
    head = _of_shape("lm_head", lm_head, model.lm_head)
    tied = model.config.tie_word_embeddings and head is model.lm_head
    config = replace(model.config, num_layers=num_layers, tie_word_embeddings=tied)
    with torch.device("meta"):  # weights of its own would only be thrown away
        early = Decoder(config, model.attention)
    early.model.embed_tokens, early.model.norm = model.model.embed_tokens, norm
    early.model.layers = nn.ModuleList(model.model.layers[:num_layers])
    early.lm_head = head
    return early.train(model.training)


def _of_shape(name: str, given: nn.Module | None, own: nn.Module) -> nn.Module:
    """The module that is given, if its weight has the shape of the model's own; that one for None."""
    if given is None:
        return own
    shapes = [tuple(module.weight.shape) for module in (own, given)]
    require(shapes[0] == shapes[1], name, f"of shape {shapes[0]}", shapes[1], "train it on this model")
    return given
