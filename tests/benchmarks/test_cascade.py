"""The recorded answers: tasks that tell the models apart, and what judges see of them."""

from __future__ import annotations

import functools
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from llmcourse.speculative import (
    Answered,
    Ledger,
    apply_policy,
    best_within,
    cheapest,
    mixed,
    pareto_frontier,
    perfect_judge,
)
from llmcourse.speculative.answers import CONFIDENCE

RAW = Path(__file__).parents[2] / "benchmarks" / "results" / "raw"
TASKS = ("code", "verse")


@functools.cache
def recorded() -> dict[str, Any]:
    (path,) = RAW.glob("cascade_*.json.xz")
    return json.loads(lzma.decompress(path.read_bytes()))["tasks"]


@functools.cache
def answered(task: str) -> Answered:
    return Answered.from_json(recorded()[task])


@pytest.mark.parametrize("task", TASKS)
def test_larger_models_know_more_and_none_knows_all(task):
    draft, small, base = answered(task).right.double().mean(0).tolist()
    assert 0.05 < draft < small - 0.04 < base - 0.08 < 0.87
    shares = [model["right"] for model in recorded()[task]["models"].values()]
    assert shares == pytest.approx([draft, small, base], abs=1e-3)


def ranked(task: str, columns: tuple[int, ...] | None, model: int = 1) -> float:
    """The chance that a right answer of the test side is scored above a wrong one; 1/2 is blind."""
    test = answered(task).side("test")
    judge = answered(task).side("train").judges(columns)[model]
    scores, right = judge.scores(test.features[model]), test.right[:, model]
    return (scores[right][:, None] > scores[~right]).double().mean().item()


def test_doubt_is_seen_in_code_best_by_all_features_and_not_in_rhymes():
    assert 0.65 < ranked("code", (CONFIDENCE,)) < ranked("code", None) - 0.05
    for columns in ((CONFIDENCE,), None):
        assert 0.4 < ranked("verse", columns) < 0.62


def ledgers(task: str) -> tuple[Ledger, Ledger]:
    """Those to choose thresholds on and to test them, in FLOPs."""
    whole, costs = answered(task), [model["flops"] for model in recorded()[task]["models"].values()]
    judges = whole.side("train").judges()
    held_out, test = (whole.side(side).ledger(judges, costs) for side in ("thresholds", "test"))
    return held_out, test


def test_half_the_arithmetic_buys_more_code_than_chance_does():
    held_out, test = ledgers("code")
    budget = held_out.cost[0, -1].item() / 2
    outcome = apply_policy(test, best_within(pareto_frontier(held_out), budget).policy)
    assert outcome.quality > mixed(test, outcome.cost) + 0.02


def test_who_looks_the_rhyme_up_does_better_than_the_largest_model_for_less():
    held_out, test = map(perfect_judge, ledgers("verse"))
    base = test.quality[:, -1].mean().item()
    outcome = apply_policy(test, cheapest(pareto_frontier(held_out), base + 0.05).policy)
    assert outcome.quality > base + 0.05 and outcome.cost < 0.75 * test.cost[0, -1].item()
