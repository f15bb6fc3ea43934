"""Recorded answers as a cascade meets them: counted by hand, and read from what the benchmark stored."""

import json
import lzma

import pytest

from llmcourse.figures.cascade_answers import (
    JUDGES,
    RECORDED_UNITS,
    examples,
    recorded_tasks,
    stage_counts,
    studies,
    tasks_of,
)
from llmcourse.speculative import Policy, apply_policy, pareto_frontier
from llmcourse.speculative.answers import CONFIDENCE
from tests.figures.answered_tasks import COSTS, NAMES, task

JUDGE = "trained classifier"
POLICY = Policy((0, 1, 2), (0.6, 0.6))


@pytest.fixture(scope="module")
def study():
    return studies(task())["FLOPs"]


def by_hand(study, policy):
    """Which model answers each test question."""
    scores = study.ledgers[JUDGE][1].scores.tolist()
    stages = list(zip(policy.models, (*policy.thresholds, 0.0), strict=True))
    return [next(model for model, least in stages if row[model] >= least) for row in scores]


def test_the_sides_stay_apart(study):
    answered, (held_out, test) = task().answered, study.ledgers[JUDGE]
    judges = answered.side("train").judges()
    assert study.test.documents == answered.side("test").documents
    assert test.scores[:, 0].tolist() == judges[0].scores(study.test.features[0]).tolist()
    assert len(held_out.quality) == len(answered.side("thresholds").documents) == study.data.num_held_out
    assert [one.found for one in dict(study.data.curves)[JUDGE]] == pareto_frontier(held_out)


def test_judges_are_the_classifier_and_the_confidence(study):
    answered = task().answered
    confident = answered.side("train").judges((CONFIDENCE,))[1].scores(study.test.features[1])
    assert study.ledgers["calibrated confidence"][1].scores[:, 1].tolist() == confident.tolist()
    assert tuple(study.ledgers) == tuple(JUDGES)


def test_each_unit_has_its_costs():
    found = studies(task())
    assert {unit: tuple(one.ledgers[JUDGE][1].cost[0].tolist()) for unit, one in found.items()} == COSTS
    assert [one.data.unit for one in found.values()] == list(COSTS)


def test_stages_are_counted(study):
    kept = by_hand(study, POLICY)
    right = [bool(study.test.right[row, model]) for row, model in enumerate(kept)]
    counts = stage_counts(study, JUDGE, POLICY)
    assert [one.name for one in counts] == list(NAMES)
    assert [one.asked for one in counts] == [sum(k >= model for k in kept) for model in range(3)]
    assert [one.kept for one in counts] == [kept.count(model) for model in range(3)]
    assert sum(one.right for one in counts) == sum(right)
    assert all(0 < one.right < one.kept for one in counts)


def test_a_model_that_is_left_out_is_asked_nothing(study):
    counts = stage_counts(study, JUDGE, Policy((0, 2), (0.6,)))
    assert (counts[1].asked, counts[1].kept, counts[1].right) == (0, 0, 0)
    assert counts[0].asked == study.data.num_test and counts[0].kept + counts[2].kept == study.data.num_test


def test_examples_are_the_first_right_and_wrong_of_each_stage(study):
    kept, shown = by_hand(study, POLICY), examples(study, JUDGE, POLICY)
    assert [(one.stage, one.right) for one in shown] == [
        (name, right) for name in NAMES for right in (True, False)
    ]
    for one in shown:
        model = NAMES.index(one.stage)
        row = next(
            row for row, k in enumerate(kept) if k == model and bool(study.test.right[row, k]) is one.right
        )
        assert (one.document, one.text) == (study.test.documents[row], study.test.answers[model][row].text)
        assert one.last_text == study.test.answers[2][row].text
        assert one.last_right == bool(study.test.right[row, 2])
        scores = study.ledgers[JUDGE][1].scores[row].tolist()
        assert one.scores == tuple((NAMES[m], scores[m]) for m in range(min(model + 1, 2)))


def test_any_policy_can_be_tried(study):
    tried = study.try_out(JUDGE, POLICY)
    held_out, test = (apply_policy(ledger, POLICY) for ledger in study.ledgers[JUDGE])
    assert (tried.found.quality, tried.found.cost) == (held_out.quality, held_out.cost)
    assert (tried.quality, tried.cost) == (test.quality, test.cost)


def test_what_the_benchmark_stores_can_be_read(tmp_path):
    given = task()
    models = {
        name: {key: COSTS[unit][model] for unit, key in RECORDED_UNITS.items()}
        for model, name in enumerate(NAMES)
    }
    content = {"device": "a machine", "tasks": {"code": {"models": models, **given.answered.to_json()}}}
    assert tasks_of(content)["code"].costs == COSTS
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "cascade_a_machine.json.xz").write_bytes(lzma.compress(json.dumps(content).encode()))
    (read,) = recorded_tasks(tmp_path).values()
    assert read.answered.documents == given.answered.documents and read.source == "a machine"
    assert read.answered.right.equal(given.answered.right)


def test_the_checkout_has_recorded_answers():
    found = recorded_tasks()
    assert set(found) == {"code", "verse"}
    assert all(one.answered.names == ("draft", "small", "base") for one in found.values())


def test_nothing_recorded_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no answers are recorded in .*; run `python benchmarks"):
        recorded_tasks(tmp_path)
