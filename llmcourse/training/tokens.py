"""Documents to token arrays, and arrays to batches in an order that a step number determines.

Every epoch cuts a domain's tokens into windows at a new random offset and visits each window
once, in a new order; every fourth is moved on to where a document begins, as a prompt does.
Which window comes at which step depends on the seed alone, so a resumed
run, or one on several GPUs, sees the same text as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

ALIGN_EVERY = 4  # windows: one of so many begins with a document, which prompts always do


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str], separator: int, name: str) -> np.ndarray:
    """All documents as one uint16 array, each followed by the separator."""
    pieces = []
    chunk = 512
    for start in tqdm(range(0, len(documents), chunk), desc=f"encode {name}", unit_scale=chunk, unit="doc"):
        texts = list(documents[start : start + chunk])
        for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            pieces.append(np.array([*encoded.ids, separator], dtype=np.uint16))
    return np.concatenate(pieces)


@dataclass
class Domain:
    """One domain's training tokens, on the training device.

    Args:
        name: as in the model card.
        tokens: `(N,)`, int32.
        separator: the token after every document, the first one of a window that is aligned;
            None aligns no window.
    """

    name: str
    tokens: Int[Tensor, " N"]
    separator: int | None = None
    _epoch_starts: tuple = field(default=(None, None), repr=False)

    def windows(self, first: int, count: int, length: int, seed: int) -> Int[Tensor, "count length"]:
        """Windows number `first` to `first + count` of the endless stream of epochs."""
        if len(self.tokens) < 2 * length:
            raise ValueError(
                f"the domain {self.name!r} has {len(self.tokens)} tokens, fewer than two windows of "
                f"{length}; give more text or a smaller sequence_length"
            )
        per_epoch = len(self.tokens) // length - 1  # one less leaves room for the offset
        starts = []
        while count:
            epoch, offset = divmod(first, per_epoch)
            taken = min(count, per_epoch - offset)
            starts.append(self._epoch(epoch, per_epoch, length, seed)[offset : offset + taken])
            first, count = first + taken, count - taken
        index = torch.cat(starts)[:, None] + torch.arange(length, device=self.tokens.device)
        return self.tokens[index].long()

    def _epoch(self, epoch: int, per_epoch: int, length: int, seed: int) -> Tensor:
        """Where the windows of one epoch start, in visiting order.

        Drawn on the CPU, where a seed means the same on every machine, and kept on the device
        for the whole epoch: a copy at every step would make the host wait for the GPU.
        """
        key = (epoch, per_epoch, length, seed)
        if self._epoch_starts[0] != key:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            offset = torch.randint(length, (), generator=generator)
            starts = torch.randperm(per_epoch, generator=generator) * length + offset
            if self.separator is not None:
                starts[::ALIGN_EVERY] = self._next_border(starts[::ALIGN_EVERY].contiguous(), length)
            self._epoch_starts = (key, starts.to(self.tokens.device))
        return self._epoch_starts[1]

    def _next_border(self, starts: Tensor, length: int) -> Tensor:
        """Each start moved on to the next separator with room for a window; past the last, to the first."""
        borders = (self.tokens == self.separator).nonzero().flatten().cpu()
        borders = borders[borders <= len(self.tokens) - length]
        return borders[torch.searchsorted(borders, starts) % len(borders)] if len(borders) else starts


def shares(weights: Sequence[float], batch_size: int) -> list[int]:
    """How many sequences of a batch each domain gives, by largest remainder, at least one each."""
    if batch_size < len(weights):
        raise ValueError(f"batch_size must be at least {len(weights)}, one a domain, got {batch_size}")
    exact = [weight / sum(weights) * batch_size for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) < batch_size:
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    while sum(counts) > batch_size:
        able = [i for i, count in enumerate(counts) if count > 1]
        counts[max(able, key=lambda i: counts[i] - exact[i])] -= 1
    return counts


def batch(
    domains: Sequence[Domain],
    weights: Sequence[float],
    step: int,
    batch_size: int,
    length: int,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Int[Tensor, "B length"]:
    """The sequences of one step; each of `world` processes takes every `world`-th of them.

    Args:
        weights: relative share of each domain.
        batch_size: sequences in all processes together, a multiple of `world`.
        length: tokens in a sequence, the last target included.
    """
    rows = [
        domain.windows(step * count, count, length, seed)
        for domain, count in zip(domains, shares(weights, batch_size), strict=True)
    ]
    return torch.cat(rows)[rank::world]
