"""Stand-ins for a model and its tokenizer, small enough to work out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from llmcourse.tokenizer import Tokenizer


class TableSource:
    """A bigram model: the logits after a token are a row of a table; some may be replaced.

    Args:
        table: `(V, V)`.
        replaced: logits to give instead at `(row, step)`, step 0 being the prompts' end.
    """

    def __init__(
        self,
        table: Tensor,
        max_length: int = 1000,
        eos_token_ids: tuple[int, ...] = (),
        replaced: dict[tuple[int, int], Tensor] | None = None,
    ):
        self.table, self.replaced = table, replaced or {}
        self.vocab_size, self.max_length, self.eos_token_ids = len(table), max_length, eos_token_ids
        self.device = table.device

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Tensor:
        self.capacity, self.index = capacity, -1
        return self.step(torch.tensor([prompt[-1] for prompt in prompts]))

    def step(self, tokens: Tensor) -> Tensor:
        self.index += 1
        logits = self.table[tokens]
        for (row, index), values in self.replaced.items():
            if index == self.index and row < len(logits):
                logits[row] = values
        return logits

    def reorder(self, rows: Tensor) -> None:
        pass


def chain(*tokens: int, vocab_size: int) -> Tensor:
    """A table whose greedy text is the given one: each token is followed by the next, the last by itself."""
    table = torch.zeros(vocab_size, vocab_size)
    for token, following in zip(tokens, (*tokens[1:], tokens[-1]), strict=True):
        table[token, following] = 5.0
    return table


class ScriptSource(TableSource):
    """Makes greedy search write given token ids, one list a row, whatever came before."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int, **settings):
        super().__init__(torch.zeros(vocab_size, vocab_size), **settings)
        self.scripts = scripts

    def step(self, tokens: Tensor) -> Tensor:
        logits = super().step(tokens)
        for row, script in enumerate(self.scripts):
            if (row, self.index) not in self.replaced:
                logits[row, script[min(self.index, len(script) - 1)]] = 9.0
        return logits


def byte_tokenizer(folder: Path) -> Tokenizer:
    """One token a byte, so that every Chinese character is cut in three; id 0 is `<|endoftext|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {piece: index + 1 for index, piece in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def random_logits(
    seed: int,
    rows: int,
    vocab_size: int,
    scale: float,
    decimals: int | None,
    masked: float,
    dtype: torch.dtype,
) -> Tensor:
    """Gaussian logits; `decimals` rounds them, which makes ties; a share `masked` of them is -inf."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator, dtype=dtype) * scale
    if decimals is not None:
        logits = logits.round(decimals=decimals)
    hidden = torch.rand(rows, vocab_size, generator=generator) < masked
    hidden[torch.arange(rows), torch.randint(vocab_size, (rows,), generator=generator)] = False
    return logits.masked_fill(hidden, -math.inf)
