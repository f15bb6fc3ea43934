"""An answer that is near earns a part of the points: in `check`, in a grade, where grades are shown."""

import csv
import random
from dataclasses import replace

import numpy as np
import pytest

from llmcourse.grading.answer import Answer
from llmcourse.grading.cells.matching import Answers
from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.lab_view import points_so_far
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.question import examine, worst
from llmcourse.grading.records import reports
from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook
from llmcourse.grading.sandbox.policy import available_tier
from llmcourse.grading.selfcheck import SelfCheck, require
from llmcourse.grading.sitting import Sitting
from tests.grading.grades import LAB, question, result
from tests.grading.records.test_feedback import Reader

PARTLY = ((0.25, 0.5), (0.5, 0.25))


def speed(x):
    return 10.0 * x


def cases(rng: random.Random) -> list[Case]:
    return [Case({"x": rng.randint(1, 9)}, "small"), Case({"x": rng.randint(100, 900)}, "large")]


GUESS = Exercise(
    name="09.speed",
    function="speed",
    title="Speed",
    points=10,
    minutes=5,
    level=1,
    asks="Ten times.",
    signature="speed(x)",
    cases=cases,
    reference=speed,
    comparison=Near(0.1, PARTLY),
    hints=("think", "think more", "it is a product"),
    mutants=tuple(Mutant(f"{i}", speed, "small") for i in range(4)),
)


def answering(*factors):
    """A call whose answers are off by these factors, one after another."""
    left = list(factors)
    return lambda case: Answer(left.pop(0) * speed(case.arguments["x"]))


@pytest.mark.parametrize(
    ("got", "share"),
    [
        *((100, 1), (100.0, 1), (109.9, 1), (90.1, 1), (111, 0.5), (76, 0.5), (126, 0.25), (51, 0.25)),
        *((151, 0), (49, 0), (0, 0), (-100, 0), (float("nan"), 0), (float("inf"), 0), (10**400, 0)),
        *((True, 0), ("100", 0), (None, 0), ([100], 0)),
    ],
)
def test_the_nearer_the_more(got, share):
    difference = Near(0.1, PARTLY)(got, 100.0)
    assert (difference.share if difference else 1) == share


@pytest.mark.parametrize(
    ("got", "expected", "reason"),
    [
        (1.5, 1.5, None),
        (3, 3.0, None),
        (None, None, None),
        (0, 0, None),
        (float("inf"), float("inf"), None),
        (3, None, "got 3, expected None"),
        (None, 3, "got None, expected a number; is there a return?"),
        (3.1, 3, "got 3.1, expected 3"),
        (1e-9, 0, "got 1e-09, expected 0"),
        ("x", None, "got a str, expected None"),
        (np.float64(3), 3, "got a NumPy float64, expected a number; float(…) makes a plain float"),
        (np.int64(3), 3, "got a NumPy int64, expected a number; int(…) makes a plain int"),
    ],
)
def test_numbers_without_a_part_for_the_near(got, expected, reason):
    difference = Near()(got, expected)
    assert (difference and difference.reason) == reason and (difference is None or not difference.share)


def test_none_is_told_what_it_says_where_it_may_be_right():
    compared = Near(none_says="no batch turns it")
    assert compared(None, None) is None and compared(3, None).reason == "got 3, expected None"
    difference = compared(None, 1_690_994)
    assert difference.reason == "got None: no batch turns it; expected 1,690,994" and not difference.form


def test_how_far_off_is_told():
    assert Near(0.1, PARTLY)(120, 100).reason == "got 120, expected 100, 20% off"
    parts = Parts({"speed": Near(0.1, PARTLY)})
    assert parts((120,), (100,)).share == 0.5 and parts((120,), (100,)).reason.startswith("speed: got 120")


def test_the_case_that_is_farthest_off_decides():
    verdict = examine(GUESS, 0, answering(1.2, 1.4))
    assert (verdict.passed, verdict.earned, verdict.check, verdict.cases_run) == (True, 0.25, "large", 2)
    assert verdict.reason.startswith("large: got ") and verdict.reason.endswith("40% off")
    assert verdict.got == "" and verdict.hint == "think" and verdict.given
    assert examine(GUESS, 0, answering(1.4, 1.2)).check == "small"
    assert examine(GUESS, 0, answering(1.2, 1.0)).earned == 0.5
    assert examine(GUESS, 0, answering(1.05, 0.95)).earned == 1
    failed = examine(GUESS, 0, answering(1.2, 2.0))
    assert (failed.status, failed.earned, failed.check) == ("fail", 0, "large")


