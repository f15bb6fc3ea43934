"""The verdict over drafts that were drawn, on the device; greedy ones are judged by `kernels.drafts`."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.speculative.verify import Verdict, verify_drafts


def verify_sampled(
    logits: Float[Tensor, "B T V"],
    q: Float[Tensor, "B G V"],
    drafts: Int[Tensor, "B G"],
    uniform: Float[Tensor, "B T"],
    inverse_temperature: Float[Tensor, 1],
) -> Verdict:
    """`verify_drafts` for p = softmax(logits / temperature); q was made with the same temperature."""
    p = torch.softmax(logits * inverse_temperature, -1)
    return verify_drafts(p, q, drafts, uniform, trusted=True)
