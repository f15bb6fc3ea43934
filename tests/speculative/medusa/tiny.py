"""Tiny heads: with random weights, so that their guesses are sometimes right and mostly wrong."""

from __future__ import annotations

import torch

from llmcourse.model import Decoder
from llmcourse.speculative.medusa import HeadsConfig, MedusaHeads


def tiny_heads(model: Decoder, num_heads: int = 3, num_blocks: int = 1, seed: int = 0) -> MedusaHeads:
    heads = MedusaHeads(HeadsConfig.for_model(model, num_heads, num_blocks)).to(model.dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in heads.parameters():
        torch.nn.init.normal_(weight, 0, 0.1, generator=generator)
    return heads.eval().requires_grad_(False)
