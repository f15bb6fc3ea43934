"""Where next-token logits come from: decoding asks a source, and does not know what is behind it.

A source is started with prompts, then given one token a row at a time. Behind it may stand a model
with a cache, a model without one, two models (contrastive decoding), or a table in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder


@runtime_checkable
class LogitsSource(Protocol):
    """What the loop and beam search ask for logits. It serves one batch at a time: `start` begins anew.

    Attributes:
        vocab_size: the length of a row of logits.
        max_length: the context, prompt and new tokens together.
        eos_token_ids: the tokens that end a text.
        device: where the logits are.
    """

    vocab_size: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    device: torch.device

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        """Reads the prompts, which may differ in length; returns the logits after each.

        Args:
            capacity: tokens to make room for in each row: the longest prompt and what may follow it.
        """
        ...

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Appends one token to each row; returns the logits after it, in memory of their own."""
        ...

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Row i becomes a copy of row `rows[i]`; the batch may grow or shrink."""
        ...


class _ModelLogits:
    """What both sources over a `Decoder` share."""

    def __init__(self, model: Decoder):
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.max_length = model.config.max_position_embeddings
        self.eos_token_ids = model.config.eos_token_ids

    @property
    def device(self) -> torch.device:
        return self.model.device

    def _logits_at_ends(
        self, texts: Sequence[Sequence[int]], cache: KVCache | None = None
    ) -> Float[Tensor, "B V"]:
        """Only the last hidden state of each row meets the vocabulary."""
        return self.model.lm_head(self._hidden_at_ends(texts, cache))

    def _hidden_at_ends(
        self, texts: Sequence[Sequence[int]], cache: KVCache | None = None
    ) -> Float[Tensor, "B C"]:
        """Runs right-padded texts."""
        lengths = [len(text) for text in texts]
        padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
        hidden = self.model.hidden_states(torch.tensor(padded, device=self.device), cache)  # (B, T, C)
        ends = torch.tensor(lengths, device=self.device) - 1
        return hidden[torch.arange(len(texts), device=self.device), ends]


class CachedLogits(_ModelLogits):
    """A decoder with a KV cache: the prompts in one pass (prefill), then one token a pass (decode).

    Ragged prompts are padded on the right and the cache is rolled back to the true lengths, so a
    row's positions, and its logits, are those it would have alone.

    Args:
        new_cache: gives an empty cache for so many rows and tokens of each; None is `model.new_cache`.
    """

    def __init__(self, model: Decoder, new_cache: Callable[[int, int], KVCache] | None = None):
        super().__init__(model)
        self.new_cache = model.new_cache if new_cache is None else new_cache

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        self.cache = self.new_cache(len(prompts), capacity)
        logits = self._logits_at_ends(prompts, self.cache)
        self.cache.truncate([len(prompt) for prompt in prompts])
        return logits

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        return self.model(tokens[:, None], self.cache)[:, 0]

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        self.cache.reorder(rows)


class UncachedLogits(_ModelLogits):
    """The slow truth: every step runs the whole text again, at a cost that grows with its length."""

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        self.texts = [list(prompt) for prompt in prompts]
        return self._logits_at_ends(self.texts)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        return self._logits_at_ends(self.texts)

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        self.texts = [list(self.texts[row]) for row in rows.tolist()]


def as_source(model_or_source: object) -> LogitsSource:
    """A decoder becomes a cached source; a source stays what it is.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(model_or_source, Decoder):
        return CachedLogits(model_or_source)
    if isinstance(model_or_source, LogitsSource):
        return model_or_source
    raise TypeError(
        f"source must be a Decoder or a LogitsSource, got {type(model_or_source).__name__}; "
        "pass the model that pretrained.load returns, without its tokenizer"
    )


def check_request(
    source: LogitsSource, prompts: object, max_new_tokens: object, eos_token_ids: object
) -> frozenset[int]:
    """What the loop and beam search both check, before any memory is allocated.

    Args:
        eos_token_ids: the tokens that end a text; None asks the source.

    Returns:
        The tokens that end a text.

    Raises:
        TypeError: a prompt is not a sequence of integers, or `eos_token_ids` no collection.
        ValueError: a prompt that the source cannot read (see `check_prompts`), `max_new_tokens` that
            is no integer of at least 1, or an end token outside the vocabulary.
    """
    check_prompts(prompts, source)
    require_integer(1, "max_new_tokens", max_new_tokens, "ask for one token or more")
    if eos_token_ids is None:
        eos_token_ids = source.eos_token_ids
    if not isinstance(eos_token_ids, Collection):
        raise TypeError(
            f"eos_token_ids must be a list of token ids, got {eos_token_ids!r:.40}; pass one as [token]"
        )
    last, remedy = source.vocab_size - 1, "take them from the model's own tokenizer"
    for token in eos_token_ids:
        allowed = f"in [0, {last}]"
        require_number(lambda t: 0 <= t <= last, "eos_token_ids", allowed, token, remedy, kind=Integral)
    return frozenset(eos_token_ids)


def check_prompts(prompts: object, source: LogitsSource) -> None:
    """Refuses prompts that the source cannot read, before any memory is allocated.

    Raises:
        TypeError: prompts is no sequence, or a prompt is not one of integers.
        ValueError: no prompt at all, an empty one, one longer than the context, or a token id
            outside the vocabulary.
    """
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts must be a list of prompts, got {prompts!r:.40}; pass one prompt as [prompt]"
        )
    if not len(prompts):
        raise ValueError("prompts must hold at least 1 prompt, got 0")
    for index, prompt in enumerate(prompts):
        _check_prompt(f"prompts[{index}]", prompt, source)


def _check_prompt(name: str, prompt: object, source: LogitsSource) -> None:
    if not isinstance(prompt, Sequence) or not all(isinstance(token, int) for token in prompt):
        raise TypeError(
            f"{name} must be a list of token ids, got {prompt!r:.40}; encode text with tokenizer.encode, "
            "and pass one prompt as [prompt]"
        )
    if not prompt:
        raise ValueError(f"{name} must hold at least 1 token, got 0; start with <|endoftext|>")
    if len(prompt) > source.max_length:
        raise ValueError(
            f"{name} must fit into the context of {source.max_length} tokens, got {len(prompt)}; "
            "keep only its last part"
        )
    for position, token in enumerate(prompt):
        if not 0 <= token < source.vocab_size:
            raise ValueError(
                f"{name} must hold token ids in [0, {source.vocab_size - 1}], got {token} at position "
                f"{position}; encode it with the model's own tokenizer"
            )
