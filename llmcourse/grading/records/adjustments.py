"""Corrections by hand, and what a grade comes to with them.

They are kept apart from what the judge found, in the order in which they were made, so that grading
again changes neither: a correction of an exercise applies to its points, one of the whole to the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llmcourse.grading.results import QuestionResult, SubmissionResult

Kind = Literal["add", "set", "clear"]


@dataclass(frozen=True)
class Adjustment:
    """One correction.

    Args:
        exercise: whose points it changes, or `None` for the total.
        kind: `set` to this many points, `add` them (they may be negative), or `clear`: those before
            it no longer count.
        reason: for the student to read.
    """

    exercise: str | None
    kind: Kind
    points: float
    reason: str
    made_at: str

    def __str__(self) -> str:
        change = {"add": f"{self.points:+g} points", "set": f"set to {self.points:g} points"}
        return change.get(self.kind, "earlier corrections taken back")


@dataclass(frozen=True)
class Mark:
    """An exercise of a row: what the judge found, and the points after corrections."""

    question: QuestionResult
    points: float
    adjusted: bool


@dataclass(frozen=True)
class Row:
    """A student's latest submission to a lab.

    Args:
        exercises: names and points of the lab's exercises, in order, also where none was graded.
        adjustments: in the order in which they were made.
    """

    result: SubmissionResult
    version: str
    graded_at: str
    exercises: dict[str, float]
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Of each exercise; one of a file that was rejected is a question that was not run."""
        found = {question.exercise: question for question in self.result.questions}
        gone = {a.exercise: 0.0 for a in self.adjustments if a.exercise and a.exercise not in self.exercises}
        marks = []
        for name, max_points in (self.exercises | gone).items():
            question = found.get(name) or QuestionResult(name, "not run", 0.0, max_points, "not graded")
            points, changes = self._apply(name, question.points)
            marks.append(Mark(question, points, bool(changes)))
        return tuple(marks)

    @property
    def points(self) -> float | None:
        """The total, or `None` while nobody can say: a file that was rejected is not worth 0 points.

        A correction that sets points decides: of the total always, of an exercise where a file was
        rejected. After a failure of the machinery other exercises are still to be graded.
        """
        total, changes = self._apply(None, sum((mark.points for mark in self.marks), 0.0))
        if self.result.status == "graded" or "set" in changes:
            return total
        by_exercise = {kind for name in self.exercises for kind in self._apply(name, 0.0)[1]}
        return total if self.result.status == "rejected" and "set" in by_exercise else None

    @property
    def max_points(self) -> float:
        return sum(self.exercises.values(), 0.0)

    @property
    def waiting(self) -> tuple[Mark, ...]:
        """Of a graded file, exercises that no machine has run yet: their 0 points are no judgement."""
        graded = self.result.status == "graded"
        return tuple(m for m in self.marks if graded and m.question.status == "not run" and not m.adjusted)

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the submission and its questions, for an instructor to look at."""
        of_questions = (f"{q.exercise}: {flag}" for q in self.result.questions for flag in q.flags)
        return (*self.result.flags, *of_questions)

    def _apply(self, exercise: str | None, points: float) -> tuple[float, tuple[Kind, ...]]:
        """Points after the corrections of an exercise or of the total, and the kinds that count."""
        return corrected(points, (a for a in self.adjustments if a.exercise == exercise))


def corrected(points: float, adjustments: Iterable[Adjustment]) -> tuple[float, tuple[Kind, ...]]:
    """Points after corrections, in order, and the kinds of those that count; never below 0.

    Points above the highest that can be had are left alone: they are a bonus.
    """
    given, kinds = points, []
    for adjustment in adjustments:
        if adjustment.kind == "add":
            points, kinds = points + adjustment.points, [*kinds, "add"]
        else:
            points = given if adjustment.kind == "clear" else adjustment.points
            kinds = [] if adjustment.kind == "clear" else ["set"]
    return max(points, 0.0), tuple(kinds)
