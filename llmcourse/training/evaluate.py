"""Loss on held-out text: nats per token, and bits per character, which no tokenizer changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from llmcourse.model import Decoder


@dataclass(frozen=True)
class HeldOut:
    """One domain's validation tokens, and the characters that they spell (separators not counted).

    Raises:
        ValueError: fewer than two tokens, so that nothing is predicted, or no characters.
    """

    name: str
    tokens: Int[Tensor, " N"]
    num_chars: int

    def __post_init__(self):
        if len(self.tokens) < 2 or self.num_chars < 1:
            raise ValueError(
                f"{self.name!r} must have at least 2 tokens and 1 character to measure a loss on, "
                f"got {len(self.tokens)} and {self.num_chars}; hold out more text"
            )


@dataclass(frozen=True)
class Loss:
    """Mean negative log-likelihood in nats per token, and in bits per character."""

    nats_per_token: float
    bits_per_char: float


@torch.inference_mode()
def evaluate(model: Decoder, held_out: HeldOut, length: int = 1024, batch_size: int = 16) -> Loss:
    """The loss over all held-out tokens but the first, in consecutive windows of `length` targets.

    nats per token = Σ −ln p(token) / tokens;   bits per character = Σ −log2 p(token) / characters

    A window's tokens see those before them in the window alone.
    """
    tokens = held_out.tokens.long()
    total, count = 0.0, 0
    starts = list(range(0, len(tokens) - 1, length))
    full = [s for s in starts if s + length < len(tokens)]
    groups = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    groups += [[s] for s in starts[len(full) :]]
    for group in groups:
        rows = torch.stack([tokens[s : s + length + 1] for s in group])
        logits = model(rows[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
        total, count = total + nats.double().item(), count + rows[:, 1:].numel()
    return Loss(total / count, total / math.log(2) / held_out.num_chars)
