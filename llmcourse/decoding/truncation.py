"""Truncation: cut the unreliable tail of the distribution by setting its logits to -inf.

Each rule answers one question: where does the tail begin? At a rank (top-k), at a mass (top-p), at a
share of the peak (min-p), at a distance from the expected surprise (typical), or at a probability
that sinks as the distribution spreads (epsilon, eta). All keep at least one token.

Ties: tokens as probable as the last one kept are kept too, so `TopK(k)` may keep more than k. Only
top-p cuts through a tie: its mass counts token by token, and the lower ids of the tie are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.decoding.history import History
from llmcourse.decoding.processors import widen
from llmcourse.decoding.sampling import entropy


@dataclass(frozen=True)
class TopK:
    """Keeps the k most probable tokens (Fan et al. 2018); k past the vocabulary keeps all.

    Raises:
        ValueError: k is below 1.
    """

    k: int

    def __post_init__(self):
        remedy = "use 0 in SamplingParams to disable it, 1 for the most probable token alone"
        require_integer(1, "top_k", self.k, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        k = min(self.k, logits.shape[-1])
        last_kept = logits.topk(k).values[:, -1:]  # (B, 1)
        return logits.masked_fill(logits < last_kept, -math.inf)


@dataclass(frozen=True)
class TopP:
    """Keeps the smallest set of most probable tokens whose mass reaches p, the nucleus.

    min |S| such that Σ_{i ∈ S} p_i ≥ p      (Holtzman et al. 2020, section 3.1)

    Raises:
        ValueError: p is not in (0, 1].
    """

    p: float

    def __post_init__(self):
        remedy = "use 1.0 to disable it"
        require_number(lambda p: 0 < p <= 1, "top_p", "in (0, 1]", self.p, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        if self.p == 1:
            return logits
        falling, ids = widen(logits).sort(descending=True, stable=True)
        # Summed from the tail, so that a long tail of tiny probabilities is not rounded away.
        tail = falling.flip(-1).softmax(-1).cumsum(-1).flip(-1)  # mass of a token and all below it
        cut = tail <= 1 - self.p
        cut[:, 0] = False
        return logits.masked_fill(torch.empty_like(cut).scatter_(1, ids, cut), -math.inf)


@dataclass(frozen=True)
class MinP:
    """Keeps tokens at least `min_p` times as probable as the most probable one.

    p_i ≥ min_p · max_j p_j, that is l_i ≥ max_j l_j + ln min_p      (Nguyen et al. 2024)

    Raises:
        ValueError: min_p is not in (0, 1].
    """

    min_p: float

    def __post_init__(self):
        remedy = "use 0.0 in SamplingParams to disable it"
        require_number(lambda share: 0 < share <= 1, "min_p", "in (0, 1]", self.min_p, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        bar = widen(logits).amax(-1, keepdim=True) + math.log(self.min_p)
        return logits.masked_fill(logits < bar, -math.inf)


@dataclass(frozen=True)
class Typical:
    """Keeps tokens whose surprise is nearest to the expected one, until their mass reaches `mass`.

    Tokens are taken by rising |−ln p_i − H(p)|      (Meister et al. 2023, locally typical sampling)

    The most probable token may be cut: it can be less surprising than text usually is.

    Raises:
        ValueError: the mass is not in (0, 1].
    """

    mass: float

    def __post_init__(self):
        remedy = "use 1.0 to disable it"
        require_number(lambda mass: 0 < mass <= 1, "typical_p", "in (0, 1]", self.mass, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        if self.mass == 1:
            return logits
        log_p = widen(logits).log_softmax(-1)
        distance = (-log_p - entropy(logits)[:, None]).abs()
        rising, ids = distance.sort(stable=True)
        mass = log_p.gather(1, ids).exp().cumsum(-1)
        last = (mass < self.mass).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)  # (B, 1)
        return logits.masked_fill(distance > rising.gather(1, last), -math.inf)


@dataclass(frozen=True)
class Epsilon:
    """Keeps tokens of probability at least ε, or else the most probable one.

    p_i ≥ ε      (Hewitt, Manning and Liang 2022)

    Raises:
        ValueError: epsilon is not in (0, 1).
    """

    epsilon: float

    def __post_init__(self):
        remedy = "choose one from 3e-4 to 9e-4 (Hewitt et al. 2022)"
        require_number(lambda epsilon: 0 < epsilon < 1, "epsilon", "in (0, 1)", self.epsilon, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        threshold = torch.full_like(widen(logits[:, :1]), self.epsilon)
        return _keep_probable(logits, threshold)


@dataclass(frozen=True)
class Eta:
    """Epsilon whose bar sinks as the distribution spreads.

    p_i ≥ η,  η = min(ε, √ε · exp(−H(p)))      (Hewitt, Manning and Liang 2022)

    Raises:
        ValueError: epsilon is not in (0, 1).
    """

    epsilon: float

    def __post_init__(self):
        remedy = "use 0.0 in SamplingParams to disable it, or 3e-4 to 4e-3 (Hewitt et al. 2022)"
        require_number(lambda epsilon: 0 < epsilon < 1, "eta_cutoff", "in (0, 1)", self.epsilon, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        threshold = math.sqrt(self.epsilon) * (-entropy(logits)).exp()
        return _keep_probable(logits, threshold.clamp(max=self.epsilon)[:, None])


def _keep_probable(logits: Float[Tensor, "B V"], threshold: Float[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
    cut = widen(logits).softmax(-1) < threshold
    cut &= logits < logits.amax(-1, keepdim=True)  # never all
    return logits.masked_fill(cut, -math.inf)
