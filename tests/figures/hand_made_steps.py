"""Steps of speculation made by hand, over an alphabet of a few letters."""

from __future__ import annotations

import torch

from llmcourse.speculative import SpeculativeStep

ALPHABET = ["a", "b", "c", "d", " ", "\n", ""]  # the last one ends a text
END = 6
BRACKETED = [f"<{letter}>" for letter in ALPHABET[:-1]] + ["<end>"]


def decode(token_ids) -> str:
    return "".join(ALPHABET[token] for token in token_ids)


def label(token_id: int) -> str:
    return BRACKETED[token_id]


def step(index, drafts, stood, own, p, q=None, *, tokens=None, p_drafts=None, q_drafts=None, active=True):
    """A step of one row; its text gains what stood and the target's own token, unless `tokens` says less."""
    vocab_size = len(p)
    return SpeculativeStep(
        index=index,
        drafts=[drafts],
        p_drafts=[p_drafts or [0.5] * len(drafts)],
        q_drafts=[q_drafts or [0.5] * len(drafts)],
        num_accepted=[stood],
        next_tokens=[own],
        tokens=[[*drafts[:stood], own] if tokens is None else tokens],
        texts=[""],
        active=[active],
        p=torch.tensor([p]),
        q=torch.zeros(1, vocab_size) if q is None else torch.tensor([q]),
        draft_s=0.0,
        verify_s=0.0,
        time_s=0.0,
    )


def some_steps() -> list[SpeculativeStep]:
    """The prompt's step writes b; then a, a stand, b falls for c, d is dropped; then all stand, and a bonus.

    Where b falls: max(0, p − q) = (0, 0, 0.3, 0.1, 0, 0, 0), so that c is put with 0.75.
    """
    p, q = [0.3, 0.1, 0.4, 0.2, 0.0, 0.0, 0.0], [0.3, 0.5, 0.1, 0.1, 0.0, 0.0, 0.0]
    sides = {"p_drafts": [0.6, 0.2, 0.1, 0.9], "q_drafts": [0.3, 0.4, 0.5, 0.9]}
    return [
        step(0, [], 0, 1, [0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0]),
        step(1, [0, 0, 1, 3], 2, 2, p, q, **sides),
        step(2, [3, 4], 2, 0, [0.5, 0.3, 0.2, 0.0, 0.0, 0.0, 0.0]),
    ]
