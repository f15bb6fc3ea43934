"""A source of logits that is a function of the text: for tests that know every probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class TableLogits:
    """Logits of a text's next token from `next_logits(text)`, the text as a tuple of ids."""

    def __init__(
        self,
        vocab_size: int,
        next_logits: Callable[[tuple[int, ...]], Sequence[float]],
        eos_token_ids: tuple[int, ...] = (),
        max_length: int = 64,
    ):
        self.vocab_size, self.max_length, self.eos_token_ids = vocab_size, max_length, eos_token_ids
        self.device = torch.device("cpu")
        self.next_logits = next_logits
        self.num_steps = 0

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Tensor:
        self.texts = [list(prompt) for prompt in prompts]
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        self.num_steps += 1
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        return self._logits()

    def reorder(self, rows: Tensor) -> None:
        self.texts = [list(self.texts[row]) for row in rows.tolist()]

    def _logits(self) -> Tensor:
        return torch.stack([torch.as_tensor(self.next_logits(tuple(text))) for text in self.texts])
