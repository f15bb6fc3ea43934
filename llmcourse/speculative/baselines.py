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


def mixed(ledger: Ledger, budget: int | float) -> float:
    """The quality of the best mixture of single models that costs this much, each question left to chance.

    On the upper hull of the single models' points: with share λ of the dearer, (1 − λ) of the cheaper. A
    cascade below that line is worse than throwing dice.

    Raises:
        ValueError: a budget below the cheapest model's cost.
    """
    hull = _hull([(point.cost, point.quality) for point in single_models(ledger)])
    _check_budget(budget, hull[0][0], "the cheapest model costs")
    index = bisect_left(hull, (budget, -1.0))  # the first at least as dear
    if index == len(hull):
        return hull[-1][1]
    if index == 0:
        return hull[0][1]
    (cheap, low), (dear, high) = hull[index - 1 : index + 1]
    return low + (high - low) * (budget - cheap) / (dear - cheap)


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