def test_of_several_seeds_the_worst_counts_and_a_failure_ends_it():
    verdicts = [examine(GUESS, seed, answering(f, 1.0)) for seed, f in enumerate((1.0, 1.4, 1.2))]
    assert worst(iter(verdicts)) is verdicts[1]
    asked = iter([*verdicts, failed := examine(GUESS, 3, answering(2.0)), verdicts[0]])
    assert worst(asked) is failed and next(asked) is verdicts[0]


def test_check_says_what_a_near_answer_has_earned():
    shown = []
    check = SelfCheck(find=lambda name: GUESS, show=shown.append)
    for _ in range(2):
        assert check("09.speed", lambda x: 12.0 * x).earned == 0.5
    assert repr(shown[0]).startswith("◐ 09.speed is near: 5 of 10 points; small: got ")
    assert shown[0].status == "near" and "#9a6700" in shown[0].html()  # amber, as on the page of feedback
    assert "think (1 of 3)" in repr(shown[0]) and "think more (2 of 3)" in repr(shown[1])
    assert check("09.speed", speed).earned == 1 and "passed: 10 points, 6 cases" in repr(shown[2])
    assert check("09.speed", lambda x: 20.0 * x).earned == 0


def test_other_graders_give_all_or_nothing(monkeypatch):
    monkeypatch.setattr("llmcourse.grading.selfcheck.catalogue.find", lambda name: GUESS)
    require("09.speed", speed, 5)
    with pytest.raises(AssertionError, match="20% off"):
        require("09.speed", lambda x: 12 * x, 5)


def test_the_points_so_far_have_the_part(monkeypatch):
    lab = {"09": (GUESS, replace(GUESS, name="09.other", function="other", signature="other(x)"))}
    monkeypatch.setattr("llmcourse.grading.lab_view.catalogue.labs", lambda: lab)
    table = points_so_far("09", {"speed": lambda x: 14 * x, "other": speed})
    assert table.total == (12.5, 20) and [row[2] for row in table.rows] == ["◐ near", "✓ passed"]
    assert "2.5 of  10" in repr(table) and "2.5 of 10" in table._repr_html_()


@pytest.mark.parametrize(("factor", "outcome", "points"), [(1, "pass", 10), (1.2, "near", 5), (2, "fail", 0)])
def test_a_grade_has_the_part_and_the_reason(factor, outcome, points):
    cell = f"def speed(x):\n    return {10 * factor} * x"
    found = Answers({"09.speed": (cell,)}, {"09.speed": cell}, {})
    with Nursery(available_tier()[0]) as nursery:
        graded = Sitting(found, nursery, lambda name: (1, 2, 3)).question(GUESS)
    assert (graded.outcome, graded.points, graded.max_points) == (outcome, points, 10)
    assert graded.reason.endswith("off") == bool(graded.finding.given) == (factor != 1)


NEAR = replace(question("01.beam", reason="large: got 12, expected 10, 20% off"), points=2.5)


def test_grading_again_notices_a_nearer_answer(tmp_path):
    with Gradebook(tmp_path / FILE_NAME) as book:
        assert book.record(result(questions=(NEAR,)), "v1") == "new"
        assert book.record(result(questions=(NEAR,)), "v1") == "same"
        assert [row.points for row in book.rows(LAB)] == [2.5]
        assert book.rows(LAB)[0].result.questions == (NEAR,)
        assert book.record(result(questions=(replace(NEAR, points=1.25),)), "v1") == "changed"
        assert [row.points for row in book.rows(LAB)] == [1.25]


def test_reports_show_the_part(tmp_path):
    with Gradebook(tmp_path / FILE_NAME) as book:
        book.record(result(questions=(question("01.softmax"), NEAR)), "v1")
        reports.write(book, tmp_path)
    with open(tmp_path / "grades.csv", encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["01.beam"], row["points"], row["status"]) == ("2.5", "4.5", "graded")
    page = Reader((tmp_path / "feedback" / "ann.html").read_text(encoding="utf-8")).text
    assert "01.beam passed in part 2.5 of 5 large: got 12, expected 10, 20% off" in page
    assert "check(…) in the notebook asks the same" in page
    assert "4.5 of 7 ✓ ◐" in Reader((tmp_path / "index.html").read_text(encoding="utf-8")).text
