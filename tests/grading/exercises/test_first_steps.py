"""The front page's exercise is as sound as those of the labs, and belongs to none."""

import doctest

import pytest

from llmcourse.grading.exercises import catalogue, first_steps
from llmcourse.grading.exercises.first_steps import EXERCISE
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import examine
from llmcourse.grading.selfcheck import SelfCheck

SEEDS = range(50)


def verdict(function, seed):
    return examine(EXERCISE, seed, InProcess(function, EXERCISE.time_limit_s), frozenset())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reference_passes(seed):
    assert verdict(EXERCISE.reference, seed).passed


@pytest.mark.parametrize("mutant", EXERCISE.mutants, ids=lambda mutant: mutant.name)
def test_wrong_answers_fail_where_they_should(mutant):
    for seed in SEEDS:
        found = verdict(mutant.function, seed)
        assert not found.passed and found.check == mutant.caught_by


def test_the_example_is_right():
    names = {"speed_limit": first_steps.speed_limit}
    text = first_steps.ASKS.replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, names, "asks", None, 0)
    assert examples.examples and doctest.DocTestRunner().run(examples).failed == 0


def test_it_is_in_no_lab_and_found_by_the_front_page_alone():
    shown = []
    check = SelfCheck(find=first_steps.find, show=shown.append)
    assert check("00.speed_limit", first_steps.speed_limit).passed
    assert not check("01.top_p", first_steps.speed_limit).passed
    with pytest.raises(LookupError):
        catalogue.find("00.speed_limit")
