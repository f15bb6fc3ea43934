"""Penalties: what a text already holds becomes less likely, or impossible, to come again.

They look back at the whole text or, with `scope="generated"`, only at what the model wrote. All of
them change logits, before the softmax: subtracting from a probability would not leave one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.decoding.history import History, Scope


def _check_scope(scope: str) -> None:
    remedy = "'generated' leaves the prompt out"
    require(scope in get_args(Scope), "penalty_scope", "'all' or 'generated'", repr(scope), remedy)


@dataclass(frozen=True)
class NoRepeatNGram:
    """Forbids every token that would complete an n-gram that the text, prompt included, already has.

    Paulus, Xiong and Socher 2018, section 2.5 (there with trigrams). n = 1 forbids all tokens of the
    text.

    Raises:
        ValueError: n is below 1.
    """

    n: int

    def __post_init__(self):
        remedy = "use 0 in SamplingParams to disable it; 3 to 5 is usual"
        require_integer(1, "no_repeat_ngram_size", self.n, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        tokens, lengths = history.tokens, history.lengths[:, None]
        if tokens.shape[1] < self.n:
            return logits
        grams = tokens.unfold(1, self.n, 1)  # (B, windows, n)
        complete = torch.arange(self.n, tokens.shape[1] + 1, device=tokens.device) <= lengths
        newest = lengths + torch.arange(1 - self.n, 0, device=tokens.device)  # slots of the last n - 1
        suffix = tokens.gather(1, newest.clamp(min=0))
        repeated = complete & (grams[..., :-1] == suffix[:, None]).all(-1)
        rows, windows = repeated.nonzero(as_tuple=True)
        logits = logits.clone()
        logits[rows, grams[rows, windows, -1]] = -math.inf
        return logits


@dataclass(frozen=True)
class PresencePenalty:
    """Subtracts α once from the logit of every token that occurred.

    l_i − α · [c_i > 0]      (OpenAI API reference, "frequency and presence penalties")

    Raises:
        ValueError: alpha is not finite. A negative one encourages repetition.
    """

    alpha: float
    scope: Scope = "all"

    def __post_init__(self):
        remedy = "use 0.0 to disable it"
        require_number(math.isfinite, "presence_penalty", "a finite number", self.alpha, remedy)
        _check_scope(self.scope)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        seen = history.counts(logits.shape[-1], self.scope) > 0
        return torch.where(seen, logits - self.alpha, logits)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Subtracts α from the logit of a token for every time it occurred.

    l_i − α · c_i      (OpenAI API reference, "frequency and presence penalties")

    Raises:
        ValueError: alpha is not finite. A negative one encourages repetition.
    """

    alpha: float
    scope: Scope = "all"

    def __post_init__(self):
        remedy = "use 0.0 to disable it"
        require_number(math.isfinite, "frequency_penalty", "a finite number", self.alpha, remedy)
        _check_scope(self.scope)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        return logits - self.alpha * history.counts(logits.shape[-1], self.scope).to(logits.dtype)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the positive logits of tokens that occurred by θ and multiplies the negative ones.

    l_i / θ if l_i > 0, else l_i · θ      (Keskar et al. 2019, section 4.1, which divides both: that
    would make tokens with negative logits likelier, so every implementation multiplies those)

    Raises:
        ValueError: theta is not positive and finite. One below 1 encourages repetition.
    """

    theta: float
    scope: Scope = "all"

    def __post_init__(self):
        allowed, remedy = "positive and finite", "use 1.0 to disable it"
        require_number(lambda t: 0 < t < math.inf, "repetition_penalty", allowed, self.theta, remedy)
        _check_scope(self.scope)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        seen = history.counts(logits.shape[-1], self.scope) > 0
        penalised = torch.where(logits < 0, logits * self.theta, logits / self.theta)
        return torch.where(seen, penalised, logits)
