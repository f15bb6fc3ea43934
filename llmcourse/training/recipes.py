"""Shapes and hyperparameters of the embedded family, and how wide each of its parts is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmcourse.model import DecoderConfig
from llmcourse.training.tokenizer import VOCAB_SIZE

SEEDS = (-(2**63), 2**64 - 1)  # that PyTorch takes
MIX = {"prose": 0.55, "poetry": 0.15, "code": 0.30}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Args:
        steps: optimizer steps.
        mix: relative share of every domain in a batch.
        batch_size: sequences a step, over all GPUs.
        sequence_length: tokens a sequence, no more than the model's context.
        matrix_lr: Muon's learning rate, for the matrices inside the layers.
        other_lr: AdamW's, for embeddings and norms.
        warmup: steps of linear warm-up; the rates then fall linearly to zero.

    Raises:
        ValueError: a number out of its range.
    """

    name: str
    model: DecoderConfig
    steps: int
    mix: dict[str, float] = field(default_factory=MIX.copy)
    batch_size: int = 64
    sequence_length: int = 1024
    matrix_lr: float = 0.006
    other_lr: float = 0.006
    weight_decay: float = 0.1
    warmup: int = 200
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise ValueError(
                f"seed must be in [-2^63, 2^64), of 64 bits, got {self.seed}; take a smaller one"
            )
        for name in ("matrix_lr", "other_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"sequence_length must be at most the model's context, "
                f"{self.model.max_position_embeddings}, got {self.sequence_length}"
            )
        if not self.mix:
            raise ValueError("mix must name at least one domain, got none")
        for name, share in self.mix.items():
            if not 0 < share < math.inf:
                raise ValueError(
                    f"the share of {name} must be above 0 and finite, got {share}; or leave its text out"
                )

    def weight(self, domain: str) -> float:
        """A domain's share; one that the mix does not name gets the mean share."""
        return self.mix.get(domain, sum(self.mix.values()) / len(self.mix))

    @property
    def tokens(self) -> int:
        """Tokens seen in the whole run, repeated ones counted each time."""
        return self.steps * self.batch_size * self.sequence_length


def shape(hidden_size: int, num_layers: int, intermediate_size: int, num_heads: int, num_kv_heads: int):
    """A family member: Llama's architecture, tied embeddings, one vocabulary and context."""
    return DecoderConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        eos_token_ids=(0,),
    )


FAMILY = {
    recipe.name: recipe
    for recipe in (
        Recipe("draft", shape(128, 2, 384, 4, 2), steps=10_000, weight_decay=0.2),
        Recipe("small", shape(192, 4, 512, 6, 2), steps=8000, weight_decay=0.2),
        Recipe("base", shape(320, 6, 896, 10, 2), steps=13_000, weight_decay=0.8),
    )
}
