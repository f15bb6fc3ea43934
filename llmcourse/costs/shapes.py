"""What a cost depends on: the model's shapes, the step that it takes, and the formats of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch

from llmcourse.hardware.dtypes import BITS, dtype_name


@runtime_checkable
class Shapes(Protocol):
    """The shapes of a decoder; a `DecoderConfig` has them all."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def attention_bias(self) -> bool: ...
    @property
    def output_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


@dataclass(frozen=True)
class ModelShapes:
    """Shapes alone, for a model whose weights are not here.

    Raises:
        ValueError: a size below 1, or heads that do not divide.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers")
        for name in (*sizes, "num_heads", "num_kv_heads", "head_dim"):
            check_at_least(name, getattr(self, name), 1)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}; every key/value head serves as many query heads"
            )


@dataclass(frozen=True)
class Step:
    """One forward pass: `new_tokens` in each of `batch` rows, after `past` that are in the cache.

    Attributes:
        cache: whether keys and values are kept; without, the tokens are the whole text.
        logit_positions: of each row's new tokens, those whose logits are computed; None means all,
            which is what `Decoder.forward` does. An engine needs the last alone.

    Raises:
        ValueError: a number below its least, more logits than tokens, or a past that no cache holds.
    """

    batch: int
    new_tokens: int
    past: int = 0
    cache: bool = True
    logit_positions: int | None = None

    def __post_init__(self):
        check_at_least("batch", self.batch, 1)
        check_at_least("new_tokens", self.new_tokens, 1)
        check_at_least("past", self.past, 0)
        if self.past and not self.cache:
            raise ValueError(f"past must be 0 without a cache, got {self.past}; use cache=True")
        if self.logit_positions is not None and not 0 <= self.logit_positions <= self.new_tokens:
            raise ValueError(
                f"logit_positions must be in [0, {self.new_tokens}], the new tokens of a row, "
                f"got {self.logit_positions}; use None for all"
            )

    @classmethod
    def prefill(
        cls, batch: int, length: int, *, cache: bool = True, logit_positions: int | None = None
    ) -> Step:
        """The whole text at once."""
        return cls(batch, length, 0, cache, logit_positions)

    @classmethod
    def decode(cls, batch: int, context: int) -> Step:
        """One more token that looks at `context` keys, its own among them.

        Raises:
            ValueError: `context` is below 1.
        """
        check_at_least("context", context, 1)
        return cls(batch, 1, context - 1)

    @classmethod
    def chunk(cls, batch: int, new_tokens: int, past: int, *, logit_positions: int | None = None) -> Step:
        """A piece of a prompt, after the pieces before it (chunked prefill)."""
        return cls(batch, new_tokens, past, True, logit_positions)

    @property
    def keys(self) -> int:
        """Keys that the last new token of a row looks at."""
        return self.past + self.new_tokens

    @property
    def logits(self) -> int:
        """Positions of each row whose logits are computed."""
        return self.new_tokens if self.logit_positions is None else self.logit_positions


@dataclass(frozen=True)
class Precision:
    """The formats of what is moved; names as in `hardware.dtypes.BITS`, or a torch.dtype.

    Attributes:
        weights: of the matrices of the layers.
        activations: of what passes between operations, of norms, biases and the embedding.
        cache: of keys and values in the cache; as the activations if None.
        head: of the output matrix (and the embedding, where they are one); as the weights if None.
        group_size, cache_group_size: numbers that share a 16-bit scale, in weights (the head's
            included) and in the cache; None: there are no scales.

    Raises:
        ValueError: an unknown format, or a group size below 1.
    """

    weights: str | torch.dtype = "bf16"
    activations: str | torch.dtype = "bf16"
    cache: str | torch.dtype | None = None
    head: str | torch.dtype | None = None
    group_size: int | None = None
    cache_group_size: int | None = None

    def __post_init__(self):
        cache = self.activations if self.cache is None else self.cache
        head = self.weights if self.head is None else self.head
        given = {"weights": self.weights, "activations": self.activations, "cache": cache, "head": head}
        for name, dtype in given.items():
            object.__setattr__(self, name, dtype_name(dtype))
        for name in ("group_size", "cache_group_size"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)

    @classmethod
    def uniform(cls, dtype: str | torch.dtype) -> Precision:
        """Everything in one format."""
        return cls(dtype, dtype)

    def num_bytes(self, store: str, elements: int) -> int:
        """Bytes of that many numbers, their scales included; none has scales in over 8 bits.

        Args:
            store: "weights", "head", "cache", "activations" or "parameters" (kept as the activations).
        """
        bits = BITS[self.activations if store == "parameters" else getattr(self, store)]
        groups = {"weights": self.group_size, "head": self.group_size, "cache": self.cache_group_size}
        data = -(-elements * bits // 8)  # rounded up
        if groups.get(store) is None or bits > 8:
            return data
        return data + 2 * -(-elements // groups[store])


BF16 = Precision()


def check_at_least(name: str, value: object, least: int) -> None:
    """Refuses what is no integer, or one below the least that makes sense."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got {value!r}; use {least} for the smallest"
        )
