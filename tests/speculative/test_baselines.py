"""What cascades are compared with, by hand; no cascade beats the oracle."""

from __future__ import annotations

import pytest
import torch

from llmcourse.speculative.baselines import mixed, mixture, oracle, perfect_judge, single_models
from llmcourse.speculative.frontier import pareto_frontier
from llmcourse.speculative.ledger import Ledger

COST = torch.tensor([[1.0, 2.0, 4.0]])


def ledger(*quality: float) -> Ledger:
    return Ledger(torch.tensor([quality]), COST, torch.zeros(1, 3))


def test_single_models():
    points = single_models(ledger(0.2, 0.5, 0.6))
    assert [(p.quality, p.cost) for p in points] == [pytest.approx(x) for x in ((0.2, 1), (0.5, 2), (0.6, 4))]


def test_mixing_lies_on_the_upper_hull():
    concave = ledger(0.2, 0.5, 0.6)
    expected = {1: 0.2, 1.5: 0.35, 2: 0.5, 3: 0.55, 4: 0.6, 9: 0.6}
    assert {budget: mixed(concave, budget) for budget in expected} == pytest.approx(expected)
    # The second lies below the line from the first to the third, and is left out.
    assert mixed(ledger(0.2, 0.25, 0.8), 2) == pytest.approx(0.2 + 0.6 / 3)
    assert mixed(ledger(0.5, 0.4, 0.3), 4) == pytest.approx(0.5)  # the cheapest is the best
    with pytest.raises(
        ValueError, match=r"budget must be at least 1, what the cheapest model costs, got 0\.5"
    ):
        mixed(concave, 0.5)


def test_shares_of_a_mixture():
    concave = ledger(0.2, 0.5, 0.6)
    assert mixture(concave, 1) == [1, 0, 0] and mixture(concave, 9) == [0, 0, 1]
    assert mixture(concave, 1.5) == [0.5, 0.5, 0] and mixture(concave, 3.5) == [0, 0.25, 0.75]
    assert mixture(ledger(0.2, 0.25, 0.8), 2) == pytest.approx([2 / 3, 0, 1 / 3])
    with pytest.raises(ValueError, match="budget must be at least 1, what the cheapest model costs"):
        mixture(concave, 0.5)


def test_the_oracle_spends_where_it_gains_most():
    quality = torch.tensor([[1.0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]])
    asked = Ledger(quality, COST.expand(4, 3), torch.zeros(4, 3))
    expected = {1: 0.25, 1.125: 0.375, 1.25: 0.5, 1.625: 0.625, 2: 0.75, 9: 0.75}
    assert {budget: oracle(asked, budget) for budget in expected} == pytest.approx(expected)
    with pytest.raises(
        ValueError, match=r"budget must be at least 1, what the cheapest answers cost, got 0\.9"
    ):
        oracle(asked, 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_no_cascade_beats_the_oracle(seed):
    generator = torch.Generator().manual_seed(seed)
    quality = (torch.rand(50, 3, generator=generator) < 0.5).double()
    scores = torch.rand(50, 3, generator=generator)
    asked = Ledger(quality, COST.expand(50, 3), scores)
    for judged in (asked, perfect_judge(asked)):
        for point in pareto_frontier(judged):
            assert oracle(asked, point.cost) >= point.quality - 1e-9
    assert pareto_frontier(perfect_judge(asked))[-1].quality == pytest.approx(quality.amax(1).mean().item())
