"""Low-rank adapters that work on some tokens only: W x + s · g · B A x, with g 1 inside a block, else 0.

LoRA (Hu et al. 2021, section 4.1) adds to a frozen matrix W (N × K) the product of two thin ones, A (r × K)
and B (N × r). Gated by token (Samragh et al. 2025, gated LoRA), it leaves what the frozen model makes of
finished text untouched: to the bit, not nearly. Masks have embeddings of their own, at ids past the end of
the vocabulary, which no logits can name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.model import Decoder

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
ADAPTED = (("self_attn", ATTENTION_LINEARS), ("mlp", MLP_LINEARS))


class Gate:
    """Which tokens of the pass in progress the adapters of one model work on; None: none of them."""

    def __init__(self):
        self.in_block: Bool[Tensor, "B T"] | None = None


class LowRankLinear(nn.Module):
    """A frozen linear layer and its adapter, which starts as zero: B is, and A is drawn at random.

    Args:
        base: the layer, shared and not copied.
        rank: r, at least 1.
        scale: s, α / r in the paper.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, gate: Gate, generator: torch.Generator):
        super().__init__()
        self.base, self.scale, self.gate = base, scale, gate
        outputs, inputs = base.weight.shape
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        drawn = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        self.lora_A = nn.Parameter(drawn.to(**like))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, **like))

    def forward(self, x: Float[Tensor, "B T K"]) -> Float[Tensor, "B T N"]:
        y = self.base(x)
        if self.gate.in_block is None:
            return y
        change = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        return torch.where(self.gate.in_block[..., None], y + change, y)


class MaskEmbedding(nn.Module):
    """A frozen embedding, and masks as its ids from `vocab_size` on.

    Each of the first places of a block has a mask of its own, so that a token need not find out from
    attention alone how far it is from the text; all places further on share the last one. They start as the
    mean of the vocabulary.
    """

    def __init__(self, base: nn.Embedding, num_masks: int):
        super().__init__()
        self.base = base
        mean = base.weight.detach().float().mean(0).to(base.weight.dtype)
        self.masks = nn.Parameter(mean.repeat(num_masks, 1))

    def forward(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        vocab_size = self.base.num_embeddings
        known = self.base(token_ids.clamp(max=vocab_size - 1))
        mask = F.embedding((token_ids - vocab_size).clamp(min=0), self.masks)
        return torch.where((token_ids >= vocab_size)[..., None], mask, known)


def graft(backbone: Decoder, rank: int, scale: float, num_masks: int, gate: Gate, seed: int) -> Decoder:
    """A decoder of the backbone's own weights, shared, with an adapter on every linear layer and masks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # weights of its own would only be thrown away
        adapted = Decoder(backbone.config, backbone.attention)
    adapted.model.embed_tokens = MaskEmbedding(backbone.model.embed_tokens, num_masks)
    adapted.model.norm, adapted.lm_head = backbone.model.norm, backbone.lm_head
    for ours, theirs in zip(adapted.model.layers, backbone.model.layers, strict=True):
        ours.input_layernorm = theirs.input_layernorm
        ours.post_attention_layernorm = theirs.post_attention_layernorm
        for name in ("q_norm", "k_norm"):
            setattr(ours.self_attn, name, getattr(theirs.self_attn, name))
        for part, names in ADAPTED:
            for name in names:
                base = getattr(getattr(theirs, part), name)
                setattr(getattr(ours, part), name, LowRankLinear(base, rank, scale, gate, generator))
    return adapted.train(backbone.training)


def shapes_of(backbone: Decoder, rank: int, num_masks: int) -> dict[str, tuple[int, ...]]:
    """The tensors that `graft` would add, by name, known before any memory is taken for them."""
    shapes = {"model.embed_tokens.masks": (num_masks, backbone.config.hidden_size)}
    for index, layer in enumerate(backbone.model.layers):
        for part, names in ADAPTED:
            for name in names:
                outputs, inputs = getattr(getattr(layer, part), name).weight.shape
                place = f"model.layers.{index}.{part}.{name}"
                shapes |= {f"{place}.lora_A": (rank, inputs), f"{place}.lora_B": (outputs, rank)}
    return shapes
