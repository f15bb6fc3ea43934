"""Grades one submission: a fresh process for each question, points only for an answer that was seen.

The judge holds the reference, the expected values and the seeds; what it asks and gets back are plain
values. Whatever a submission does, its other questions and the other submissions are not affected.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import time
from dataclasses import dataclass
from pathlib import Path

from llmcourse.grading.cells.lab_text import LabText
from llmcourse.grading.cells.matching import answers
from llmcourse.grading.cells.notebook import read
from llmcourse.grading.exercise import Exercise
from llmcourse.grading.intake.files import Unreadable
from llmcourse.grading.intake.submissions import Submission
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.results import SubmissionResult
from llmcourse.grading.sitting import Sitting

SEEDS = 3  # draws of fresh inputs for each question
# Parts that show or keep a grade, or decide what is graded: none of them changes one.
NOT_JUDGING = {"assembly", "batch", "commands", "in_notebook", "labs", "lab_view", "records", "selfcheck"}


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
    sitting = Sitting(found, nursery, lambda name: seeds(secret, name, submission.sha256))
    questions = tuple(sitting.question(exercise) for exercise in lab.exercises)
    return SubmissionResult(
        **common,
        status="error" if any(question.status == "error" for question in questions) else "graded",
        questions=questions,
        flags=(*submission.flags, *notebook.flags, *found.flags),
        seconds=time.monotonic() - started,
    )
