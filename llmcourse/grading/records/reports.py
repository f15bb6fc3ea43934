"""Grades as files: a table, all details, a page a student and an overview, made from the gradebook.

Each is written beside its place and renamed, so a reader finds the old one or the new one, whole.
The same gradebook gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmcourse.grading.printable import clean, escape_acting
from llmcourse.grading.records.adjustments import Row
from llmcourse.grading.records.feedback import file_name, student_page
from llmcourse.grading.records.gradebook import Gradebook
from llmcourse.grading.records.overview import overview

PARTIAL = ".partial"  # where files are until they are whole
# What Excel, LibreOffice and Sheets take for a formula, at the start of a cell, or behind what is the
# separator of cells in countries with a decimal comma. Full-width and small forms count as well.
FORMULA = re.compile(r"(^|;)(?=[\s\u200c\u200d]*(?P<sign>[=+@\u2212＝＋－＠﹦﹢﹣﹫-]))")


def write(gradebook: Gradebook, folder: Path) -> None:
    """Writes grades.csv, grades.json, index.html and feedback/STUDENT.html; leaves equal files alone.

    Raises:
        OSError: the folder cannot be written or is full; files that are there stay whole.
    """
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # what a kill has left
    partial.mkdir(mode=0o700)
    (folder / "feedback").mkdir(mode=0o700, exist_ok=True)
    try:
        labs = {lab: gradebook.rows(lab) for lab in gradebook.labs()}
        for name, data in files(labs, gradebook.shows_inputs()):
            target = folder / name
            with suppress(OSError):
                if target.read_bytes() == data:
                    continue
            draft = partial / "draft"
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            draft.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def files(labs: dict[str, list[Row]], inputs: bool = True) -> Iterator[tuple[str, bytes]]:
    """Name and content of every report.

    Args:
        labs: rows by lab.
        inputs: whether students see what their answers failed with.
    """
    rows = [row for of_lab in labs.values() for row in of_lab]
    yield "grades.csv", grades_csv(rows)
    yield "grades.json", grades_json(rows).encode()
    students: dict[str, list[Row]] = {}
    for row in rows:
        students.setdefault(row.result.student, []).append(row)
    for student, of_student in students.items():
        yield f"feedback/{file_name(student)}", student_page(of_student, inputs).encode()
    yield "index.html", overview(labs).encode()


def grades_csv(rows: list[Row]) -> bytes:
    """A row a student and lab; a submission without a grade has empty cells for points, not 0.

    UTF-8 with a byte order mark: Excel takes a file without one for the local 8-bit code and spoils
    every name that is not in it. pandas reads it with `encoding="utf-8-sig"`; programs are better off
    with grades.json, where names are exact: here a text that a spreadsheet would compute gets a `'`.
    """
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    head = ["student", "lab", "status", "points", "max_points"]
    tail = ["adjusted", "flags", "tier", "reason", "sha256", "version", "graded_at"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([*head, *map(cell, exercises), *tail])
    for row in rows:
        writer.writerow([*_head(row), *_points(row, exercises), *_tail(row)])
    return out.getvalue().encode("utf-8-sig")


def _head(row: Row) -> list[str | float]:
    points = "" if row.points is None else row.points
    return [cell(row.result.student), cell(row.result.lab), row.result.status, points, row.max_points]


def _points(row: Row, exercises: list[str]) -> list[str | float]:
    """Of each exercise; empty where nobody has looked at an answer."""
    known = {
        mark.question.exercise: mark.points
        for mark in row.marks
        if mark.adjusted or mark.question.status in ("pass", "fail")
    }
    return [known.get(name, "") for name in exercises]


def _tail(row: Row) -> list[str]:
    result = row.result
    adjusted = "; ".join(f"{a.exercise or 'total'}: {a}, {a.reason}" for a in row.adjustments)
    waiting = (f"{mark.question.exercise}: {mark.question.reason}" for mark in row.waiting)
    texts = (adjusted, "; ".join((*row.flags, *waiting)), result.tier, result.reason, result.sha256)
    return [cell(value) for value in (*texts, row.version, row.graded_at)]


def cell(value: str) -> str:
    """Text that a spreadsheet shows and does not compute."""
    return FORMULA.sub(r"\1'", clean(value))


def grades_json(rows: list[Row]) -> str:
    """Everything that the gradebook knows of each student's latest submission, except its secret."""
    details = [_details(row) for row in rows]
    return escape_acting(json.dumps({"grades": details}, ensure_ascii=False, indent=1)) + "\n"


def _details(row: Row) -> dict[str, Any]:
    marks = {mark.question.exercise: mark.points for mark in row.marks}
    details = asdict(row.result)
    details["questions"] = [
        question | {"adjusted_points": marks[question["exercise"]]} for question in details["questions"]
    ]
    return {
        **details,
        "points": row.points,
        "max_points": row.max_points,
        "version": row.version,
        "graded_at": row.graded_at,
        "adjustments": [asdict(adjustment) for adjustment in row.adjustments],
    }
