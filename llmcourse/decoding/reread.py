"""Texts read once more: what a model thinks of what was written, whoever wrote it and however.

One pass over a text and its prompt gives p of each new token, given all before it, at temperature 1. Texts
that were sampled from that p come to minus its entropy on average, greedy ones to favourites alone; what
differs was written by another law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmcourse.decoding.errors import require
from llmcourse.model import Decoder


@dataclass(frozen=True)
class Reread:
    """Means over all new tokens.

    Attributes:
        log_probability: ln p, in nats; at most 0.
        favourites: share of tokens that are the likeliest at their place, in [0, 1].
    """

    log_probability: float
    favourites: float

    def __str__(self) -> str:
        return f"log-probability {self.log_probability:5.2f}, its favourite {self.favourites:6.1%}"


@torch.no_grad()
def reread(model: Decoder, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Reread:
    """Reads the new tokens of texts behind their prompts.

    Args:
        prompts: token ids, at least one each.
        texts: the new tokens of each; some may have none.

    Raises:
        ValueError: not one text for each prompt, an empty prompt, or no new token in all.
    """
    count, remedy = len(prompts), "pass the tokens of each generation"
    require(len(texts) == count, "texts", f"{count}, one for each prompt", len(texts), remedy)
    require(all(map(len, prompts)), "prompts", "of at least 1 token each", "an empty one", "begin with one")
    tokens = sum(map(len, texts))
    require(tokens > 0, "texts", "with at least 1 token", 0, "write longer texts")
    log_p, best = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):  # one by one: texts differ in length
        if len(text):
            whole = torch.tensor([[*prompt, *text]], device=model.device)
            hidden = model.hidden_states(whole[:, :-1])[0, len(prompt) - 1 :]  # of many logits few are wanted
            logits, new = model.lm_head(hidden).double(), whole[0, len(prompt) :]
            log_p += logits.log_softmax(-1).gather(1, new[:, None]).sum().item()
            best += int((logits.argmax(-1) == new).sum())
    return Reread(log_p / tokens, best / tokens)
