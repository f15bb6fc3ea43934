"""The recorded answers: tasks that tell the models apart, judges that see something, a curve above chance."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from llmcourse.speculative import Answered, apply_policy, best_within, mixed, pareto_frontier
from llmcourse.speculative.answers import CONFIDENCE

RAW = Path(__file__).parents[2] / "benchmarks" / "results" / "raw"
TASKS = ("code", "verse")


@functools.cache
def recorded() -> dict[str, Any]:
    (path,) = RAW.glob("cascade_*.json")
    return json.loads(path.read_text(encoding="utf-8"))["tasks"]


@functools.cache
def answered(task: str) -> Answered:
    return Answered.from_json(recorded()[task])


@pytest.mark.parametrize("task", TASKS)
def test_larger_models_know_more_and_none_knows_all(task):
    draft, small, base = answered(task).right.double().mean(0).tolist()
    assert 0.05 < draft < small - 0.04 < base - 0.08 < 0.87
    shares = [model["right"] for model in recorded()[task]["models"].values()]
    assert shares == pytest.approx([draft, small, base], abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_are_scored_higher_than_wrong_ones(task):
    """The chance that a right answer is scored above a wrong one; 1/2 would be blind."""
    test = answered(task).side("test")
    for columns in ((CONFIDENCE,), None):
        judges = answered(task).side("train").judges(columns)
        scores, right = judges[1].scores(test.features[1]), test.right[:, 1]
        assert (scores[right][:, None] > scores[~right]).double().mean() > 0.6


@pytest.mark.parametrize("task", TASKS)
def test_half_the_arithmetic_buys_more_than_chance_does(task):
    whole, models = answered(task), recorded()[task]["models"].values()
    judges = whole.side("train").judges()
    costs = [model["flops"] for model in models]
    held_out, test = (whole.side(side).ledger(judges, costs) for side in ("thresholds", "test"))
    policy = best_within(pareto_frontier(held_out), costs[-1] / 2).policy
    outcome = apply_policy(test, policy)
    assert outcome.quality > mixed(test, outcome.cost)
