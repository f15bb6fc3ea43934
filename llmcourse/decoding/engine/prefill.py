"""Prompts are read by the ordinary model, whole and side by side, into the memory of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.engine.step import StepState


def prefill(state: StepState, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "B C"]:
    """Text, cache, positions and logits of each row's last token, whatever the state held before.

    Returns:
        the hidden state of that token, after the final norm.
    """
    lengths, device = [len(prompt) for prompt in prompts], state.text.device
    padded = torch.tensor([[*p, *[0] * (max(lengths) - len(p))] for p in prompts], device=device)
    state.cache.truncate([0] * len(prompts))
    hidden = state.model.hidden_states(padded, state.cache)  # (B, T, C)
    state.text[:, : max(lengths)] = padded
    state.positions.copy_(torch.tensor(lengths) - 1)
    rows = torch.arange(len(prompts), device=device)
    last = hidden[rows, state.positions]
    state.logits.copy_(state.model.lm_head(last))
    return last
