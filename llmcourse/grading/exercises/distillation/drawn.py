"""What the cases about distillation are drawn from: logits that are far apart, and results by design."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import LIBRARIES, Forbid

# The course's own is the answer to these exercises; grading holds references, and figures pass others on.
OWN_PARTS = ("distillation", "kernels", "grading", "figures")
OTHERS = ("torchmetrics", "trl", "liger_kernel", "statsmodels")
OWN_WORK = Forbid(names=(*LIBRARIES, *OTHERS), parts=OWN_PARTS)
SURE = 140.0  # so far ahead is a logit of which the others' probabilities are 0 in float32


def logits(rng: random.Random, rows: int, vocab: int, spread: float = 2.0) -> Float[Tensor, "rows vocab"]:
    """Normal logits, no row like another, and none of them near uniform."""
    return spread * normal(rng, rows, vocab)


def sure(rng: random.Random, rows: int, vocab: int, lead: float = SURE) -> Float[Tensor, "rows vocab"]:
    """Logits with one token of each row so far ahead that float32 has 0 for all the others."""
    drawn = logits(rng, rows, vocab)
    drawn[range(rows), [rng.randrange(vocab) for _ in range(rows)]] += lead
    return drawn


def far_apart(rng: random.Random, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """The same with rows so high and so low that what is taken away from one is no help to another.

    A softmax does not see how high a row is; exp of one above 88 is infinite, and of one below -104 it is 0.
    """
    first = rng.choice((-1, 1))
    heights = [first * (-1) ** row * rng.uniform(200, 300) for row in range(len(logits))]
    return logits + torch.tensor(heights)[:, None]


def gains(rng: random.Random, sizes: Sequence[float], seeds: int) -> Float[Tensor, "domains seeds"]:
    """Differences of paired seeds whose mean is so many of their own standard errors, for each domain."""
    noise = normal(rng, len(sizes), seeds, dtype=torch.float64)
    noise = noise - noise.mean(1, keepdim=True)
    unit = noise / (noise.std(1, keepdim=True) / seeds**0.5)
    errors = torch.tensor([rng.uniform(0.002, 0.006) for _ in sizes], dtype=torch.float64)[:, None]
    return errors * (unit + torch.tensor(sizes, dtype=torch.float64)[:, None])
