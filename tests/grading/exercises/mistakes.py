"""The named mistakes of an exercise, and that a check tells one by its name."""

from llmcourse.grading.exercise import Exercise, Mutant
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import examine
from tests.grading.exercises.answers import drawn_once

SEEDS = range(5)


def mutant(exercise: Exercise, mistake: str) -> Mutant:
    """The only one of that name."""
    (found,) = [mutant for mutant in exercise.mutants if mutant.name == mistake]
    return found


def assert_told(exercise: Exercise, mistake: str, told: str) -> None:
    """The mistake fails with a hint of its own, which holds these words in lower case."""
    for seed in SEEDS:
        verdict = examine(drawn_once(exercise, seed), seed, InProcess(mutant(exercise, mistake).function))
        assert verdict.status == "fail" and verdict.own_hint and not verdict.slip
        assert told in verdict.hint.lower(), (seed, verdict.hint)
