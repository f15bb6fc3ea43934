"""How sure a mean is whose examples come in documents, be these as few as eight.

Examples of one document are right or wrong together, so documents are what was drawn. The ends of a
bootstrap over few of them (Efron 1979) lie too close: over eight it leaves the truth out about twice as often
as it says (Cameron, Gelbach and Miller 2008). Instead the mean is taken anew without each document in turn,
which is the jackknife, and the variance of these means is judged by Student's t. Where a few large documents
outweigh the others, that variance is less sure than their number says. So its degrees of freedom are those of
Bell and McCaffrey (2002), counted as if all examples were independent. Imbens and Kolesár (2016), who
recommend them, take a variance that is corrected less, and for clusters estimate how alike their examples
are; the jackknife's is rather too large, so that where one document outweighs all others the interval is
wider than it need be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require_number

FINE = 20_000  # steps of an integral: up to level 0.99 and 10^5 degrees t is right to a thousandth


@dataclass(frozen=True)
class Spread:
    """How far an estimate may be off.

    Attributes:
        variance: infinite where there is nothing to estimate it from.
        freedom: the degrees of freedom of that variance, at least 1.
    """

    variance: float | int
    freedom: float | int

    def half_width(self, level: float | int) -> float:
        """Of the interval around the estimate that holds the truth with this probability."""
        return student_t(level, self.freedom) * math.sqrt(self.variance) if self.variance else 0.0


def spread(values: Float[Tensor, " N"], documents: Int[Tensor, " N"]) -> Spread:
    """That of the mean of some values, each of a document; infinite where all are of the same one.

    With w the documents' shares of the examples, m their means and d the mean of all values, leaving
    document k out changes d by w_k / (1 - w_k) · (d - m_k). The jackknife's variance is (G - 1) / G times the
    sum of the squares over all G documents, a quadratic form m' A m. Where the entries of m are independent
    and have the variances Σ = diag(1 / w), its mean is tr AΣ and its variance 2 tr (AΣ)². A χ² of
    (tr AΣ)² / tr (AΣ)² degrees, scaled, has the same two.
    """
    _, place = documents.unique(return_inverse=True)
    sizes = torch.bincount(place).double()
    groups = len(sizes)
    if groups < 2:
        return Spread(math.inf, 1.0)
    means = torch.zeros_like(sizes).index_add_(0, place, values.double()) / sizes
    shares = sizes / sizes.sum()
    changes = shares / (1 - shares)
    weights = (groups - 1) / groups * changes.square()
    variance = (weights * (means - shares @ means).square()).sum().item()
    centred = torch.eye(groups, dtype=torch.float64) - shares  # row k: m_k less the mean
    form = centred.T @ (weights[:, None] * centred) / shares
    freedom = (form.trace().square() / (form * form.T).sum()).item()
    return Spread(variance, max(freedom, 1.0))  # of two documents it is 1, but for rounding


def mean_of(spreads: Sequence[Spread]) -> Spread:
    """That of the mean of independent estimates, with the degrees of freedom of Satterthwaite (1946)."""
    total = sum(each.variance for each in spreads)
    if total in (0, math.inf):
        return Spread(total, 1.0)
    freedom = total**2 / sum(each.variance**2 / each.freedom for each in spreads)
    return Spread(total / len(spreads) ** 2, freedom)


@lru_cache(maxsize=256)
def student_t(level: float | int, freedom: float | int) -> float:
    """The t with P(|T| ≤ t) = level.

    With t = √ν tan θ the density is proportional to cos^(ν-1) θ, on [0, π/2).

    Args:
        level: in (0, 1).
        freedom: ν, at least 1; need not be whole.

    Raises:
        ValueError: a number out of its range.
    """
    require_number(lambda x: 0 < x < 1, "level", "in (0, 1)", level, "use 0.95")
    require_number(lambda x: 1 <= x < math.inf, "freedom", "at least 1", freedom, "draw more documents")
    angles = torch.linspace(0, math.pi / 2, FINE + 1, dtype=torch.float64)
    below = torch.cumulative_trapezoid(angles.cos().clamp(min=0) ** (freedom - 1), angles)
    place = int(torch.searchsorted(below, level * below[-1]))
    last = below[place - 1] if place else 0.0
    within = (level * below[-1] - last) / (below[place] - last)
    return math.sqrt(freedom) * math.tan((place + within.item()) * math.pi / 2 / FINE)
