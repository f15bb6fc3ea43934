"""What the cases about a cache are drawn from: buffers, heads, and lengths that differ from row to row."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.rules import LIBRARIES, Forbid

# The course's own cache and attention are the answer to these exercises, and so is PyTorch's attention.
OWN_WORK = Forbid(
    operations=("scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention_math"),
    names=(
        *LIBRARIES,
        *("kv_cache", "KVCache", "attention_reference", "sdpa"),
        *("scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward"),
    ),
)


def normal(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, ...]:
    """Numbers around 0, no two alike."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(48)), dtype=dtype)


def ragged(rng: random.Random, rows: int, shortest: int, longest: int) -> Int[Tensor, " B"]:
    """Lengths of which no two are equal; neither the first row nor the last is the longest."""
    lengths = rng.sample(range(shortest, longest + 1), rows)
    largest, inside = lengths.index(max(lengths)), rng.randrange(1, rows - 1)
    lengths[largest], lengths[inside] = lengths[inside], lengths[largest]
    return torch.tensor(lengths)
