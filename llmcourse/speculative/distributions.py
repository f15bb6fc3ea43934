"""The distributions that tokens are really drawn from: logits after penalties, temperature and truncation.

Speculation leaves a text's distribution as it is for any sampling settings, if p and q are what is left
after them: not the models' own softmax. A penalty at the third draft has to see the first two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.decoding.sampling import greedy


def processed(
    logits: Float[Tensor, "B T V"],  # T = G + 1
    drafts: Int[Tensor, "B G"],
    history: History,
    processors: Sequence[Processor] = (),
    *,
    sampled: bool = True,
) -> Float[Tensor, "B T V"]:
    """The distribution of the token after the text, after its first draft, … after its last.

    Args:
        sampled: False for greedy decoding; all others are those of `processed_logits`.
    """
    logits = processed_logits(logits, drafts, history, processors)
    if sampled:
        return logits.softmax(-1)
    return most_probable(logits)


def processed_logits(
    logits: Float[Tensor, "B T V"],  # T = G + 1
    drafts: Int[Tensor, "B G"],
    history: History,
    processors: Sequence[Processor] = (),
) -> Float[Tensor, "B T V"]:
    """What the processors make of the logits after the text, after its first draft, … after its last.

    The history is left as it was: the processors see it with the drafts before each position appended.

    Args:
        logits: the target's, at the text's last token and at each draft.
        drafts: the tokens between them, inside the vocabulary; those past a row's own only give
            logits that nobody asks for.
    """
    logits = widen(logits)
    if not processors:
        return logits
    text = history.select(range(len(logits)))  # a copy
    steps = []
    for position in range(logits.shape[1]):
        if position:
            text.append(drafts[:, position - 1])
        steps.append(widen(apply(processors, logits[:, position], text)))
    return torch.stack(steps, 1)


def distribution(
    logits: Float[Tensor, "B V"],
    history: History,
    processors: Sequence[Processor] = (),
    *,
    sampled: bool = True,
) -> Float[Tensor, "B V"]:
    """softmax of the processed logits; for greedy decoding `most_probable`."""
    logits = widen(apply(processors, widen(logits), history))
    return logits.softmax(-1) if sampled else most_probable(logits[:, None])[:, 0]


def most_probable(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T V"]:
    """All mass on the most probable token: greedy decoding, the limit of temperatures that go to 0.

    For ties it is what `greedy` chooses.
    """
    return point_masses(greedy(logits), logits.shape[-1], logits.dtype)


def point_masses(
    tokens: Int[Tensor, "B G"], vocab_size: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B G V"]:
    """All probability on the given token: q of a drafter that is certain, as lookup is.

    The tokens must be inside the vocabulary.
    """
    masses = torch.zeros(*tokens.shape, vocab_size, dtype=dtype, device=tokens.device)
    return masses.scatter_(2, tokens[..., None], 1)
