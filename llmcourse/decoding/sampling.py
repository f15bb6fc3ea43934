"""Choosing a token from logits: the most probable one, or one drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.processors import widen

Randomness = torch.Generator | Sequence[torch.Generator]
WITHOUT_FLOAT64 = ("mps",)


def greedy(logits: Float[Tensor, "*B V"]) -> Int[Tensor, "*B"]:
    """The most probable token of each row, the lowest id where several are."""
    return logits.argmax(-1)


def sample(logits: Float[Tensor, "B V"], generator: Randomness) -> Int[Tensor, " B"]:
    """Draws one token a row from softmax(logits), by inverting the cumulative distribution.

    A token with logit -inf is never drawn. A row takes one uniform number, so a text is reproduced
    by its seed whatever the vocabulary.

    Args:
        generator: one for the whole batch, or one a row: then a row's draws do not depend on what
            it is batched with.
    """
    return pick(in_float64(logits).softmax(-1), uniform(generator, len(logits))).to(logits.device)


def pick(weights: Float[Tensor, "B V"], points: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the running sum of a row's weights passes a share of the whole.

    Uniform shares draw tokens in proportion to their weights, which need not sum to 1; a token of weight
    zero is never drawn. The result is on the CPU where the device of the weights has no float64.

    Args:
        weights: at least 0, and above it somewhere in each row.
        points: one share in [0, 1) a row, on any device.
    """
    weights = in_float64(weights)
    # Zeros, not plateaus, where a weight is zero: no rounding of a parallel sum can select such a token.
    cdf = weights.cumsum(-1).masked_fill_(weights == 0, 0)
    bar = points.to(weights.device) * cdf.amax(-1)
    return (cdf > bar[:, None]).int().argmax(-1)  # the first that lies past the point


def in_float64(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In double precision, on the CPU where it must be: fp32 sums of a large vocabulary round tails away."""
    there = values.cpu() if values.device.type in WITHOUT_FLOAT64 else values
    return there.double()


def uniform(generator: Randomness, num_rows: int) -> Float[Tensor, " B"]:
    """One number in [0, 1) a row, on the generator's device: a seed means the same on any other.

    Raises:
        TypeError: something else than a generator or a list of them.
        ValueError: a list of generators that is not one a row.
    """
    check_generator(generator, num_rows)
    if isinstance(generator, torch.Generator):
        return torch.rand(num_rows, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.cat([uniform(one, 1) for one in generator])


def check_generator(generator: object, num_rows: int) -> None:
    """Refuses what no draw can be made with.

    Raises:
        TypeError: neither a generator nor a list of them.
        ValueError: a list that is not one a row.
    """
    if isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise TypeError(
            f"generator must be a torch.Generator or a list of them, got {generator!r:.40}; "
            "pass torch.Generator().manual_seed(0)"
        )
    remedy = "pass one generator for the whole batch or one a prompt"
    require(len(generator) == num_rows, "generator", f"a list of {num_rows}", len(generator), remedy)


def entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """H(p) = −Σ p_i ln p_i of softmax(logits), in nats; tokens at -inf add nothing (Shannon 1948)."""
    return torch.special.entr(widen(logits).softmax(-1)).sum(-1)
