"""Requests whose settings ask for more than a temperature: top-k, top-p, penalties and the rest of chapter 1.

Each is processed alone, after the step, from its own row of logits; whoever asks for none of it is not
held up by those who do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import EverythingMaskedError, NonFiniteLogitsError
from llmcourse.decoding.history import History
from llmcourse.decoding.params import SamplingParams
from llmcourse.decoding.processors import apply, widen
from llmcourse.decoding.sampling import greedy, sample
from llmcourse.serving.request import Request


def needs_processors(params: SamplingParams) -> bool:
    """Whether more than greedy search or a temperature is asked for."""
    return params.processors() != SamplingParams(temperature=params.temperature).processors()


def choose_one(request: Request, tokens: Sequence[int], logits: Float[Tensor, "1 V"]) -> int | Exception:
    """The next token of a text, or why there is none: whatever a request's settings raise fails it alone.

    Args:
        tokens: the prompt and what was generated, whose length and the request's seed make the draw.
    """
    try:
        return choose(request, tokens, logits)
    except Exception as error:
        return error


def choose(request: Request, tokens: Sequence[int], logits: Float[Tensor, "1 V"]) -> int:
    """As `choose_one`, which has its errors raised."""
    scores = processed(request, tokens, logits)
    return int(greedy(scores) if request.params.greedy else sample(scores, draws(request, len(tokens))))


def draws(request: Request, *at: int) -> torch.Generator:
    """Chance that depends on the request's seed and a position alone; a further number sets it apart."""
    return torch.Generator().manual_seed(hash((request.seed, *at)))


def processed(request: Request, tokens: Sequence[int], logits: Float[Tensor, "1 V"]) -> Float[Tensor, "1 V"]:
    """What a request's settings make of the logits after a text.

    Raises:
        DecodingError: they are broken, or leave nothing to choose from.
    """
    history = History.from_prompts([tokens], device=logits.device)
    history.prompt_lengths = torch.full_like(history.lengths, len(request.prompt))
    scores = widen(apply(request.params.processors(), logits, history))
    if scores.isnan().any() or (scores == float("inf")).any():
        raise NonFiniteLogitsError(f"the logits of request {request.id!r} hold NaN or infinity")
    if (scores == -float("inf")).all():
        raise EverythingMaskedError(f"no token is left to choose for request {request.id!r}")
    return scores
