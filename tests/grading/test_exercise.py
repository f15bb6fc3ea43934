"""An exercise says what is missing from it."""

from dataclasses import replace

import pytest

from llmcourse.grading.exercise import Case, Oracle
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.rules import NoMutation

TOP_P = catalogue.find("01.top_p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "top_p"}, "name of an exercise must be like 01.top_p, got 'top_p'; mend the exercise"),
        ({"name": "01.Top p"}, "name of an exercise must be like 01.top_p, got '01.Top p'"),
        ({"points": 0}, "points of an exercise must be positive, got 0"),
        ({"minutes": -1}, "minutes of an exercise must be positive, got -1"),
        ({"level": 6}, r"level of an exercise must be in \[1, 5\], got 6"),
        ({"hints": TOP_P.hints[:2]}, "hints of an exercise must be at least 3, got 2"),
        ({"mutants": TOP_P.mutants[:3]}, "mutants of an exercise must be at least 4, got 3"),
        (
            {"signature": "top_p(logits, p)"},
            r"signature of an exercise must be one that begins with top_p_filter\(",
        ),
        ({"rules": (NoMutation(), NoMutation())}, "rules of an exercise must be of different names"),
    ],
)
def test_what_is_wrong_with_an_exercise_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TOP_P, **change)


@pytest.mark.parametrize("oracles", [{}, {"other": print}, {"model": print, "other": print}])
def test_a_case_has_the_oracles_that_its_arguments_name(oracles):
    with pytest.raises(ValueError, match="oracles must be those of the arguments"):
        Case({"logits_of": Oracle("model")}, "one", oracles)
    Case({"logits_of": Oracle("model")}, "one", {"model": print})


def test_the_lab_is_in_the_name():
    assert TOP_P.lab == "01"
