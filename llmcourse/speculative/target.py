"""What the loop asks of a target: a source of logits that reads several tokens at once, and takes some back.

One pass over the last token and the drafts after it gives the target's distribution at each of them: that
is all that makes speculation faster than decoding. Drafts that fell are then forgotten. Rows of a batch have
unequal numbers of drafts, so tokens are padded on the right, and rolled back by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.source import CachedLogits, LogitsSource, UncachedLogits
from llmcourse.model import Decoder


@runtime_checkable
class Target(LogitsSource, Protocol):
    """A `LogitsSource` that verifies: `start` reads the prompts, each `read` several tokens more."""

    def read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Appends T tokens to each row; returns the logits after each, in memory of their own."""
        ...

    def rollback(self, counts: Sequence[int]) -> None:
        """Forgets the last `counts[b]` tokens of row b."""
        ...


class CachedTarget(CachedLogits):
    """A decoder with a KV cache: T tokens in one pass, and to forget some is to count them no longer."""

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.model(tokens, self.cache)

    def rollback(self, counts: Sequence[int]) -> None:
        self.cache.rollback(counts)


class UncachedTarget(UncachedLogits):
    """The slow truth: every pass runs the whole text again, token by token."""

    def read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return torch.stack([self.step(column) for column in tokens.unbind(1)], 1)

    def rollback(self, counts: Sequence[int]) -> None:
        for text, count in zip(self.texts, counts, strict=True):
            del text[len(text) - count :]


def as_target(model_or_target: object) -> Target:
    """A decoder becomes a cached target; a target stays what it is.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(model_or_target, Decoder):
        return CachedTarget(model_or_target)
    if isinstance(model_or_target, Target):
        return model_or_target
    raise TypeError(
        f"target must be a Decoder or a Target, got {type(model_or_target).__name__}; "
        "pass the model that pretrained.load returns, without its tokenizer"
    )
