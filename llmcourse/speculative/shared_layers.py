"""Verification that begins where drafting ended: the first layers are not run twice.

    drafting    x_k of the text's last token and of the drafts, by layers 1 … k; their keys and values
    verifying   x_L of the same tokens, by layers k + 1 … L in one pass, from the x_k that were kept

What an `EarlyLayersDrafter` reads lies in the first k layers of the target's own cache (Elhoushi et al. 2024,
"LayerSkip", section 4.3: one cache for both, and the exit's hidden states kept for verification).

What is saved are the first k layers of a pass over γ + 1 tokens, and the drafter's cache. But the last draft,
which nothing was drafted from, has then to pass these layers alone. Where a pass takes as long as reading its
weights, that costs what was saved, and all that is left is memory; where a pass over several tokens takes
longer than over one, as on a CPU or for many texts at once, it is k layers times the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.speculative.early_layers import EarlyLayersDrafter
from llmcourse.speculative.target import CachedTarget


class SharedLayersTarget(CachedTarget):
    """The whole model behind a drafter that is its first layers; each serves only the other.

    Both serve one stream at a time: an older one is refused as soon as a newer has begun.

        generate(SharedLayersTarget(drafter), prompts, drafter=drafter)

    Args:
        drafter: made with `shared=True`.

    Raises:
        TypeError: no `EarlyLayersDrafter`.
        ValueError: one that keeps a cache of its own.
    """

    def __init__(self, drafter: EarlyLayersDrafter):
        if not isinstance(drafter, EarlyLayersDrafter):
            remedy = "pass one that is made of the target's first layers"
            raise TypeError(f"drafter must be an EarlyLayersDrafter, got {type(drafter).__name__}; {remedy}")
        require(
            drafter.shared,
            "drafter",
            "one that shares its cache",
            "its own cache",
            "make it with shared=True",
        )
        super().__init__(drafter.target)
        self.drafter = drafter
        self.cache = None  # until prompts are read

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        logits = super().start(prompts, capacity)
        self.drafter.share(self.cache, prompts)
        return logits

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        x = self.drafter.read_on(tokens, self.cache)
        _, context = self.model.begin(tokens, self.cache)
        layers = self.model.model.layers
        for index in range(len(self.drafter.model.model.layers), len(layers)):
            x = layers[index](x, index, context)
        return self.model.lm_head(self.model.model.norm(x))
