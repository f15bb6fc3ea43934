"""Tiny models for speculation: a target, a drafter that often agrees with it, and a table of logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from llmcourse.decoding import History
from llmcourse.decoding.processors import Processor
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative import Draft, UncachedTarget
from tests.decoding.table_source import TableLogits

VOCAB, CONTEXT = 40, 32
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 14, 15, 14]]


def tiny_decoder(
    seed: int = 0, vocab_size: int = VOCAB, num_layers: int = 2, context: int = CONTEXT
) -> Decoder:
    """Random weights, large enough to keep logits well apart."""
    config = DecoderConfig(vocab_size, 32, 48, num_layers, 4, 2, 8, context)
    model = Decoder(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(0, 0.25, generator=generator)
    return model


def near(model: Decoder, noise: float = 0.02, seed: int = 1) -> Decoder:
    """A copy with other weights, not very much so: it agrees with the model most of the time."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight += noise * torch.randn(weight.shape, generator=generator)
    return other


class TableTarget(TableLogits):
    """A target whose logits are a function of the text."""

    read, rollback = UncachedTarget.read, UncachedTarget.rollback


class ScriptDrafter:
    """Proposes what it is told for each row, step after step, and keeps what became of it.

    Args:
        q: of all drafts, or None for certain ones.
    """

    def __init__(self, vocab_size: int, *steps: Sequence[Sequence[int]], q: Tensor | None = None):
        self.vocab_size, self.steps, self.q, self.accepted, self.asked = vocab_size, list(steps), q, [], []

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.capacity = capacity

    def draft(
        self,
        history: History,
        num_drafts: Sequence[int],
        processors: Sequence[Processor] = (),
        generator: object = None,
    ) -> Draft:
        self.asked.append(list(num_drafts))
        rows = self.steps.pop(0) if self.steps else [[] for _ in num_drafts]
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
        q = None if self.q is None else self.q.expand(len(rows), width, -1)
        return Draft(tokens, torch.tensor([len(row) for row in rows]), q)

    def accept(self, num_accepted: Sequence[int]) -> None:
        self.accepted.append(list(num_accepted))
