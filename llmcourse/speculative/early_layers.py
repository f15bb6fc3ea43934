"""Self-speculation: the target's own first layers, with its own norm and head, draft for all of them.

No second model has to be trained, stored or matched. Zhang et al. 2024 ("Draft & Verify") leave out chosen
layers of the target while drafting; Elhoushi et al. 2024 ("LayerSkip", section 4.3) stop after the first few,
as here, and train the model so that its head reads those too. A head that was not trained for it agrees
less with itself; another one, trained to read those layers, may take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor
from llmcourse.decoding.sampling import Randomness
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder, RMSNorm
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.model_drafter import ModelDrafter, require_decoder


class EarlyLayersDrafter(ModelDrafter):
    """A `ModelDrafter` by a target's first layers: it takes no memory but a cache of those layers.

    What that cache holds is also in the target's. Shared, it is that one, and what the last of these layers
    gives is kept for the drafts: `SharedLayersTarget` verifies with the other layers alone.

    Args:
        target: the model whose layers are used.
        num_layers: how many, in [1, layers of the target).
        norm, lm_head: instead of the target's own, as in `first_layers`.
        shared: whether a `SharedLayersTarget` of this drafter verifies; no other target can then.

    Raises:
        ValueError: more layers than may be, or none; a `shared` that is neither True nor False.
    """

    def __init__(
        self,
        target: Decoder,
        num_layers: int,
        *,
        norm: RMSNorm | None = None,
        lm_head: nn.Module | None = None,
        shared: bool = False,
    ):
        remedy = "use True with a SharedLayersTarget"
        require(isinstance(shared, bool), "shared", "True or False", repr(shared), remedy)
        super().__init__(first_layers(target, num_layers, norm=norm, lm_head=lm_head))
        self.target, self.shared = target, shared
        self._states: list[Tensor] = []  # (B, T, C) each, of tokens that the other layers have yet to read
        self.cache, self._lengths = None, []  # until texts are read
        self._whole: KVCache | None = None  # the target's, of which this cache is a part
        self._prompts: list[list[int]] = []
        self._history: History | None = None  # of the texts in that cache, which no other stream goes on with

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        if not self.shared:
            return super().start(prompts, capacity)
        self.cache = None  # until the target, which reads the prompts, shares its own

    def share(self, cache: KVCache, prompts: Sequence[Sequence[int]]) -> None:
        """Goes on behind the prompts, which the target's cache holds."""
        self.cache, self._held = cache.first_layers(len(self.model.model.layers)), cache.lengths.tolist()
        self._whole, self._prompts = cache, [list(prompt) for prompt in prompts]
        self._history, self._lengths = None, []  # the first draft tells
        self._states.clear()

    def draft(
        self,
        history: History,
        num_drafts: Sequence[int],
        processors: Sequence[Processor] = (),
        generator: Randomness | None = None,
    ) -> Draft:
        """As `ModelDrafter.draft`.

        Raises:
            ValueError: no prompt was read, or with a shared cache: it holds other texts by now.
        """
        if self.shared:
            remedy = "decode with SharedLayersTarget(drafter) as the target, or leave out shared"
            require(self.cache is not None, "draft", "called when a target shares its cache", "none", remedy)
            self._require_own(history)
        else:
            remedy = "call start with the prompts first"
            require(self.cache is not None, "draft", "called behind prompts", "none", remedy)
        return super().draft(history, num_drafts, processors, generator)

    def read_on(self, tokens: Int[Tensor, "B T"], cache: KVCache | None) -> Float[Tensor, "B T C"]:
        """What the last of these layers gives for the text's last token and the drafts.

        Most of it is there from drafting. What is not is read here: the last draft, as a rule.

        Args:
            cache: the target's; None if it has read nothing.

        Raises:
            ValueError: it shares another cache, or it did not draft for these texts; another drafter did.
        """
        remedy = "call start with the prompts first, and give each target a drafter of its own"
        mine = cache is not None and cache is self._whole
        require(mine, "cache", "the one that this drafter shares", "another or none", remedy)
        remedy = "pass this very drafter to the loop, as drafter=target.drafter"
        require(len(self._lengths) > 0, "read", "called when this drafter has drafted", "no draft", remedy)
        done = sum(states.shape[1] for states in self._states)
        if done < tokens.shape[1]:
            self._cut([length - 1 + done for length in self._lengths])
            self._read(tokens[:, done:])
            self._held = [length - 1 + tokens.shape[1] for length in self._lengths]
        return torch.cat(self._states, 1)[:, : tokens.shape[1]]

    def _require_own(self, history: History) -> None:
        """Refuses a stream that is older than the texts in the cache: it would read on behind others."""
        if self._history is None:
            wanted = [len(prompt) + 1 for prompt in self._prompts]  # with the target's first token
            if history.lengths.tolist() == wanted:
                read = zip(history.tokens.tolist(), self._prompts, strict=True)
                if all(row[: len(prompt)] == prompt for row, prompt in read):
                    self._history = history
        allowed, remedy = "of the texts that the target began last", "end one stream before the next begins, "
        remedy += "or give each a target and a drafter of its own"
        require(history is self._history, "history", allowed, "another stream's", remedy)

    def accept(self, num_accepted: Sequence[int]) -> None:
        super().accept(num_accepted)
        self._states.clear()

    def _read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        if not self.shared:
            return super()._read(tokens)
        x, context = self.model.begin(tokens, self.cache)
        for index, layer in enumerate(self.model.model.layers):
            x = layer(x, index, context)
        self._states.append(x)
        return self.model.model.norm(x)


def first_layers(
    model: Decoder, num_layers: int, *, norm: RMSNorm | None = None, lm_head: nn.Linear | None = None
) -> Decoder:
    """A decoder of a model's first layers, its embedding, norm and head: the very same weights, not copies.

    Args:
        norm, lm_head: those of a trained exit, instead of the model's own.

    Raises:
        TypeError: no decoder.
        ValueError: `num_layers` is not in [1, layers of the model), or a norm or head of another shape.
    """
    require_decoder("target", model)
    most = model.config.num_layers - 1
    require_integer(1, "num_layers", num_layers, "draft with one layer or more")
    remedy = "leave layers to verify with; a draft by all of them costs as much as the text"
    require(num_layers <= most, "num_layers", f"at most {most}", num_layers, remedy)
    norm = _of_shape("norm", norm, model.model.norm)
    head = _of_shape("lm_head", lm_head, model.lm_head)
    tied = model.config.tie_word_embeddings and head is model.lm_head
    config = replace(model.config, num_layers=num_layers, tie_word_embeddings=tied)
    with torch.device("meta"):  # weights of its own would only be thrown away
        early = Decoder(config, model.attention)
    early.model.embed_tokens, early.model.norm = model.model.embed_tokens, norm
    early.model.layers = nn.ModuleList(model.model.layers[:num_layers])
    early.lm_head = head
    return early.train(model.training)


def _of_shape(name: str, given: nn.Module | None, own: nn.Module) -> nn.Module:
    """The module that is given, if its weight has the shape of the model's own; that one for None."""
    if given is None:
        return own
    shapes = [_shape(module) for module in (own, given)]
    require(shapes[0] == shapes[1], name, f"of shape {shapes[0]}", shapes[1], "train it on this model")
    return given


def _shape(module: nn.Module) -> tuple[int, ...]:
    return module.shape if isinstance(module, QuantizedLinear) else tuple(module.weight.shape)
