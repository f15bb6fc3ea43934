"""Thresholds against every threshold there is, on small ledgers; and what is read off the frontier."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.speculative.frontier import best_within, cheapest, pareto_frontier
from llmcourse.speculative.ledger import Ledger, Policy, apply_policy


def random_ledger(num_questions: int, num_models: int, seed: int, levels: int = 5) -> Ledger:
    """Scores on a few levels, so that there are ties; costs that differ by question, in whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    quality = (torch.rand(num_questions, num_models, generator=generator) < 0.5).double()
    scores = torch.randint(0, levels + 1, (num_questions, num_models), generator=generator) / levels
    cost = torch.randint(1, 5, (num_questions, num_models), generator=generator).double()
    return Ledger(quality, cost + 5 * torch.arange(num_models), scores)


def every_policy(ledger: Ledger):
    for length in range(1, ledger.num_models + 1):
        for models in itertools.combinations(range(ledger.num_models), length):
            grids = [sorted({0.0, 1.0, *ledger.scores[:, m].tolist()}) for m in models[:-1]]
            yield from (Policy(models, thresholds) for thresholds in itertools.product(*grids))


def by_brute_force(ledger: Ledger) -> list[tuple[float, float]]:
    """Cost and quality of all policies that no other beats, from the cheapest on."""
    outcomes = [apply_policy(ledger, policy) for policy in every_policy(ledger)]
    found = sorted({(round(o.cost, 9), round(o.quality, 9)) for o in outcomes}, key=lambda p: (p[0], -p[1]))
    kept: list[tuple[float, float]] = []
    for cost, quality in found:
        if not kept or quality > kept[-1][1]:
            kept.append((cost, quality))
    return kept


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_no_threshold_vector_does_better(num_questions, num_models, seed, levels):
    ledger = random_ledger(num_questions, num_models, seed, levels)
    found = [(round(point.cost, 9), round(point.quality, 9)) for point in pareto_frontier(ledger)]
    assert found == by_brute_force(ledger)


def test_points_are_what_their_policies_do():
    ledger = random_ledger(40, 3, seed=1, levels=20)
    points = pareto_frontier(ledger)
    assert len(points) > 5
    for point in points:
        outcome = apply_policy(ledger, point.policy)
        assert (outcome.quality, outcome.cost) == pytest.approx((point.quality, point.cost))


def test_a_monotone_change_of_scores_changes_nothing():
    ledger = random_ledger(30, 3, seed=2, levels=50)
    warped = ledger.judged_by(ledger.scores**3 / 2)
    assert [(p.quality, p.cost) for p in pareto_frontier(ledger)] == [
        (p.quality, p.cost) for p in pareto_frontier(warped)
    ]


def test_a_good_judge_buys_quality_and_a_blind_one_nothing():
    quality = torch.tensor([[1.0, 1.0]] * 6 + [[0.0, 1.0]] * 4)
    cost = torch.tensor([[1.0, 10.0]]).expand(10, 2)
    seeing = Ledger(quality, cost, quality)
    assert cheapest(pareto_frontier(seeing), 1.0).cost == pytest.approx(1 + 0.4 * 10)
    blind = Ledger(quality, cost, torch.full((10, 2), 0.5))
    assert cheapest(pareto_frontier(blind), 1.0).policy == Policy((1,))


def test_target_and_budget():
    points = pareto_frontier(random_ledger(60, 3, seed=3, levels=20))
    assert len(points) > 5
    for point in points:
        assert cheapest(points, point.quality) == point
        assert best_within(points, point.cost) == point
    between = (points[2].quality + points[3].quality) / 2
    assert cheapest(points, between) == points[3]
    assert best_within(points, (points[2].cost + points[3].cost) / 2) == points[2]
    assert cheapest(points, 0) == points[0]


def test_what_cannot_be_had_is_refused():
    points = pareto_frontier(Ledger(*(torch.tensor([[0.5], [1.0]]) for _ in range(3))))
    with pytest.raises(ValueError, match=r"quality must be at most 0\.75, the best that was found, got 0\.9"):
        cheapest(points, 0.9)
    with pytest.raises(ValueError, match=r"quality must be in \[0, 1\], got 75; give the share"):
        cheapest(points, 75)
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.75, the cheapest that was found, got 0"
    ):
        best_within(points, 0)
    for choose in (cheapest, best_within):
        with pytest.raises(ValueError, match="points must be at least one, got 0; take them from pareto"):
            choose([], 0.5)
