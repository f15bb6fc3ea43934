"""What a batch came to, in words, as JSON, and as an exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcourse.grading.printable import clean, escape_acting
from llmcourse.grading.records.adjustments import Row
from llmcourse.grading.records.feedback import file_name
from llmcourse.grading.results import Outcome, QuestionResult

ALL_GRADED, LOOK, MACHINERY, INTERRUPTED = 0, 1, 3, 130
AGAIN = "run the same command again"


@dataclass(frozen=True)
class Summary:
    """A batch and the grades of its students as they are now.

    Args:
        rows: of this lab and these students.
    """

    lab: str
    out: Path
    outcome: Outcome
    rows: tuple[Row, ...]

    @property
    def rejected(self) -> dict[str, str]:
        """Students whose file is no notebook of this lab, and why."""
        return {r.result.student: r.result.reason for r in self.rows if r.result.status == "rejected"}

    @property
    def failed(self) -> dict[str, str]:
        """Students whom the machinery failed, and how."""
        failed = {r.result.student: _trouble(r) for r in self.rows if r.result.status == "error"}
        return failed | dict.fromkeys(self.outcome.kept, "grading again failed; the grade before stands")

    @property
    def look(self) -> dict[str, tuple[str, ...]]:
        """Students whose notebook an instructor should look at, and why."""
        return {r.result.student: r.flags for r in self.rows if r.flags and r.result.status == "graded"}

    @property
    def not_run(self) -> dict[str, int]:
        """Exercises that this machine cannot run, and for how many students."""
        questions = (question for row in self.rows for question in row.result.questions)
        return dict(Counter(question.exercise for question in questions if question.status == "not run"))

    @property
    def exit_code(self) -> int:
        if self.outcome.interrupted:
            return INTERRUPTED
        if self.outcome.stopped or self.failed:
            return MACHINERY
        return LOOK if self.rejected or self.look or self.not_run else ALL_GRADED

    def text(self) -> str:
        """For people."""
        outcome, alone = self.outcome, self.rows[0] if len(self.rows) == 1 else None
        lines = [f"{self.lab}: {outcome.graded} graded now, {outcome.skipped} graded before"]
        lines += _listed("rejected", self.rejected)
        lines += _listed("to look at", {name: "; ".join(flags) for name, flags in self.look.items()})
        lines += _listed(f"failed, {AGAIN}", self.failed)
        lines += _listed("not graded on this machine", {e: f"{n} students" for e, n in self.not_run.items()})
        if outcome.changed:
            lines.append(f"the same file, another grade: {clean(', '.join(sorted(outcome.changed)))}")
        if alone:
            lines += [_mark(question) for question in alone.result.questions]
            lines.append(f"feedback: {self.out / 'feedback' / file_name(alone.result.student)}")
        return "\n".join([*lines, f"grades: {self.out / 'grades.csv'}, overview: {self.out / 'index.html'}"])

    def trouble(self) -> str:
        """Why the batch is not complete, and how to go on; empty when it is."""
        outcome = self.outcome
        if outcome.interrupted:
            return f"interrupted: {outcome.left} are left to be graded; {AGAIN} to go on"
        if outcome.stopped:
            return f"the machinery stopped: {clean(outcome.stopped)}; {outcome.left} are left; {AGAIN}"
        return ""

    def to_json(self) -> str:
        """For programs."""
        outcome = self.outcome
        grades = [
            {"student": r.result.student, "status": r.result.status, "points": r.points, "max": r.max_points}
            for r in self.rows
        ]
        found = {
            "lab": self.lab,
            "exit_code": self.exit_code,
            "graded": outcome.graded,
            "skipped": outcome.skipped,
            "left": outcome.left,
            "rejected": self.rejected,
            "failed": self.failed,
            "look": self.look,
            "not_run": self.not_run,
            "changed": sorted(outcome.changed),
            "grades": grades,
        }
        return escape_acting(json.dumps(found, ensure_ascii=False, indent=2))


def _mark(question: QuestionResult) -> str:
    sign = {"pass": "✓", "near": "◐", "fail": "✗"}.get(question.outcome, "·")
    reason = f"  {clean(question.reason)}" if question.reason else ""
    points = "–" if question.status == "not run" else f"{question.points:g}"
    return f"  {sign} {question.exercise:24}{points} of {question.max_points:g}{reason}"


def summary(lab: str, out: Path, outcome: Outcome, rows: Sequence[Row], students: Collection[str]) -> Summary:
    """Of the rows of a lab, those of the students of a batch."""
    return Summary(lab, out, outcome, tuple(row for row in rows if row.result.student in set(students)))


def _trouble(row: Row) -> str:
    questions = [q.reason for q in row.result.questions if q.status == "error" and q.reason]
    return row.result.reason or "; ".join(questions) or "no reason is known"


def _listed(title: str, found: dict[str, str]) -> list[str]:
    return (
        [f"{title}:", *(f"  {clean(name)}: {clean(why, 300)}" for name, why in found.items())]
        if found
        else []
    )
