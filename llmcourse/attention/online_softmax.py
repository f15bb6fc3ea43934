"""Softmax over scores that come one after another, none of which is kept.

softmax(s) v needs the largest score first, so that no exponential overflows, then their sum, then the
weighted mean: three walks over the scores. One walk is enough if what was summed so far is scaled
down whenever a larger score appears (Milakov and Gimelshein 2018, algorithm 3):

    m' = max(m, max s),   l' = l · e^(m − m') + Σ e^(s − m'),   o' = o · e^(m − m') + Σ e^(s − m') v

At the end o / l is the weighted mean, and m + log l the logarithm of Σ e^s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RunningSoftmax:
    """What has to be known of the scores so far, for every row.

    Attributes:
        peak: m, the largest of them; −inf before the first.
        total: l, the sum of e^(s − m).
        mixed: o, the sum of e^(s − m) v.
    """

    peak: Float[Tensor, "*rows"]
    total: Float[Tensor, "*rows"]
    mixed: Float[Tensor, "*rows D"]

    @classmethod
    def before(cls, rows: tuple[int, ...], size: int, like: Tensor) -> RunningSoftmax:
        """Nothing seen yet; dtype and device as those of `like`."""
        return cls(
            like.new_full(rows, float("-inf")),
            like.new_zeros(rows),
            like.new_zeros((*rows, size)),
        )

    def join(self, scores: Float[Tensor, "*rows S"], values: Float[Tensor, "*heads S D"]) -> RunningSoftmax:
        """With S more scores of every row, and the values that they weigh; a score of −inf weighs nothing."""
        peak = torch.maximum(self.peak, scores.amax(dim=-1))
        shift = peak.masked_fill(peak == float("-inf"), 0.0)  # −inf − (−inf) would be no number
        fade = torch.exp(self.peak - shift)
        weights = torch.exp(scores - shift[..., None])
        total = self.total * fade + weights.sum(dim=-1)
        return RunningSoftmax(peak, total, self.mixed * fade[..., None] + weights @ values)

    def result(self) -> Float[Tensor, "*rows D"]:
        """softmax(s) v; zeros for a row without scores, an empty sum."""
        nothing = (self.total == 0)[..., None]
        return torch.where(nothing, 0.0, self.mixed / self.total[..., None])

    def log_sum_exp(self) -> Float[Tensor, "*rows"]:
        """log Σ e^s, all that is needed to make any weight again: e^(s − log Σ e^s)."""
        return self.peak + torch.log(self.total)


def online_softmax(
    scores: Float[Tensor, " S"], values: Float[Tensor, "S D"], block: int = 1
) -> Iterator[RunningSoftmax]:
    """One row, step by step: what is known before the first score, and after each block of them.

    Raises:
        ValueError: a block without scores.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}; 1 takes one score after another")
    seen = RunningSoftmax.before((), values.shape[-1], scores)
    yield seen
    for start in range(0, len(scores), block):
        seen = seen.join(scores[start : start + block], values[start : start + block])
        yield seen
