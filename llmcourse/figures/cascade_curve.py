"""Cost against quality of single models, mixtures of them, and cascades.

Thresholds are chosen on held-out questions; everything drawn is what they do on test questions. What a
cascade is worth is its gain over mixing: its quality less that of the best mixture of single models that
costs the same, for which no judge is needed (FrugalGPT, Chen et al. 2023, compares with single models alone).

    gain = 1/N Σ_i g_i,   g_i = q_i − Σ_m λ_m q_im − s · (c_i − Σ_m λ_m c_im)

λ are the mixture's shares, s its quality for a unit of cost. Both sides answer the same questions, so the
error follows from how the g_i scatter, a document's questions together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.speculative import (
    Ledger,
    Outcome,
    Point,
    Policy,
    apply_policy,
    mixed,
    mixture,
    pareto_frontier,
    single_models,
)

SURE = 1.96  # standard errors on each side: 95 % of a normal distribution
ROUNDING = 1e-9  # a model alone gains nothing, and its error is nothing either


@dataclass(frozen=True)
class Tried:
    """A policy on test questions, beside what it promised.

    Attributes:
        found: quality and cost on the held-out questions.
        quality, cost: on the test questions.
        quality_error: standard error of the quality.
        gain: quality less that of mixing single models at the same cost.
        gain_error: its standard error.
    """

    found: Point
    quality: float
    cost: float
    quality_error: float
    gain: float
    gain_error: float

    @property
    def policy(self) -> Policy:
        return self.found.policy

    @property
    def wins(self) -> bool:
        """Better than mixing, beyond what chance explains of this policy by itself."""
        return self.gain > SURE * self.gain_error + ROUNDING

    @property
    def loses(self) -> bool:
        """Worse than mixing, beyond what chance explains of this policy by itself."""
        return self.gain < -SURE * self.gain_error - ROUNDING


@dataclass(frozen=True)
class CostQuality:
    """All that the figure shows, besides a chosen policy.

    Attributes:
        names: of the models, in order of cost.
        unit: of all costs, of `cascade_plot.UNITS`.
        singles: each model asked alone.
        mixing: costs and qualities of mixtures, corners of a line that is straight between them.
        curves: by judge, the policies that no other beat on the held-out questions, by rising cost there.
        num_held_out, num_test: questions.
    """

    names: tuple[str, ...]
    unit: str
    singles: tuple[Tried, ...]
    mixing: tuple[tuple[float, float], ...]
    curves: tuple[tuple[str, tuple[Tried, ...]], ...]
    num_held_out: int
    num_test: int


def cluster_error(values: Float[Tensor, " N"], documents: Sequence[str]) -> float:
    """Standard error of a mean whose values hang together within a document.

        1/N · sqrt(Σ_d (Σ_{i in d} (v_i − v̄))²)     (Liang and Zeger 1986, for a mean)

    Raises:
        ValueError: not one document for each value.
    """
    if len(documents) != len(values):
        raise ValueError(f"documents must be one for each of {len(values)} values, got {len(documents)}")
    sums: dict[str, float] = {}
    for document, off in zip(documents, (values - values.mean()).tolist(), strict=True):
        sums[document] = sums.get(document, 0.0) + off
    return math.hypot(*sums.values()) / len(values)


def gains(ledger: Ledger, outcome: Outcome) -> Float[Tensor, " N"]:
    """g_i of each question: their mean is the gain over mixing."""
    shares = mixture(ledger, outcome.cost)
    used = [model for model, share in enumerate(shares) if share > 0]
    points = [single_models(ledger)[model] for model in used]
    cheap, dear = points[0], points[-1]
    slope = (dear.quality - cheap.quality) / (dear.cost - cheap.cost) if len(used) == 2 else 0.0
    weights = torch.tensor(shares, dtype=torch.float64)
    quality = outcome.qualities - ledger.quality @ weights
    cost = outcome.costs - ledger.cost @ weights
    return quality - slope * cost


def try_policy(found: Point, test: Ledger, documents: Sequence[str]) -> Tried:
    """A policy that was found on held-out questions, on test questions.

    Raises:
        ValueError: not one document for each question, or a policy for other models.
    """
    outcome = apply_policy(test, found.policy)
    over_mixing = gains(test, outcome)
    return Tried(
        found,
        outcome.quality,
        outcome.cost,
        cluster_error(outcome.qualities, documents),
        over_mixing.mean().item(),
        cluster_error(over_mixing, documents),
    )


def cost_quality(
    names: Sequence[str],
    judged: Mapping[str, tuple[Ledger, Ledger]],
    documents: Sequence[str],
    unit: str,
) -> CostQuality:
    """Finds each judge's best thresholds on the first ledger, and tries them on the second.

    Args:
        names: of the models, in order of cost.
        judged: by judge, held-out and test questions.
        documents: of the test questions.
        unit: of the costs, of `cascade_plot.UNITS`.

    Raises:
        ValueError: no judge, or one name too many or too few.
    """
    if not judged:
        raise ValueError("judged must have at least one judge, got none; train one with Answered.judges()")
    curves = tuple(
        (judge, tuple(try_policy(point, test, documents) for point in pareto_frontier(held_out)))
        for judge, (held_out, test) in judged.items()
    )
    held_out, test = next(iter(judged.values()))
    if len(names) != test.num_models:
        raise ValueError(f"names must be one for each of {test.num_models} models, got {len(names)}")
    singles = tuple(try_policy(point, test, documents) for point in single_models(held_out))
    mixing = tuple((point.cost, mixed(test, point.cost)) for point in singles)
    sizes = len(held_out.quality), len(test.quality)
    return CostQuality(tuple(names), unit, singles, mixing, curves, *sizes)
