"""What a student runs: `check("01.top_p", top_p_filter)` says whether an answer is right, and why not.

It examines with the same exercise object as the grader, on seeds that are public. The student's function
runs here, in the notebook: this is a help, not a judgement.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from IPython.display import display

from llmcourse.grading.compare import kind, show
from llmcourse.grading.exercise import Exercise
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.in_notebook.box import Report
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.in_notebook.source import used_by
from llmcourse.grading.in_notebook.time_limit import can_limit
from llmcourse.grading.printable import clean
from llmcourse.grading.question import Verdict, arguments_of, examine

PUBLIC_SEEDS = (0, 1, 2)
FOR_ALL = ""  # the hints that are for any check
LATER = "the points are given where the lab is graded"
NO_LIMIT = "an endless loop cannot be ended by itself here; the notebook's stop button ■ ends it"


@dataclass(frozen=True)
class Examined:
    """What an examination in this process came to.

    Args:
        seed: that drew the inputs of the case that failed.
        printed: what the last call printed: that of the case that failed.
    """

    verdict: Verdict
    seed: int
    printed: str = ""


class SelfCheck:
    """Examines answers, and remembers how often each was wrong: each time, the hint says more.

    The hint of a check comes alone at first, then with the next of those for all, which begin anew with each
    mistake that has a hint of its own: what helped against another one says nothing of this one.

    Args:
        find: gives the exercise of a name, or raises `LookupError`.
        show: shows a `Report`.
    """

    def __init__(
        self,
        find: Callable[[str], Exercise] = catalogue.find,
        show: Callable[[Report], object] = display,
    ):
        self.find, self.show = find, show
        # How often each hint of a check was due, or, of what has none, one of those FOR_ALL; by exercise.
        self.wrong: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.limit_told = can_limit()

    def __call__(self, name: object = None, function: object = None, seed: int | None = None) -> Verdict:
        """Examines an answer and shows what came out; a mistake of the student's raises nothing.

        Args:
            name: of the exercise, `01.top_p`.
            function: the answer; None where there is none yet.
            seed: draws the inputs; by default those of a few seeds, one after another.
        """
        exercise, mistake = self._find(name)
        if exercise is None:
            self.show(Report("fail", mistake, {}))
            return Verdict("fail", "exercise name", mistake)
        examined = examine_here(exercise, function, PUBLIC_SEEDS if seed is None else (seed,))
        verdict, rung = self._with_hint(exercise, examined.verdict)
        lines = report_lines(exercise, replace(examined, verdict=verdict), rung)
        if not self.limit_told:
            self.limit_told, lines["note"] = True, NO_LIMIT
        self.show(Report("near" if verdict.near else verdict.status, title(exercise, verdict), lines))
        return verdict

    def _with_hint(self, exercise: Exercise, verdict: Verdict) -> tuple[Verdict, int]:
        """The verdict with the hint whose turn it is, and which of those for all that is, from 1."""
        if verdict.earned == 1:
            self.wrong.pop(exercise.name, None)
        if not verdict.hint:
            return verdict, 0
        counts, own = self.wrong[exercise.name], verdict.hint if verdict.own_hint else ""
        counts[own or FOR_ALL] += 1
        turn = counts[own] - 1 if own else counts[FOR_ALL]
        if not turn:
            return verdict, 0
        rung = min(turn, len(exercise.hints))
        return replace(verdict, hint=f"{own} {exercise.hints[rung - 1]}".lstrip()), rung

    def _find(self, name: object) -> tuple[Exercise | None, str]:
        if type(name) is not str:
            return None, f'the name comes first: check("01.top_p", top_p_filter), got {kind(name)}'
        try:
            return self.find(name), ""
        except LookupError as error:
            return None, clean(str(error.args[0]))


check = SelfCheck()


def require(name: str, function: object, seed: int) -> None:
    """Raises where an answer is wrong: for test cells that a grader of another kind runs.

    Raises:
        AssertionError: the answer is wrong, not written, or only near; says why. Such a grader
            knows no part of the points.
        LookupError: there is no such exercise.
    """
    verdict = examine_here(catalogue.find(name), function, (seed,)).verdict
    if verdict.earned < 1:
        raise AssertionError(f"{name}: {verdict.reason}")


def inputs(name: str, case: str, seed: int = 0) -> dict[str, Any]:
    """The arguments of one case, to look at or to call an answer with: `top_p_filter(**inputs(...))`.

    Raises:
        LookupError: there is no such exercise, or no such case of it.
    """
    drawn = {found.label: found for found in catalogue.find(name).cases(random.Random(seed))}
    if case not in drawn:
        raise LookupError(f"there is no case {case!r} of {name}; the cases are {', '.join(drawn)}")
    return arguments_of(drawn[case], dict(drawn[case].oracles))


def examine_here(exercise: Exercise, function: object, seeds: tuple[int, ...]) -> Examined:
    """The verdict over all seeds: the one that earns least, which is the first that is no pass."""
    if function is None or function is Ellipsis:
        return Examined(Verdict("not written", reason="not written yet"), seeds[0])
    if not callable(function):
        reason = f"the answer: {exercise.function} must be a function, got {show(function)}"
        return Examined(Verdict("fail", "the answer", reason), seeds[0])
    if obstacle := exercise.obstacle():
        return Examined(Verdict("not run", reason=obstacle), seeds[0])
    call, used, found, run = InProcess(function, exercise.time_limit_s), used_by(function), None, 0
    for seed in seeds:
        verdict = examine(exercise, seed, call, used)
        run += verdict.cases_run
        if found is None or verdict.earned < found.verdict.earned:
            # What the last call printed belongs to the case that is shown, unless that is only near.
            found = Examined(verdict, seed, "" if verdict.near else call.printed)
        if not verdict.passed:
            break
    return replace(found, verdict=replace(found.verdict, cases_run=run))


def title(exercise: Exercise, verdict: Verdict) -> str:
    """What came out, in a line."""
    points = f"{exercise.points} {'point' if exercise.points == 1 else 'points'}"
    if verdict.earned == 1:
        return f"✓ {exercise.name} passed: {points}, {verdict.cases_run} cases"
    if verdict.near:
        return f"◐ {exercise.name} is near: {verdict.share * exercise.points:g} of {points}; {verdict.reason}"
    if verdict.status == "not written":
        return f"○ {exercise.name} is not written yet: {points}, about {exercise.minutes} minutes"
    if verdict.status == "not run":
        return f"– {exercise.name} was not run here: {verdict.reason}; {LATER}"
    return f"✗ {exercise.name} failed at {verdict.reason}"


def report_lines(exercise: Exercise, examined: Examined, rung: int) -> dict[str, str]:
    """What a student is shown below that.

    Args:
        rung: which of the hints for all is shown, from 1; 0 for none.
    """
    verdict = examined.verdict
    asked = f'selfcheck.inputs("{exercise.name}", "{verdict.case}", seed={examined.seed})'
    lines = {
        "got": verdict.got,
        "expected": verdict.expected,
        "called with": "\n".join(verdict.given),
        "inputs": asked if verdict.case else "",
        "printed": examined.printed,
        "slip": verdict.slip,
        "hint": f"{verdict.hint} ({rung} of {len(exercise.hints)})" if rung else verdict.hint,
    }
    return {name: text for name, text in lines.items() if text}
