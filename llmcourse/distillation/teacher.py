"""What the teacher says of a batch: hidden states, or its likeliest tokens, from a cache if there is one.

Hidden states and not logits: those are V numbers a token, and whoever needs them multiplies a few rows at a
time. The teacher computes in bf16 on a GPU, and never has a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.distillation.batches import Part
from llmcourse.distillation.features import LayerFeatures, read_features
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.stored_teacher import TopK
from llmcourse.distillation.teacher_cache import CacheOf, TeacherCache
from llmcourse.model import Decoder
from llmcourse.pretrained import fingerprint


class Told(NamedTuple):
    """Of each token of a batch; what a loss does not look at is None.

    Attributes:
        hidden: the last, normalised states.
        head: the matrix that makes logits of them.
        top_k: the likeliest tokens.
        features: of the layers that are compared.
    """

    hidden: Float[Tensor, "B T C"] | None = None
    head: Float[Tensor, "V C"] | None = None
    top_k: TopK | None = None
    features: dict[int, LayerFeatures] | None = None


class Teacher:
    """Says what a distillation asks for.

    Args:
        model: None where there is no teacher.
        layers: whose features are compared.
        cache: a folder; None asks the teacher at every step.
        compiled: its pass, for a GPU.

    Raises:
        ValueError: a cache that cannot hold what is asked for, or is of something else.
        OSError: no room for it.
    """

    def __init__(
        self,
        distillation: Distillation,
        model: Decoder | None,
        layers: Sequence[int] = (),
        cache: Path | None = None,
        *,
        compiled: bool = False,
    ):
        self.distillation, self._cache = distillation, None
        self._model = None if model is None or not distillation.needs_teacher else _ready(model)
        self._layers = layers
        read: Callable = self._read
        self._run = torch.compile(read) if compiled else read
        if cache is not None:
            self._cache = _cache(distillation, model, cache)

    def __call__(self, part: Part) -> Told:
        if self._model is None:
            return Told()
        if self._cache is not None:
            return Told(top_k=self._cache.top_k(part.name, part.rows, lambda rows: self._ask(rows).top_k))
        return self._ask(part.rows)

    @torch.no_grad()
    def _ask(self, rows: Int[Tensor, "B T"]) -> Told:
        (hidden, features), settings = self._run(rows), self.distillation
        if settings.response is None:
            return Told(features=features)
        if settings.top_k is None:
            return Told(hidden, self._model.lm_head.weight, features=features)
        head, vocab_size = self._model.lm_head, self._model.config.vocab_size
        temperature = settings.response.temperature
        top_k = TopK.of_hidden(hidden, head, vocab_size, settings.top_k, temperature=temperature)
        return Told(top_k=top_k, features=features)

    def _read(self, rows: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B T C"], dict[int, LayerFeatures]]:
        return read_features(self._model, rows, self._layers)


def _ready(model: Decoder) -> Decoder:
    """Without gradients, and in bf16 on a GPU."""
    if model.device.type == "cuda" and model.dtype != torch.bfloat16:
        model = copy.deepcopy(model).to(torch.bfloat16)
    elif any(weight.requires_grad for weight in model.parameters()):
        model = copy.deepcopy(model)
    model.rope(torch.zeros(1, 1, dtype=torch.long, device=model.device))  # found later, it would compile anew
    return model.requires_grad_(False).eval()


def _cache(distillation: Distillation, model: Decoder, folder: Path) -> TeacherCache:
    settings, recipe = distillation, distillation.recipe
    remedy = "give top_k, 64 for one"
    require(settings.top_k is not None, "top_k", "given where a cache is", None, remedy)
    remedy = "go without a cache: features would take far more room than text"
    require(settings.features is None, "features", "None where a cache is given", "some", remedy)
    remedy = "go without a cache: what the student writes is new each time"
    require(settings.own_text == 0, "own_text", "0 where a cache is given", settings.own_text, remedy)
    of = CacheOf(
        teacher=fingerprint(model),
        vocab_size=model.config.vocab_size,
        k=settings.top_k,
        temperature=settings.response.temperature,
        batch_size=recipe.batch_size,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
    )
    cache = TeacherCache(folder, of)
    cache.check_room(recipe.steps)
    return cache
