"""A frozen autoregressive model that also fills blocks of masks: the backbone, and small adapters beside it.

    block of n after the text x_1 … x_t:   input  x_1 … x_t [M M … M],   one pass gives all n distributions
    p(x_{t+1})      the backbone's own, read at x_t, which sees no mask
    p(x_{t+1+j})    read at the j-th token of the block, j = 1 … n − 1, with adapters on

Each token is predicted one place to its left, as the backbone has learnt to (the shift of Gong et al. 2024;
Lin et al. 2024, BiTA, section 3.1, masks on a frozen model). So a block of one needs no mask and no adapter:
it is autoregressive decoding of the backbone, exactly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.blockwise.low_rank import Gate, graft
from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder


@dataclass(frozen=True)
class AdapterConfig:
    """How large the adapters are.

    Attributes:
        rank: r of LoRA, at least 1.
        alpha: the adapters are scaled by alpha / rank.
        num_masks: masks for the first places of a block, at least 1; the last serves all that follow.

    Raises:
        ValueError: a number out of its range.
    """

    rank: int = 16
    alpha: int | float = 32
    num_masks: int = 16

    def __post_init__(self):
        require_integer(1, "rank", self.rank, "use 16")
        finite = lambda a: 0 < a <= sys.float_info.max  # noqa: E731 (an integer may be beyond)
        require_number(finite, "alpha", "above 0 and finite", self.alpha, "use 2 × rank")
        require_integer(1, "num_masks", self.num_masks, "use 1 for the same mask everywhere")


class BlockDecoder(nn.Module):
    """A decoder and its adapters. The backbone's weights are shared, and are not trained.

    Args:
        backbone: its weights stay as they are, and usable by themselves; from here on they take no gradients.
        seed: for the matrices A; before training the adapters do nothing.

    Raises:
        ValueError: adapters of more than the backbone's own rank.
    """

    def __init__(self, backbone: Decoder, config: AdapterConfig | None = None, seed: int = 0):
        super().__init__()
        c, size = config or AdapterConfig(), backbone.config.hidden_size
        remedy = "16 is enough for adapters"
        require(c.rank <= size, "rank", f"at most the hidden size, {size}", c.rank, remedy)
        self.backbone, self.adapter_config = backbone.requires_grad_(False), c
        self._gate = Gate()
        self.adapted = graft(backbone, c.rank, c.alpha / c.rank, c.num_masks, self._gate, seed)

    @property
    def vocab_size(self) -> int:
        return self.backbone.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def mask_ids(self, size: int) -> Int[Tensor, " n"]:
        """The input of a block of which nothing is known."""
        last = self.adapter_config.num_masks - 1
        return self.vocab_size + torch.arange(size, device=self.device).clamp(max=last)

    def adapters(self) -> dict[str, nn.Parameter]:
        """What is trained and stored, by name."""
        return {
            name: p for name, p in self.adapted.named_parameters() if name.endswith(("_A", "_B", "masks"))
        }

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        in_block: Bool[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
        *,
        mask: Bool[Tensor, "B T S"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The last hidden states; see `Decoder.hidden_states`.

        Args:
            token_ids: in [0, V), or masks.
            in_block: the tokens on which adapters work; None: the pass is the backbone's own.
        """
        if in_block is None:
            return self.backbone.hidden_states(token_ids, cache, mask=mask, positions=positions)
        self._gate.in_block = in_block
        try:
            return self.adapted.hidden_states(token_ids, cache, mask=mask, positions=positions)
        finally:
            self._gate.in_block = None

    def logits(self, hidden: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape V"]:
        return self.backbone.lm_head(hidden)
