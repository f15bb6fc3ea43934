"""Grades one submission: a fresh process for each question, points only for an answer that was seen.

The judge holds the reference, the expected values and the seeds; what it asks and gets back are plain
values. Whatever a submission does, its other questions and the other submissions are not affected.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmcourse.grading.answer import Answer
from llmcourse.grading.cells.lab_text import LabText
from llmcourse.grading.cells.matching import Answers, answers
from llmcourse.grading.cells.notebook import read
from llmcourse.grading.exercise import Case, Exercise
from llmcourse.grading.intake.files import Unreadable
from llmcourse.grading.intake.submissions import Submission
from llmcourse.grading.process.nursery import LoadReport, MachineryError, Nursery, Worker
from llmcourse.grading.question import ExerciseError, Verdict, examine
from llmcourse.grading.results import QuestionResult, SubmissionResult
from llmcourse.grading.rules import joined

SEEDS = 3  # draws of fresh inputs for each question
LOAD_LIMIT_S = 10.0  # for the cells before the question, all together
MAX_ENDLESS = 3  # cells of one submission that are left out because they did not end
MAX_NOTES = 3  # errors in cells that are kept with a question
# Parts that show or keep a grade, or decide what is graded: none of them changes one.
NOT_JUDGING = {"assembly", "batch", "commands", "labs", "lab_view", "records", "selfcheck"}
ATTEMPTS = 2  # a failure of the machinery is tried once more


@dataclass(frozen=True)
class Lab:
    """A lab as the judge knows it: its exercises, and the text that was handed out."""

    name: str
    exercises: tuple[Exercise, ...]
    text: LabText


def version(lab: Lab) -> str:
    """Changes whenever a grade of this lab could: with what judges, the exercises, the lab, or PyTorch."""
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        part = path.relative_to(here)
        if part.parts[0].removesuffix(".py") not in NOT_JUDGING:
            digest.update(part.as_posix().encode() + b"\0" + path.read_bytes())
    text = lab.text
    digest.update(repr((text.locked, text.exercises, text.stubs, sorted(text.demos), text.order)).encode())
    return digest.hexdigest()[:16]


def seeds(secret: bytes, exercise: str, sha256: str) -> list[int]:
    """The same whenever a file is graded, other ones for another file, known to nobody without the secret.

    What a student learns of one grading's inputs, from a message that holds them, is of no use for
    the next file.
    """
    texts = (f"{exercise} {sha256} {index}" for index in range(SEEDS))
    drawn = (hmac.digest(secret, text.encode(), "sha256") for text in texts)
    return [int.from_bytes(digest[:7], "big") for digest in drawn]


def grade(submission: Submission, lab: Lab, nursery: Nursery, secret: bytes) -> SubmissionResult:
    """The points of one submission, question by question.

    Args:
        nursery: starts the processes that the student's code runs in.
        secret: of this course, from its gradebook.

    Returns:
        a result whose status is `rejected` for a file that is no notebook of this lab.
    """
    started = time.monotonic()
    common = {
        "student": submission.student,
        "lab": lab.name,
        "sha256": submission.sha256,
        "tier": nursery.tier.name.lower(),
    }
    try:
        if submission.problem:
            raise Unreadable(submission.problem)
        notebook = read(submission.read())
        found = answers(notebook, lab.text)
    except Unreadable as unreadable:
        return SubmissionResult(**common, status="rejected", reason=str(unreadable))
    sitting = _Sitting(found, nursery, secret, submission.sha256)
    questions = tuple(sitting.question(exercise) for exercise in lab.exercises)
    return SubmissionResult(
        **common,
        status="error" if any(question.status == "error" for question in questions) else "graded",
        questions=questions,
        flags=(*submission.flags, *notebook.flags, *found.flags),
        seconds=time.monotonic() - started,
    )


@dataclass
class _Sitting:
    """One submission's questions, and what was learned about its cells on the way.

    Args:
        endless: by source, cells that used up a worker's time or broke it, and how. Questions that come
            later are not made to pay for them.
    """

    found: Answers
    nursery: Nursery
    secret: bytes
    sha256: str
    endless: dict[str, str] = field(default_factory=dict)

    def question(self, exercise: Exercise) -> QuestionResult:
        started = time.monotonic()

        def result(status: str, reason: str = "", flags: Sequence[str] = ()) -> QuestionResult:
            most = float(exercise.points)
            points = most if status == "pass" else 0.0
            seconds = time.monotonic() - started
            return QuestionResult(exercise.name, status, points, most, reason, tuple(flags), seconds)

        if exercise.name in self.found.missing:
            return result("fail", self.found.missing[exercise.name])
        if exercise.name in self.found.untouched:
            return result("fail", "not written yet")
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                verdict, notes = self._ask(exercise)
                return result("pass" if verdict.passed else "fail", verdict.reason, notes)
            except MachineryError as error:
                trouble = str(error)
            except ExerciseError as error:
                trouble = str(error)
                break
        return result("error", f"could not be graded ({trouble})")

    def _ask(self, exercise: Exercise) -> tuple[Verdict, tuple[str, ...]]:
        """Examines one answer in a process of its own; the verdict, and what an instructor should know."""
        cells = self.found.cells[exercise.name]
        while True:
            kept = [cell for cell in cells if cell not in self.endless]
            with self.nursery.worker(kept) as worker:
                report = worker.load(LOAD_LIMIT_S)
                stuck = report.failure is not None and report.stopped_in is not None
                if stuck and len(self.endless) < MAX_ENDLESS:
                    self.endless[kept[report.stopped_in]] = str(report.failure)
                    continue
                source, whole = joined(kept)
                verdict = self._examine(exercise, worker, source)
            left_out = [f"cell left out: {self.endless[cell]}" for cell in cells if cell in self.endless]
            unseen = () if whole else ("too long to be looked at whole for forbidden names",)
            notes = (*left_out, *unseen, *_noted(report))
            if verdict.status == "not written" and notes:
                verdict = replace(verdict, reason=f"{verdict.reason}: {'; '.join(notes)}")
            return verdict, notes

    def _examine(self, exercise: Exercise, worker: Worker, source: str) -> Verdict:
        def call(case: Case) -> Answer:
            return worker.call(exercise.function, case.arguments, case.oracles, exercise.time_limit_s)

        for seed in seeds(self.secret, exercise.name, self.sha256):
            verdict = examine(exercise, seed, call, source)
            if not verdict.passed:
                break
        return verdict


def _noted(report: LoadReport) -> tuple[str, ...]:
    """What the cells raised, the first few."""
    return tuple(
        f"cell {error.cell_index + 1}, line {error.line}: {error.type}: {error.message}"
        for error in report.errors[:MAX_NOTES]
    )
