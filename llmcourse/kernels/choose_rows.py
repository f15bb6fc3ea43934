"""Choosing a token for each of many requests, each with a temperature and a seed of its own.

As `tokens.choose` does, by the Gumbel-max trick, argmax of logits / temperature + g, but for requests that
share nothing but the step: the noise g of a request comes from its seed and the position alone, so that its
answer is the same whatever it is batched with.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve

BROKEN = -1  # in place of a token: the row holds NaN or +inf, or -inf throughout


def choose_rows_reference(
    logits: Float[Tensor, "B V"],
    temperatures: Float[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
) -> Int[Tensor, " B"]:
    """What `choose_rows` chooses, row by row; its noise is another."""
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    settings = zip(temperatures.tolist(), seeds.tolist(), positions.tolist(), strict=True)
    for row, (temperature, seed, position) in enumerate(settings):
        scores = logits[row].to(torch.promote_types(logits.dtype, torch.float32))
        if temperature > 0:
            generator = torch.Generator(logits.device).manual_seed(hash((seed, position)))
            noise = torch.empty_like(scores).exponential_(generator=generator)
            scores = scores / temperature - noise.log()  # −log of an exponential draw is Gumbel's
        peak, token = scores.max(0)  # NaN if the row holds one
        tokens[row] = token if -math.inf < peak < math.inf else BROKEN
    return tokens


def choose_rows(
    logits: Float[Tensor, "B V"],
    temperatures: Float[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
    *,
    backend: Backend = "auto",
) -> Int[Tensor, " B"]:
    """The next token of each row: the likeliest where its temperature is 0, otherwise drawn from the softmax.

    A row that leaves nothing to choose from, or no telling what, gets `BROKEN`; the others are not concerned.

    Args:
        temperatures: in fp32, each at least 0.
        seeds, positions: what the noise of a row depends on.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("logits", logits, "B", "V")
    check_memory("logits", logits, logits)
    for name, given, dtype in (
        ("temperatures", temperatures, torch.float32),
        ("seeds", seeds, torch.long),
        ("positions", positions, torch.long),
    ):
        check_tensor(name, given, (len(logits),), logits, "pass one for each row", dtype=dtype)
    if resolve(backend, logits.device, logits.dtype) == "reference":
        return choose_rows_reference(logits, temperatures, seeds, positions)
    from llmcourse.kernels.choose_rows_triton import launch

    return launch(logits, temperatures, seeds, positions)
