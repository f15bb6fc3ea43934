"""A decoder of four layers with exits that are not what they were when made."""

from __future__ import annotations

import torch

from llmcourse.early_exit import ExitHeads
from llmcourse.model import Decoder
from tests.speculative.tiny import tiny_decoder

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [10], [11, 12, 13], [14, 15, 14, 15, 14]]


def random_heads(model: Decoder | None = None, noise: float = 0.1, seed: int = 5) -> ExitHeads:
    heads = ExitHeads(tiny_decoder(num_layers=4) if model is None else model).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for weight in heads.parameters():
        weight += noise * torch.randn(weight.shape, generator=generator)
    return heads
