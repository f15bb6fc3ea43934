"""One submission's questions: each answer in a process of its own, and in one more where that is in doubt.

A process may have been ended from outside (by the kernel when memory is short, by an administrator), and
time may have run out because the judge did not run. So what ended that way is asked again; what comes of
two processes is their own doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from llmcourse.grading.answer import Answer, Failure
from llmcourse.grading.cells.left_out import LeftOut
from llmcourse.grading.cells.matching import Answers
from llmcourse.grading.exercise import Case, Exercise
from llmcourse.grading.names_used import joined, names_used
from llmcourse.grading.process.nursery import LoadReport, MachineryError, Nursery, Worker
from llmcourse.grading.question import ExerciseError, Verdict, examine, worst
from llmcourse.grading.results import Finding, QuestionResult

LOAD_LIMIT_S = 10.0  # for the cells before the question, all together
AGAIN_S = 20.0  # what asking again may cost a submission, before the last time
MAX_NOTES = 3  # errors in cells that are kept with a question
UNCHANGED = "unchanged: the mistake is still in it"  # where the exercise is to find one
TOO_OFTEN = f"not asked again: this notebook's answers were for {AGAIN_S:g} s"


@dataclass(frozen=True)
class _Life:
    """What one process came to.

    Args:
        doubt: the failure that ended it, where that may have come from outside.
        notes: what an instructor should know.
    """

    report: LoadReport
    verdict: Verdict
    doubt: Failure | None
    notes: tuple[str, ...] = ()


class Sitting:
    """Asks the questions of one submission, and learns about its cells on the way.

    Args:
        seeds: of each exercise, by its name.
    """

    def __init__(self, found: Answers, nursery: Nursery, seeds: Callable[[str], Sequence[int]]):
        self._found = found
        self._nursery = nursery
        self._seeds = seeds
        self._left_out = LeftOut()
        self._again_s = 0.0

    def question(self, exercise: Exercise) -> QuestionResult:
        """The points of one answer; status `error` when the machinery failed twice."""
        started = time.monotonic()

        def result(
            status: str,
            reason: str = "",
            flags: Sequence[str] = (),
            found: Finding | None = None,
            share: float = 0.0,
        ) -> QuestionResult:
            most = float(exercise.points)
            seconds = time.monotonic() - started
            more = (reason, tuple(flags), seconds, found or Finding())
            return QuestionResult(exercise.name, status, share * most, most, *more)

        if exercise.name in self._found.missing:
            return result("fail", self._found.missing[exercise.name])
        untouched = exercise.name in self._found.untouched
        if untouched and not exercise.starter:
            return result("fail", "not written yet")
        if obstacle := exercise.obstacle():
            return result("not run", f"not graded here: {obstacle}")
        try:
            verdict, notes = self._ask(exercise)
        except (MachineryError, ExerciseError) as error:
            return result("error", f"could not be graded ({error})")
        status = "pass" if verdict.passed else "fail"
        reason = f"{UNCHANGED}; {verdict.reason}" if untouched else verdict.reason
        return result(status, reason, notes, _finding(verdict), verdict.earned)

    def _ask(self, exercise: Exercise) -> tuple[Verdict, tuple[str, ...]]:
        """The verdict, and what an instructor should know."""
        cells, own = self._found.cells[exercise.name], self._found.own[exercise.name]
        while True:
            kept = self._left_out.kept(cells, own)
            source, unread = joined(kept)
            read = [cell for cell in kept if cell not in unread]  # the rest could do what is forbidden
            life = self._settled(exercise, read, source)
            if not self._left_out.blame(life.report, read, own):
                break
        unseen = (f"cell left out: {why}" for why in unread.values())
        notes = (*self._left_out.notes(cells, kept), *unseen, *life.notes)
        verdict = life.verdict
        if verdict.status == "not written" and notes:
            verdict = replace(verdict, reason=f"{verdict.reason}: {'; '.join(notes)}")
        return verdict, notes

    def _settled(self, exercise: Exercise, cells: Sequence[str], source: str) -> _Life:
        """What a process comes to; or a second one, where the first failed by no proven fault of its own.

        Raises:
            MachineryError: the second failed by ours.
        """
        life, doubt = None, None
        with suppress(MachineryError):
            life = self._live(exercise, cells, source)
            doubt = life.doubt
        if life and not doubt:
            return life
        if life and self._again_s >= AGAIN_S:
            return replace(life, notes=(TOO_OFTEN, *life.notes))
        return self._again(exercise, cells, source, doubt)

    def _again(self, exercise: Exercise, cells: Sequence[str], source: str, doubt: Failure | None) -> _Life:
        started = time.monotonic()
        life = self._live(exercise, cells, source)
        self._again_s += time.monotonic() - started
        if doubt and not life.doubt:
            life = replace(life, notes=(f"asked twice; at first {doubt}", *life.notes))
        return life

    def _live(self, exercise: Exercise, cells: Sequence[str], source: str) -> _Life:
        """A process from its birth to its end."""
        with self._nursery.worker(cells) as worker:
            report = worker.load(LOAD_LIMIT_S)
            verdict = self._examine(exercise, worker, source)
            return _Life(report, verdict, worker.doubt, _noted(report))

    def _examine(self, exercise: Exercise, worker: Worker, source: str) -> Verdict:
        def call(case: Case) -> Answer:
            return worker.call(exercise.function, case.arguments, case.oracles, exercise.time_limit_s)

        used = names_used(source, exercise.function, worker.origins(exercise.function))
        return worst(examine(exercise, seed, call, used) for seed in self._seeds(exercise.name))


def _finding(verdict: Verdict) -> Finding:
    return Finding(verdict.given, verdict.got, verdict.expected, verdict.slip, verdict.hint)


def _noted(report: LoadReport) -> tuple[str, ...]:
    """What the cells raised, the first few."""
    return tuple(
        f"cell {error.cell_index + 1}, line {error.line}: {error.type}: {error.message}"
        for error in report.errors[:MAX_NOTES]
    )
