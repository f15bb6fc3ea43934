"""Results and submissions to test with: nothing of them was ever run."""

import time
from contextlib import contextmanager
from dataclasses import dataclass

from llmcourse.grading.results import Finding, QuestionResult, SubmissionResult

LAB = "01_decoding"
EXERCISES = {"01.softmax": 2.0, "01.top_p": 3.0, "01.beam": 5.0}


@dataclass(frozen=True)
class Handed:
    """What intake makes of a file, as far as a batch looks at it."""

    student: str
    sha256: str = "ab"
    problem: str | None = None
    flags: tuple[str, ...] = ()
    data: bytes = b""

    def read(self):
        return self.data


@dataclass(frozen=True)
class FakeLab:
    name: str = LAB


NOTHING = Finding()
FOUND = Finding(("logits = float32 (1, 3) [[1, 2, 3]]", "p = 0.5"), "[1, 2, 3]", "[-inf, 2, 3]", hint="Sort")


def question(name="01.top_p", status="pass", reason="", flags=(), max_points=None, finding=NOTHING):
    max_points = EXERCISES.get(name, 1.0) if max_points is None else max_points
    points = max_points if status == "pass" else 0.0
    return QuestionResult(name, status, points, max_points, reason, tuple(flags), 0.5, finding)


def result(student="ann", sha256="ab", passed=("01.softmax", "01.top_p"), status="graded", **settings):
    """Of a submission that passed these exercises and failed the others."""
    questions = [question(name, "pass" if name in passed else "fail") for name in EXERCISES]
    values = {"tier": "landlock", "lab": LAB, "questions": tuple(questions)} | settings
    if status == "rejected":
        values["questions"] = ()
    return SubmissionResult(student=student, sha256=sha256, status=status, **values)


def graded(submission, lab, nursery, secret):
    """A stand-in for the judge: what is passed depends on the file and the secret, as for a real one."""
    time.sleep(0.0005)
    number = int(submission.sha256, 16) + secret[0]
    passed = [name for bit, name in enumerate(EXERCISES) if number >> bit & 1]
    return result(submission.student, submission.sha256, passed, lab=lab.name, tier="none")


@contextmanager
def no_nursery():
    yield None
