"""The procedure on scripted models, and that asking live gives what a ledger foretells."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from llmcourse.speculative.answered import Answered
from llmcourse.speculative.answers import Answer
from llmcourse.speculative.cascade import Cascade, Stage
from llmcourse.speculative.ledger import Policy, apply_policy
from llmcourse.speculative.tasks.question import SPLITS, split_of


@dataclass(frozen=True)
class Number:
    """Right is the answer that names the number."""

    document: str
    prompt: tuple[int, ...]

    def correct(self, text: str) -> bool:
        return text == str(self.prompt[0])

    def observed(self, text: str) -> tuple[float, ...]:
        return (float(text.isdigit()),)


@dataclass
class Scripted:
    """Answers numbers that divide by `divisor`, and says how sure it is of each."""

    divisor: int
    sure: float = 0.9
    unsure: float = 0.1

    def __post_init__(self):
        self.asked: list[list[int]] = []

    def __call__(self, questions):
        numbers = [question.prompt[0] for question in questions]
        self.asked.append(numbers)
        return [
            Answer(str(n), (self.sure,), 1, 1) if n % self.divisor == 0 else Answer("?", (self.unsure,), 1, 1)
            for n in numbers
        ]


class Reads:
    """A judge that believes what it is told."""

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, 0]


def stages(**last) -> list[Stage]:
    judge = Reads()
    models = [Scripted(3), Scripted(2), Scripted(1)]
    return [Stage(f"by {m.divisor}", m, cost, judge) for m, cost in zip(models, (1, 2, 8), strict=True)]


NUMBERS = [Number(f"document {n}", (n,)) for n in range(1, 7)]


def test_it_stops_at_the_first_answer_that_is_good_enough():
    models = stages()
    kept = Cascade(tuple(models), (0.9, 0.5)).answer(NUMBERS)
    assert [k.stage for k in kept] == [2, 1, 0, 1, 2, 0]
    assert [k.answer.text for k in kept] == ["1", "2", "3", "4", "5", "6"]
    assert [k.cost for k in kept] == [11, 3, 1, 3, 11, 1]
    assert [k.scores for k in kept] == [(0.1, 0.1), (0.1, 0.9), (0.9,), (0.1, 0.9), (0.1, 0.1), (0.9,)]
    assert [m.answers.asked for m in models] == [[[1, 2, 3, 4, 5, 6]], [[1, 2, 4, 5]], [[1, 5]]]


def test_models_that_are_not_needed_are_not_asked():
    models = stages()
    assert [k.stage for k in Cascade(tuple(models), (0.0, 0.5)).answer(NUMBERS)] == [0] * 6
    assert models[1].answers.asked == models[2].answers.asked == []
    assert Cascade(tuple(models[:1])).answer([]) == []


@pytest.mark.parametrize(
    "policy", [Policy((0, 1, 2), (0.9, 0.5)), Policy((0, 2), (0.2,)), Policy((1,)), Policy((1, 2), (1,))]
)
def test_a_ledger_foretells_what_a_cascade_does(policy):
    models = stages()
    answered = Answered.of(NUMBERS, {stage.name: stage.answers(NUMBERS) for stage in models})
    ledger = answered.ledger([stage.judge for stage in models], [stage.cost for stage in models])
    foretold = apply_policy(ledger, policy)
    kept = Cascade.of(models, policy).answer(NUMBERS)
    assert [policy.models[k.stage] for k in kept] == foretold.kept.tolist()
    assert sum(k.cost for k in kept) / 6 == pytest.approx(foretold.cost)
    right = [q.correct(k.answer.text) for q, k in zip(NUMBERS, kept, strict=True)]
    assert sum(right) / 6 == pytest.approx(foretold.quality)


def test_bad_cascades_are_refused():
    models = tuple(stages())
    unjudged = (Stage("cheap", models[0].answers, 1), models[1])
    for arguments, message in (
        (((), ()), "stages must be at least one, got 0; give the models from the cheapest on"),
        (
            (models[::-1], (0.5, 0.5)),
            "cost of the stages must be in order, the cheapest model first, got 8, 2, 1",
        ),
        ((models, (0.5,)), r"thresholds must be 2 for 3 models, got \(0\.5,\)"),
        ((models, (0.5, 1.2)), r"thresholds\[1\] must be in \[0, 1\], got 1\.2"),
        ((unjudged, (0.5,)), "judge of cheap must be given for all stages but the last, got None; train one"),
    ):
        with pytest.raises(ValueError, match=message):
            Cascade(*arguments)
    with pytest.raises(ValueError, match="cost of base must be at least 0 and finite, got -1; measure"):
        Stage("base", models[0].answers, -1)
    with pytest.raises(ValueError, match=r"models must be in \[0, 2\], got \(0, 3\); give the stages of"):
        Cascade.of(models, Policy((0, 3), (0.5,)))


@pytest.mark.parametrize("sure", [1.5, -0.5, float("nan")])
def test_a_judge_that_gives_no_probability_is_refused(sure):
    wild = Stage("wild", Scripted(1, sure=sure), 1, Reads())
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got .*; return probabilities"):
        Cascade((wild, *stages()[1:]), (0.5, 0.5)).answer(NUMBERS)


def answered(count: int = 60) -> Answered:
    numbers = [Number(f"document {n}", (n,)) for n in range(count)]
    return Answered.of(numbers, {f"by {d}": Scripted(d)(numbers) for d in (3, 1)})


def test_sides_are_kept_apart_and_complete():
    whole = answered()
    parts = [whole.side(side) for side in SPLITS]
    assert sum(len(part.documents) for part in parts) == 60
    for side, part in zip(SPLITS, parts, strict=True):
        assert {split_of(document) for document in part.documents} == {side}
        number = part.documents[0].split()[1]
        assert part.answers[1][0].text == number and part.right[0].tolist() == [int(number) % 3 == 0, True]


def test_what_is_written_is_read():
    whole = answered()
    assert torch.equal(Answered.from_json(whole.to_json()).right, whole.right)
    again = Answered.from_json(whole.to_json())
    assert (again.names, again.documents, again.answers) == (whole.names, whole.documents, whole.answers)


def test_judges_are_trained_on_what_was_answered():
    whole = answered()
    scores = whole.judges()[0].scores(whole.features[0])
    assert (scores[whole.right[:, 0]].min() > 0.8) and (scores[~whole.right[:, 0]].max() < 0.2)
    assert whole.mean_lengths() == [(1, 1), (1, 1)]


def test_answers_that_do_not_fit_are_refused():
    whole = answered()
    with pytest.raises(
        ValueError, match=r"answers must be 60 of each model, got \[60, 59\]; let every model"
    ):
        Answered(whole.names, whole.documents, (whole.answers[0], whole.answers[1][1:]), whole.right)
    with pytest.raises(ValueError, match="costs must be 2, got 1; give one for each model"):
        whole.ledger(whole.judges(), [1])
    with pytest.raises(
        ValueError, match="side must be one of train, thresholds, test, got 'dev'; choose one"
    ):
        Answered.side.__wrapped__(whole, "dev")


def test_a_stage_that_leaves_a_question_out_is_named():
    stage = Stage("lazy", lambda questions: [], 1.0)
    with pytest.raises(ValueError, match="number of answers of lazy must be 2, got 0"):
        Cascade((stage,)).answer(["a", "b"])
