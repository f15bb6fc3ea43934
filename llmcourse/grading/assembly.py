"""What grades on this machine: the isolation there is, the lab that is meant, and its judge's view of it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.grading.sandbox.policy import Tier, available_tier

if TYPE_CHECKING:
    from llmcourse.grading.intake.submissions import Submission

COURSE = Path(__file__).resolve().parents[2]
LABS, SOLUTIONS = COURSE / "labs", COURSE / "solutions"
# How a notebook's JSON names an exercise: its cell's first line, a check of it, or nbgrader's grade_id.
MENTION = re.compile(rb"""(?:# Exercise |check\(\\?["']|"grade_id": ?")(\d\d)[.-]\w""")
DOCTOR = "see `llmcourse doctor --grading`"


def choose_tier(wanted: str, trusted: bool) -> Tier:
    """The isolation to grade in.

    Args:
        wanted: `landlock`, `namespace`, or `auto` for the best there is.
        trusted: whether to grade even without any.

    Raises:
        ValueError: this machine has not what is wanted, or has none and students are not trusted.
    """
    best, reasons = available_tier()
    why = "; ".join(reasons)
    if wanted != "auto" and Tier[wanted.upper()] > best:
        has = best.name.lower()
        raise ValueError(f"--tier must be one that this machine has ({has}), got {wanted}: {why}; {DOCTOR}")
    if best is Tier.NONE and not trusted:
        raise ValueError(
            f"students' code cannot be isolated on this machine: {why}; {DOCTOR}, "
            "or add --i-trust-these-students"
        )
    if best is Tier.NONE:
        print("without isolation: students' code runs with your rights", file=sys.stderr)
    return best if wanted == "auto" else Tier[wanted.upper()]


def collect(path: Path, lab: str | None, known: Sequence[str]) -> tuple[str, list[Submission]]:
    """The lab and what was handed in for it.

    Args:
        lab: its name, or `None` to read it from the notebooks.
        known: the labs that can be graded.

    Raises:
        ValueError: there is no such lab, nothing was handed in, or the notebooks do not agree on a lab.
    """
    from llmcourse.grading.intake import submissions as intake

    if lab is not None and lab not in known:
        raise ValueError(f"--lab must be one of {', '.join(known)}, got {lab!r}")
    submissions = intake.collect(path, lab or known[0])
    if lab is None:
        lab = named_lab(submissions, known)
        if lab != known[0]:  # a lab's name is cut from file names to get a student's
            submissions = intake.collect(path, lab)
    return lab, submissions


def named_lab(submissions: Iterable[Any], known: Sequence[str]) -> str:
    """The lab whose exercises most of the notebooks name.

    Raises:
        ValueError: no lab is named by more than half of those that name any.
    """
    by_chapter = {name[:2].encode(): name for name in known}
    named: Counter[str] = Counter()
    count = 0
    for submission in submissions:
        if not submission.problem:
            found = {by_chapter[c] for c in MENTION.findall(submission.read()) if c in by_chapter}
            named.update(found)
            count += bool(found)
    best = [name for name, votes in named.items() if votes * 2 > count]
    if len(best) != 1:
        said = ", ".join(f"{name} ({votes} notebooks)" for name, votes in sorted(named.items())) or "none"
        raise ValueError(
            f"the notebooks do not say which lab they are of, they name: {said}; "
            f"add --lab NAME, one of {', '.join(known)}"
        )
    return best[0]


def known_labs() -> list[str]:
    """The labs that can be graded."""
    from llmcourse.grading.exercises import catalogue

    return list(catalogue.labs())


def judged_lab(name: str) -> Any:
    """A lab as the judge knows it.

    Raises:
        ValueError: the notebook that was handed out is not in the course's folder.
    """
    from llmcourse.grading.cells.lab_text import lab_text
    from llmcourse.grading.exercises import catalogue
    from llmcourse.grading.judge import Lab

    return Lab(name, catalogue.labs()[name], lab_text(LABS / f"{name}.ipynb"))


def judge(tier: Tier, lab: Any) -> dict[str, Any]:
    """What a batch needs of the judge of a lab: how to grade, where workers come from, its version, and
    which exercises it can run."""
    from llmcourse.grading.judge import grade, version
    from llmcourse.grading.process.nursery import Nursery

    runnable = [exercise.name for exercise in lab.exercises if not exercise.obstacle()]
    nursery = partial(Nursery, tier)
    return {"grade": grade, "nursery": nursery, "version": version(lab), "runnable": runnable}


def lab_status(lab: str) -> list[str]:
    """Why a lab's student version is not the one that its solution gives; empty when it is."""
    from llmcourse.grading import labs

    solution = SOLUTIONS / f"{lab}.ipynb"
    if not solution.is_file():
        return [f"solutions/{solution.name} is not there; run `make labs`"]
    return labs.stale(solution, LABS / solution.name)


def student_notebook(lab: str) -> bytes:
    """The notebook for students that a lab's solution gives.

    Raises:
        ValueError: there is no such solution, or no lab can be made of it.
    """
    from llmcourse.grading import labs

    known = sorted(path.stem for path in SOLUTIONS.glob("*.ipynb"))
    if lab not in known:
        there_are = ", ".join(known) or "none in solutions/: run `make labs`"
        raise ValueError(f"LAB must be one that has a solution ({there_are}), got {lab!r}")
    with tempfile.TemporaryDirectory() as folder:
        made = labs.release(SOLUTIONS / f"{lab}.ipynb", Path(folder, f"{lab}.ipynb"))
        return made.read_bytes()


def default_jobs() -> int:
    """Half the processors, since each job's worker and judge compute in turn; each may take 1 GiB."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def apart(submissions: Path, out: Path) -> None:
    """Refuses to write grades among what was handed in, where the next start would find them.

    Raises:
        ValueError: one folder is the other or lies in it.
    """
    inside, outside = out.resolve(), submissions.resolve()
    if outside == inside or outside in inside.parents:
        raise ValueError(f"--out must lie outside {submissions}, got {out}; choose a folder beside it")
