"""Exit heads without gradients: the linear map from a layer's output to the last one's, by least squares.

    M_n = argmin Σ_t ‖h_n[t] + M h_n[t] − h_L[t]‖² + λ ‖M‖²,   h = RMSNorm(x) by the model's own norm

Din et al. 2023 ("Jump to conclusions") map between layers so. One pass over some text gathers two matrices
of (C, C) for each exit, in which no vocabulary takes part: a start for training, or all there is time for.
It makes hidden states alike, not distributions, so that training from here still gains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.heads import ExitHeads, check_exits


@torch.no_grad()
def fit_heads(heads: ExitHeads, batches: Iterable[Int[Tensor, "B T"]], ridge: int | float = 1e-2) -> int:
    """Sets every head to the map that fits the text best; returns how many tokens were read.

    Args:
        batches: token ids; several times as many tokens as the hidden size is wide.
        ridge: λ in shares of the mean square of h_n, above 0: without text for it, M stays 0.

    Raises:
        TypeError: what are no heads.
        ValueError: no text, heads of another dtype or device than their backbone, or a ridge that is not
            above 0 and finite.
    """
    check_exits(heads, None)
    most = sys.float_info.max
    require_number(lambda r: 0 < r <= most, "ridge", "above 0 and finite", ridge, "use 0.01")
    norm, size = heads.backbone.model.norm, heads.backbone.config.hidden_size
    shape = (len(heads.layers), size, size)
    squares, misses = (torch.zeros(shape, dtype=torch.float64, device=heads.device) for _ in range(2))
    count = 0
    for ids in batches:
        *early, last = (norm(x).flatten(0, 1).double() for _, x in heads.states(ids))
        for number, h in enumerate(early):
            squares[number] += h.mT @ h
            misses[number] += (last - h).mT @ h
        count += ids.numel()
    require(count > 0, "batches", "of at least one token", "none", "give some text")
    for head, square, miss in zip(heads.heads, squares, misses, strict=True):
        penalty = ridge * square.diagonal().mean() * torch.eye(size, dtype=square.dtype, device=square.device)
        head.norm.weight.copy_(norm.weight)
        head.residual.weight.copy_(torch.linalg.solve(square + penalty, miss, left=False))
    return count
