"""What grading comes to, as plain data: of one question, of one submission, of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

QuestionStatus = Literal["pass", "fail", "not run", "error"]
SubmissionStatus = Literal["graded", "rejected", "error"]


@dataclass(frozen=True)
class Finding:
    """Of an answer that failed, what its student is shown besides the reason; all lines are clean.

    Args:
        given: the arguments of the case, a line each.
        got, expected: the part of both values that shows the first difference; a drawing has several lines.
        slip: what kind of slip it was, instead of a hint.
    """

    given: tuple[str, ...] = ()
    got: str = ""
    expected: str = ""
    slip: str = ""
    hint: str = ""


@dataclass(frozen=True)
class QuestionResult:
    """One exercise of one submission.

    Args:
        exercise: its name, `01.top_p`.
        status: `not run` when this machine cannot run it (no GPU), `error` when the machinery
            failed: neither is a judgement on the answer.
        points: given; above 0 only on a pass, and less than `max_points` where the answer was near.
        reason: one line; what failed, with got and expected where there is a difference.
        flags: what an instructor should know, such as an edited test that was restored.
    """

    exercise: str
    status: QuestionStatus
    points: float
    max_points: float
    reason: str = ""
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    finding: Finding = Finding()

    def __post_init__(self):
        if not 0 <= self.points <= self.max_points:
            raise ValueError(f"points must be in [0, {self.max_points}], got {self.points}")
        if self.points and self.status != "pass":
            raise ValueError(f"points must be 0 unless the status is pass, got {self.points}, {self.status}")

    @property
    def outcome(self) -> str:
        """The status, or `near` for a pass that has earned a part of the points."""
        return "near" if 0 < self.points < self.max_points else self.status


@dataclass(frozen=True)
class SubmissionResult:
    """All exercises of one notebook.

    Args:
        status: `rejected` when the file was no notebook of this lab, `error` when the machinery
            failed and the submission has to be graded again.
        tier: the isolation that it was graded under, `landlock` or `namespace` (`none` if trusted).
    """

    student: str
    lab: str
    sha256: str
    status: SubmissionStatus
    tier: str
    questions: tuple[QuestionResult, ...] = ()
    reason: str = ""
    flags: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def points(self) -> float:
        return float(sum(question.points for question in self.questions))

    @property
    def max_points(self) -> float:
        return float(sum(question.max_points for question in self.questions))


@dataclass
class Outcome:
    """What a batch came to.

    Args:
        graded: how many were graded now, errors and rejected files included.
        skipped: how many had a grade already.
        left: how many have none yet, because of `interrupted` or `stopped`.
        changed: students who got other points or another status for the same file than before.
        kept: students whose grade stands, because grading them again failed.
        stopped: why the machinery could not go on; empty when it could.
    """

    graded: int = 0
    skipped: int = 0
    left: int = 0
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    interrupted: bool = False
    stopped: str = ""
