"""The command line of grading: `llmcourse grade`, `llmcourse gradebook` and `llmcourse labs`.

What a command needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmcourse.grading.printable import clean

if TYPE_CHECKING:
    from llmcourse.grading.records.adjustments import Row
    from llmcourse.grading.records.gradebook import Gradebook
    from llmcourse.grading.sandbox.policy import Tier

INTERRUPTED = 130
TIERS = ("auto", "landlock", "namespace")
CODES = (
    "Exit codes: 0 all are graded; 1 some were rejected or need a look, and are listed; 2 bad arguments, "
    "nothing to grade, or no isolation; 3 the machinery failed, run it again; 130 interrupted, run it "
    "again to go on."
)


def add_commands(commands: Any) -> None:
    """Adds them to the subparsers of the course's command line."""
    _add_grade(commands.add_parser("grade", help="grade students' notebooks", epilog=CODES))
    gradebook = commands.add_parser("gradebook", help="correct grades by hand, write reports again")
    actions = gradebook.add_subparsers(title="actions", required=True, metavar="{adjust,report}")
    _add_adjust(actions.add_parser("adjust", help="correct a student's points, with a reason"))
    report = actions.add_parser("report", help="write tables and pages again from the gradebook")
    report.set_defaults(run=run_report)
    _add_out(report)
    _add_inputs(report)
    labs = commands.add_parser("labs", help="labs: what there is, and notebooks for students")
    actions = labs.add_subparsers(title="actions", required=True, metavar="{status,release}")
    status = actions.add_parser("status", help="exercises, points, minutes, and whether labs are up to date")
    status.set_defaults(run=run_status)
    release = actions.add_parser("release", help="write a lab's notebook for students")
    release.set_defaults(run=run_release)
    release.add_argument("lab", metavar="LAB", help="such as 01_decoding")
    release.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="where to write it")
    release.add_argument("--force", action="store_true", help="overwrite a notebook that was changed")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the gradebook's folder")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        choices=("show", "hide"),
        help="whether students' pages show what answers failed with (default: as before; at first, show)",
    )


def _add_grade(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_grade)
    parser.add_argument(
        "submissions", type=Path, metavar="SUBMISSIONS", help="a folder of notebooks or of folders, or a zip"
    )
    _add_out(parser)
    parser.add_argument("--lab", metavar="NAME", help="such as 01_decoding (default: what the notebooks say)")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="submissions at a time, 1 GiB each (default: half the CPUs, ≤ 4)",
    )
    parser.add_argument("--regrade", action="store_true", help="grade again what has a grade")
    parser.add_argument(
        "--tier", default="auto", choices=TIERS, help="isolation (default: the best there is)"
    )
    parser.add_argument(
        "--i-trust-these-students", action="store_true", help="grade even where there is no isolation"
    )
    _add_inputs(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_adjust(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_adjust)
    parser.add_argument("student", metavar="STUDENT", help="an id, as in grades.json")
    parser.add_argument(
        "points", metavar="POINTS", help="2.5 sets them, +1 or -1 changes them, none: as if never corrected"
    )
    _add_out(parser)
    parser.add_argument("--exercise", metavar="NAME", help="such as 01.top_p (default: the total)")
    parser.add_argument("--lab", metavar="NAME", help="where the student has more than one")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for the student to read")


def run_grade(options: argparse.Namespace) -> int:
    """Grades what has no grade yet, then writes the reports."""
    from llmcourse.grading import assembly

    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}; leave it out for half the CPUs")
    assembly.apart(options.submissions, options.out)
    tier = assembly.choose_tier(options.tier, options.i_trust_these_students)
    known = assembly.known_labs()
    name, submissions = assembly.collect(options.submissions, options.lab, known)
    lab = assembly.judged_lab(name)
    return _grade(options, lab, submissions, tier)


def _grade(options: argparse.Namespace, lab: Any, submissions: list[Any], tier: Tier) -> int:
    from llmcourse.grading import assembly, batch
    from llmcourse.grading.records import reports
    from llmcourse.grading.records.folder import opened
    from llmcourse.grading.records.gradebook import GradebookError
    from llmcourse.grading.records.progress import progress
    from llmcourse.grading.records.summary import MACHINERY, summary

    shown = progress(options.quiet or options.json)
    settings = {"jobs": options.jobs or assembly.default_jobs(), "regrade": options.regrade}
    with opened(options.out) as gradebook:
        try:
            _decide_inputs(gradebook, options.inputs)
            judge = assembly.judge(tier, lab)
            outcome = batch.run(submissions, lab, gradebook, **judge, **settings, progress=shown)
            reports.write(gradebook, options.out)
        except KeyboardInterrupt:
            _leave("interrupted; what was graded is kept, run the same command again to go on")
        except (OSError, GradebookError) as error:
            print(f"error: {clean(str(error))}", file=sys.stderr)
            return MACHINERY
        students = {submission.student for submission in submissions}
        found = summary(lab.name, options.out, outcome, gradebook.rows(lab.name), students)
    print(found.to_json() if options.json else found.text())
    if trouble := found.trouble():
        print(trouble, file=sys.stderr)
    return found.exit_code


