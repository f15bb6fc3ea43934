"""What the cases about early exit are drawn from: logits with a given favourite, and with a given entropy."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises import inputs

HALVINGS = 40  # of the range in which a scale is looked for


def favouring(rng: random.Random, vocab: int, favourite: int) -> list[float]:
    """Logits with their peak at one token."""
    low = rng.choice([token for token in range(vocab) if token != favourite])
    return inputs.placed(rng, inputs.falling(rng, vocab), favourite, low)


def of_entropy(rng: random.Random, vocab: int, favourite: int, nats: float) -> Float[Tensor, " V"]:
    """Logits with their peak at a token, and with this entropy, but for rounding.

    Args:
        nats: above 0, and less than the logarithm of `vocab`.
    """
    logits = favouring(rng, vocab, favourite)
    low, high = 0.0, 1000.0
    for _ in range(HALVINGS):
        scale = (low + high) / 2
        low, high = (scale, high) if entropy([scale * x for x in logits]) > nats else (low, scale)
    shift = rng.uniform(-2.0, 2.0)  # which says nothing: a softmax does not see it
    return torch.tensor([low * x + shift for x in logits], dtype=torch.float32)


def with_tail(rng: random.Random, vocab: int, favourite: int, nats: float) -> Float[Tensor, " V"]:
    """The same, where all tokens but the favourite are about as likely: much of the entropy is theirs."""
    logits = [rng.uniform(-0.3, 0.3) for _ in range(vocab)]
    low, high = 0.4, 100.0
    for _ in range(HALVINGS):
        logits[favourite] = (low + high) / 2
        low, high = (logits[favourite], high) if entropy(logits) > nats else (low, logits[favourite])
    return torch.tensor(logits, dtype=torch.float32)


def entropy(logits: Sequence[float]) -> float:
    """In nats, of the softmax."""
    peak = max(logits)
    weights = [math.exp(x - peak) for x in logits]
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)
