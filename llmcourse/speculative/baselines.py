"""What a cascade is compared with: single models, chance, and oracles that know what is right."""

from __future__ import annotations

import itertools
from bisect import bisect_left

from llmcourse.decoding.errors import require_number
from llmcourse.speculative.frontier import Point
from llmcourse.speculative.ledger import Ledger, Policy

ROUNDING = 1e-9


def single_models(ledger: Ledger) -> list[Point]:
    """Each model asked alone."""
    quality, cost = ledger.quality.mean(0).tolist(), ledger.cost.mean(0).tolist()
    return [Point(Policy((m,)), quality[m], cost[m]) for m in range(ledger.num_models)]


def mixture(ledger: Ledger, budget: int | float) -> list[float]:
    """The best mixture of single models that costs this much: what share of the questions each is asked.

    On the upper hull of the single models' points, so at most two have a share: λ for the dearer, 1 − λ for
    the cheaper. Above the best model's cost it is that model.

    Raises:
        ValueError: a budget below the cheapest model's cost.
    """
    points = [(point.cost, point.quality) for point in single_models(ledger)]
    hull = _hull(points)
    _check_budget(budget, hull[0][0], "the cheapest model costs")
    index = bisect_left(hull, (budget, -1.0))  # the first at least as dear
    shares = [0.0] * len(points)
    if index in (0, len(hull)):
        shares[points.index(hull[min(index, len(hull) - 1)])] = 1.0
        return shares
    cheap, dear = hull[index - 1 : index + 1]
    share = (budget - cheap[0]) / (dear[0] - cheap[0])
    shares[points.index(cheap)], shares[points.index(dear)] = 1 - share, share
    return shares


def mixed(ledger: Ledger, budget: int | float) -> float:
    """The quality of that mixture, each question left to chance.

    A cascade below this line is worse than throwing dice.

    Raises:
        ValueError: a budget below the cheapest model's cost.
    """
    shares = mixture(ledger, budget)
    return sum(share * point.quality for share, point in zip(shares, single_models(ledger), strict=True))


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Upper hull from the cheapest to the best: quality rises, ever slower."""
    hull: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and quality <= hull[-1][1]:
            continue
        while len(hull) > 1 and _rises_faster(hull[-2], hull[-1], (cost, quality)):
            hull.pop()
        hull.append((cost, quality))
    return hull


def _rises_faster(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether the way from b to c is at least as steep as that from a to b."""
    return (c[1] - b[1]) * (b[0] - a[0]) >= (b[1] - a[1]) * (c[0] - b[0])


def oracle(ledger: Ledger, budget: int | float) -> float:
    """The quality of a router that knows every answer beforehand, and pays for the one that it keeps alone.

    Each question begins with its cheapest answer; what is left of the budget goes where it buys most quality,
    the last question in part (the linear relaxation of the multiple-choice knapsack, Sinha and
    Zoltners 1979). Neither a router nor a cascade can do better on these questions.

    Raises:
        ValueError: a budget below what the cheapest answers cost.
    """
    rows = zip(ledger.cost.tolist(), ledger.quality.tolist(), strict=True)
    hulls = [_hull(list(zip(*row, strict=True))) for row in rows]
    count = len(hulls)
    cost, quality = (sum(hull[0][part] for hull in hulls) / count for part in (0, 1))
    _check_budget(budget, cost, "the cheapest answers cost")
    steps = [
        ((dear - cheap) / count, (high - low) / count)
        for hull in hulls
        for (cheap, low), (dear, high) in itertools.pairwise(hull)
    ]
    for price, gain in sorted(steps, key=lambda step: step[0] / step[1]):
        share = min(1.0, max(0.0, budget - cost) / price) if price > 0 else 1.0
        cost, quality = cost + share * price, quality + share * gain
        if share < 1:
            break
    return quality


def perfect_judge(ledger: Ledger) -> Ledger:
    """The same answers under judges who know whether each is right, and do not know who could do better."""
    return ledger.judged_by(ledger.quality)


def _check_budget(budget: int | float, least: float, what: str) -> None:
    """A rounding error less than the least will do: budgets are often the costs of policies."""
    good, allowed = least * (1 - ROUNDING), f"at least {least:.4g}, what {what}"
    require_number(lambda b: b >= good, "budget", allowed, budget, "raise it")
