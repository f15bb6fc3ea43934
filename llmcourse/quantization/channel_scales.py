"""Channels between two layers may be scaled at will: what is divided in one is multiplied in the next.

    y = f(x / s) (s W)ᵀ = f(x) Wᵀ

wherever what writes the channels does so linearly: the gain of a norm, or the rows of a matrix. The function
of the model stays what it is; what changes is which numbers are large, and so what rounding does to it. AWQ
and SmoothQuant choose s so that rounding harms less, a study of outliers so that it harms more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmcourse.model import Decoder, DecoderLayer, RMSNorm
from llmcourse.quantization.calibration import InputStatistics


@dataclass(frozen=True)
class Site:
    """Channels that one module writes and linear layers read.

    Attributes:
        source: whose gain, or whose rows and bias, write them.
        readers: all layers that read them, by name.
        repeats: how many channels of the readers are one of the source: those of all query heads that share
            a head of values.
        run: neighbouring channels that are repeated together, a head; all of them where nothing repeats.
    """

    source: RMSNorm | nn.Linear
    readers: dict[str, nn.Linear]
    repeats: int
    run: int

    @property
    def of_norm(self) -> bool:
        return isinstance(self.source, RMSNorm)

    def spread(self, scale: Float[Tensor, " C"]) -> Float[Tensor, " K"]:
        """For each channel that is read, the scale of the one that is written."""
        return scale.view(-1, 1, self.run).expand(-1, self.repeats, -1).reshape(-1)

    def mean(self, read: Float[Tensor, " K"]) -> Float[Tensor, " C"]:
        """Over the readers' channels that are one of the source."""
        return read.view(-1, self.repeats, self.run).mean(1).reshape(-1)

    def largest(self, read: Float[Tensor, " K"]) -> Float[Tensor, " C"]:
        """As `mean`, the largest."""
        return read.view(-1, self.repeats, self.run).amax(1).reshape(-1)

    @torch.no_grad()
    def divide(self, scale: Float[Tensor, " C"]) -> None:
        """Divides what is written by the scale, and multiplies the weights that read it by it.

        Raises:
            ValueError: a scale that is not positive and finite.
        """
        if not ((scale > 0) & scale.isfinite()).all():
            raise ValueError(
                f"scale must be positive and finite for every channel, got {scale.min().item():g} to "
                f"{scale.max().item():g}; use 1 for channels that stay"
            )
        for part in self.source.parameters():
            shape = scale.view(-1, *(1 for _ in part.shape[1:]))
            part.data.copy_(part.data.to(scale.dtype) / shape)
        read = self.spread(scale)
        for reader in self.readers.values():
            reader.weight.data.copy_(reader.weight.data.to(scale.dtype) * read)


def sites(model: Decoder) -> list[Site]:
    """Four in every layer, in the model's order: before q, k and v, before o, before gate and up, and before
    down.

    The output matrix has none: the embedding is tied to it, or other numbers read the last norm.

    Raises:
        ValueError: a layer that is not of 16 bits or more any longer.
    """
    return [
        site
        for index, layer in enumerate(model.model.layers)
        for site in _sites_of(f"model.layers.{index}", layer)
    ]


def _sites_of(name: str, layer: DecoderLayer) -> list[Site]:
    attention, mlp = layer.self_attn, layer.mlp
    named = {f"{name}.{key}": module for key, module in layer.named_modules() if key.endswith("_proj")}
    for key, module in named.items():
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"{key} must be a linear layer of 16 bits or more to be scaled, got {type(module).__name__}; "
                "scale channels before quantizing"
            )

    def readers(*keys: str) -> dict[str, nn.Linear]:
        return {key: named[key] for key in (f"{name}.{part}" for part in keys)}

    hidden, inner, head = (
        attention.q_proj.in_features,
        mlp.down_proj.in_features,
        attention.head_dim,
    )
    group = attention.o_proj.in_features // attention.v_proj.out_features
    qkv = readers("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return [
        Site(layer.input_layernorm, qkv, 1, hidden),
        Site(attention.v_proj, readers("self_attn.o_proj"), group, head),
        Site(layer.post_attention_layernorm, readers("mlp.gate_proj", "mlp.up_proj"), 1, hidden),
        Site(mlp.up_proj, readers("mlp.down_proj"), 1, inner),
    ]


def site_of(found: Sequence[Site], inputs: InputStatistics) -> Site | None:
    """The one whose readers these statistics are of."""
    return next((site for site in found if inputs.names[0] in site.readers), None)
