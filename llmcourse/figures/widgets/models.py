"""Models behind the views: loaded when first asked for, and run once for every text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse import pretrained
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder
from llmcourse.tokenizer import Tokenizer


class NextLogits:
    """The logits after any text, each text run once: sliders never wait for the model.

    A text that shares its beginning with the last one costs only the tokens that differ, since
    the KV cache is rolled back to where they part. That makes step and undo cheap.

    Args:
        room: how many texts are remembered, the latest used.
    """

    def __init__(self, model: Decoder, room: int = 256):
        self.model, self.room = model, room
        self.runs = 0  # forward passes so far
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._cache: KVCache | None = None
        self._held: tuple[int, ...] = ()  # the text that the cache holds

    @property
    def max_length(self) -> int:
        return self.model.config.max_position_embeddings

    def __call__(self, tokens: Sequence[int]) -> Float[Tensor, " V"]:
        text = tuple(tokens)
        if text not in self._known:
            self._known[text] = self._run(text)
        self._known.move_to_end(text)
        while len(self._known) > self.room:
            self._known.popitem(last=False)
        return self._known[text]

    @torch.no_grad()
    def _run(self, text: tuple[int, ...]) -> Float[Tensor, " V"]:
        if self._cache is None:
            self._cache = self.model.new_cache(1, self.max_length)
        pairs = enumerate(zip(self._held, text, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(self._held), len(text)))
        shared = min(shared, len(text) - 1)  # the last token must be run: its logits are wanted
        self._cache.truncate([shared])
        self._held = text[:shared]
        new = torch.tensor([text[shared:]], device=self.model.device)
        hidden = self.model.hidden_states(new, self._cache)
        self._held, self.runs = text, self.runs + 1
        return self.model.lm_head(hidden[0, -1]).float().cpu()


@dataclass(frozen=True)
class ReadyModel:
    """A loaded model with its tokenizer and its remembered logits.

    Raises:
        TypeError: no tokenizer.
    """

    name: str
    model: Decoder
    tokenizer: Tokenizer
    next_logits: NextLogits

    def __post_init__(self):
        if not isinstance(self.tokenizer, Tokenizer):
            found = type(self.tokenizer).__name__
            raise TypeError(f"tokenizer must be a Tokenizer, got {found}; take that of pretrained.load")

    def read_prompt(self, prompt: str) -> list[int]:
        """The prompt's tokens.

        Raises:
            ValueError: it is empty or leaves no room; the message is for the reader of a view.
        """
        tokens = self.tokenizer.encode_prompt(prompt)
        if not prompt:
            raise ValueError("The prompt is empty: write something, or choose an example.")
        if len(tokens) >= self.next_logits.max_length:
            raise ValueError(
                f"The prompt has {len(tokens):,} tokens, and {self.name} reads at most "
                f"{self.next_logits.max_length:,} with what it writes: shorten the prompt."
            )
        return tokens


Models = Mapping[str, tuple[Decoder, Tokenizer]] | Sequence[str] | None


class ModelShelf:
    """Models by name, loaded when first asked for.

    Args:
        models: loaded ones by name, or names for `pretrained.load`, or None for all embedded ones.

    Raises:
        ValueError: there is no model at all.
    """

    def __init__(self, models: Models = None):
        models = pretrained.embedded_names()[::-1] if models is None else models  # largest first
        given = dict(models) if isinstance(models, Mapping) else dict.fromkeys(models)
        if not given:
            raise ValueError("models must name at least 1 model, got none; give {name: (model, tokenizer)}")
        self._given = given
        self._ready: dict[str, ReadyModel] = {}

    @property
    def names(self) -> list[str]:
        return list(self._given)

    def get(self, name: str) -> ReadyModel:
        if name not in self._ready:
            model, tokenizer = self._given[name] or pretrained.load(name)
            self._ready[name] = ReadyModel(name, model, tokenizer, NextLogits(model))
        return self._ready[name]