def _decide_inputs(gradebook: Gradebook, wish: str | None) -> None:
    if wish is not None:
        gradebook.show_inputs(wish == "show")


def _leave(message: str) -> NoReturn:
    """Ends the program while jobs are still at work, for which a usual end could wait or crash."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def run_adjust(options: argparse.Namespace) -> int:
    """Corrects points, writes the reports again, and says what changed."""
    from llmcourse.grading.records import reports
    from llmcourse.grading.records.folder import opened

    kind, points = change(options.points)
    if not options.reason.strip():
        raise ValueError("--reason must say why the points change, got nothing; the student will read it")
    with opened(options.out, new=False) as gradebook:
        before = find_row(gradebook, options.student, options.lab)
        lab, exercise = before.result.lab, options.exercise
        if exercise is not None and exercise not in before.exercises:
            known = ", ".join(before.exercises) or "none"
            raise ValueError(f"--exercise must be one of {known}, got {exercise!r}")
        if before.points is None and (exercise is not None or kind == "add"):
            raise ValueError(
                f"{clean(options.student)} has no points to change, the file could not be graded; "
                "set the total, such as 60, or grade another file"
            )
        gradebook.adjust(options.student, lab, exercise, kind, points, options.reason)
        after = find_row(gradebook, options.student, lab)
        reports.write(gradebook, options.out)
    print(f"{clean(options.student)}, {lab}: {points_of(before)} → {points_of(after)}")
    return 0


def change(text: str) -> tuple[str, float]:
    """What POINTS asks for, as an adjustment's kind and points.

    Raises:
        ValueError: it is no number and not `none`.
    """
    if text == "none":
        return "clear", 0.0
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not math.isfinite(points):
        raise ValueError(f"POINTS must be a number, +1 or -1 for a change, or none, got {clean(text, 40)!r}")
    return ("add" if text.strip()[0] in "+-" else "set"), points


def find_row(gradebook: Gradebook, student: str, lab: str | None) -> Row:
    """A student's row.

    Args:
        lab: which, or `None` where there is one only.

    Raises:
        ValueError: there is none, or more than one.
    """
    rows = [row for name in gradebook.labs() for row in gradebook.rows(name)]
    found = [row for row in rows if row.result.student == student and lab in (None, row.result.lab)]
    if len(found) > 1:
        names = ", ".join(row.result.lab for row in found)
        raise ValueError(f"--lab must say which lab of {clean(student, 80)}, one of {names}, got none")
    if not found:
        known = sorted({row.result.student for row in rows if lab in (None, row.result.lab)})
        close = ", ".join(clean(name, 80) for name in difflib.get_close_matches(student, known))
        remedy = f"did you mean {close}?" if close else "grades.json has their ids"
        raise ValueError(f"STUDENT must be in the gradebook, got {clean(student, 80)!r}; {remedy}")
    return found[0]


def points_of(row: Row) -> str:
    given = "no points" if row.points is None else f"{row.points:g}"
    return f"{given} of {row.max_points:g}"


def run_report(options: argparse.Namespace) -> int:
    """Writes the reports again."""
    from llmcourse.grading.records import reports
    from llmcourse.grading.records.folder import opened

    with opened(options.out, new=False) as gradebook:
        _decide_inputs(gradebook, options.inputs)
        reports.write(gradebook, options.out)
    print(f"grades: {options.out / 'grades.csv'}, overview: {options.out / 'index.html'}")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Lists labs and their exercises; 1 where a lab is not the one that its solution gives."""
    from llmcourse.grading import assembly
    from llmcourse.grading.exercises import catalogue

    troubled, made_here = False, assembly.SOLUTIONS.is_dir()  # without solutions nobody makes labs
    for lab, exercises in catalogue.labs().items():
        reasons = assembly.lab_status(lab) if made_here else []
        troubled |= bool(reasons)
        points, minutes = (sum(getattr(e, name) for e in exercises) for name in ("points", "minutes"))
        print(f"{lab}: {len(exercises)} exercises, {points:g} points, {minutes} minutes")
        for exercise in exercises:
            about = f"{exercise.points:3g} points {exercise.minutes:4d} min  level {exercise.level}"
            print(f"  {exercise.name:<20} {about}  {exercise.title}")
        if made_here:
            print("\n".join(f"  ✗ {reason}" for reason in reasons) or "  ✓ the student version is up to date")
    return 1 if troubled else 0


def run_release(options: argparse.Namespace) -> int:
    """Writes a lab for students where nothing would be lost."""
    from llmcourse.grading import assembly

    target = options.to / f"{options.lab}.ipynb"
    notebook = assembly.student_notebook(options.lab)
    if target.exists() and target.read_bytes() != notebook and not options.force:
        raise ValueError(f"{target} was changed; add --force to overwrite it, or choose another --to")
    options.to.mkdir(parents=True, exist_ok=True)
    draft = options.to / f".{target.name}.{os.getpid()}"
    draft.write_bytes(notebook)
    draft.replace(target)
    print(target)
    return 0
