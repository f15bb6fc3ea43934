"""Points that are kept: one SQLite file a course, whole after a kill at any instant.

A submission is one transaction; what was graded stands, what was not is graded at the next start.
The journal is SQLite's rollback journal with full synchronisation, not a write-ahead log: that needs
memory shared between processes, which network folders do not have, and a second file beside the first
that a copy by hand would miss. One writer with a transaction a second does not need its speed.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llmcourse.grading.records.adjustments import Adjustment, Kind, Row
from llmcourse.grading.results import Finding, QuestionResult, SubmissionResult

FILE_NAME = "gradebook.sqlite"
SCHEMA = 2
# What a gradebook of an earlier schema lacks.
CHANGES = {1: "ALTER TABLE questions ADD COLUMN finding TEXT NOT NULL DEFAULT '{}'"}
BUSY_S = 10.0  # how long another program that reads the file is waited for
MAX_TEXT = 4000  # characters of one reason; the judge's are far shorter
MAX_FLAGS = 50
MAX_ARGUMENTS, MAX_SHOWN = 20, 1000  # of a case that failed, and characters of each
SMALLEST_BYTES = 512  # of a database; SQLite takes what is smaller for an empty one

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, lab TEXT NOT NULL, sha256 TEXT NOT NULL,
    version TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('graded', 'rejected', 'error')),
    tier TEXT NOT NULL, reason TEXT NOT NULL, flags TEXT NOT NULL, seconds REAL NOT NULL,
    graded_at TEXT NOT NULL, UNIQUE (student, lab, sha256, version));
CREATE TABLE questions (
    submission INTEGER NOT NULL REFERENCES submissions ON DELETE CASCADE, position INTEGER NOT NULL,
    exercise TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('pass', 'fail', 'not run', 'error')),
    points REAL NOT NULL CHECK (points BETWEEN 0 AND max_points), max_points REAL NOT NULL,
    reason TEXT NOT NULL, flags TEXT NOT NULL, seconds REAL NOT NULL, finding TEXT NOT NULL,
    PRIMARY KEY (submission, exercise));
CREATE TABLE latest (
    student TEXT NOT NULL, lab TEXT NOT NULL, submission INTEGER NOT NULL REFERENCES submissions,
    PRIMARY KEY (student, lab));
CREATE TABLE adjustments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, student TEXT NOT NULL, lab TEXT NOT NULL, exercise TEXT,
    kind TEXT NOT NULL CHECK (kind IN ('add', 'set', 'clear')), points REAL NOT NULL,
    reason TEXT NOT NULL, made_at TEXT NOT NULL);
"""
RESULT_COLUMNS = "student, lab, sha256, status, tier, reason, flags, seconds"
QUESTION_COLUMNS = "exercise, status, points, max_points, reason, flags, seconds, finding"

Recorded = Literal["new", "same", "changed", "kept"]


class GradebookError(ValueError):
    """A file that is no gradebook of this version, or that cannot be read or written."""


class Gradebook:
    """The grades of a course; a context manager.

    Args:
        path: of the SQLite file, made when it is not there, for its owner's eyes only (mode 600).

    Raises:
        GradebookError: the file is no gradebook, one of another version, or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise GradebookError(
                f"{path} cannot be written: {error.strerror}; choose another --out"
            ) from None
        with suppress(OSError):  # it holds a secret; a copy may have been made with other rights
            path.chmod(0o600)
        if 0 < path.stat().st_size < SMALLEST_BYTES:
            raise self._foreign("file is not a database")
        self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        names = {name for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not names:
            self._create()
        elif "meta" not in names:
            raise GradebookError(f"{self.path} is a database but no gradebook; choose another --out")
        ((version,),) = self._read("SELECT value FROM meta WHERE key = 'schema'") or [("none",)]
        if version in CHANGES:
            version = self._brought_up_to_date()
        if version != SCHEMA:
            raise GradebookError(
                f"{self.path} must be of schema version {SCHEMA}, got {version}; "
                "use the llmcourse that wrote it, or choose another --out"
            )
        for setting in ("foreign_keys = ON", "journal_mode = DELETE", "synchronous = FULL"):
            self._read(f"PRAGMA {setting}")

    def _create(self) -> None:
        with self._transaction():
            if self._read("SELECT name FROM sqlite_master"):
                return  # another program was quicker
            for statement in TABLES.strip().split(";\n"):
                self._db.execute(statement)
            meta = [("schema", SCHEMA), ("secret", secrets.token_bytes(32))]
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta)

    def _brought_up_to_date(self) -> int:
        with self._transaction():
            ((version,),) = self._read("SELECT value FROM meta WHERE key = 'schema'")
            while version in CHANGES:
                self._db.execute(CHANGES[version])
                version += 1
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (version,))
        return version

    def __enter__(self) -> Gradebook:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def secret(self) -> bytes:
        """32 random bytes, made once with the gradebook: the seeds of all questions come from them."""
        ((secret,),) = self._read("SELECT value FROM meta WHERE key = 'secret'")
        return secret

    def shows_inputs(self) -> bool:
        """Whether students' pages show the inputs that their answers failed with."""
        return not self._read("SELECT 1 FROM meta WHERE key = 'hides inputs'")

    def show_inputs(self, shown: bool) -> None:
        """Decides it for all pages that are written from now on."""
        statement = "DELETE FROM meta WHERE key = ?" if shown else "INSERT OR REPLACE INTO meta VALUES (?, 1)"
        with self._transaction():
            self._db.execute(statement, ("hides inputs",))

    def done(self, student: str, lab: str, sha256: str, version: str, runnable: Collection[str] = ()) -> bool:
        """Whether this submission has a grade of this version of the grader; an error is none.

        Args:
            runnable: exercises that can be run now: where one of them was not, the grade is not complete.
        """
        key = (_storable(student), lab, sha256, version)
        found = self._read(f"SELECT id FROM submissions WHERE {_KEY} AND status <> 'error'", key)
        left = "SELECT exercise FROM questions WHERE submission = ? AND status = 'not run'"
        return bool(found) and not any(name in runnable for (name,) in self._read(left, found[0]))

    def record(self, result: SubmissionResult, version: str) -> Recorded:
        """Keeps one submission's result, in one transaction, as the student's latest.

        Returns:
            how it compares with an earlier result of the same file and version. An error never
            takes the place of a grade: then the grade is `kept`.
        """
        if any(question.status == "error" for question in result.questions):
            result = replace(result, status="error")
        key = (_storable(result.student), result.lab, result.sha256, version)
        with self._transaction():
            found = self._read(f"SELECT id, status FROM submissions WHERE {_KEY}", key)
            recorded: Recorded = "new"
            if found and (result.status == "error" and found[0][1] != "error"):
                recorded = "kept"
                number = found[0][0]
            else:
                if found:
                    before = _gist(self._result(found[0][0]))
                    recorded = "same" if before == _gist(result) else "changed"
                number = self._write(result, version, found[0][0] if found else None)
            self._point(key, number)
        return recorded

    def make_latest(self, student: str, lab: str, sha256: str, version: str) -> None:
        """What is graded already counts again, as when a student hands in an earlier file once more."""
        key = (_storable(student), lab, sha256, version)
        ((number,),) = self._read(f"SELECT id FROM submissions WHERE {_KEY}", key)
        if not self._read("SELECT 1 FROM latest WHERE submission = ?", (number,)):
            with self._transaction():
                self._point(key, number)

    def adjust(
        self, student: str, lab: str, exercise: str | None, kind: Kind, points: float, reason: str
    ) -> None:
        """Adds a correction by hand, which later gradings leave alone.

        Args:
            exercise: the one whose points change, or `None` for the total.
            kind: `set` to this many points, `add` them, or `clear` the earlier corrections.
        """
        values = (_storable(student), lab, exercise, kind, points, _storable(reason), _now())
        with self._transaction():
            self._db.execute(
                "INSERT INTO adjustments (student, lab, exercise, kind, points, reason, made_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def labs(self) -> list[str]:
        return [name for (name,) in self._read("SELECT DISTINCT lab FROM latest ORDER BY lab")]

    def rows(self, lab: str) -> list[Row]:
        """The latest submission of each student, by student, with its corrections."""
        found = self._read(
            "SELECT id, version, graded_at FROM submissions JOIN latest ON id = latest.submission "
            "WHERE latest.lab = ? ORDER BY latest.student",
            (lab,),
        )
        usual = self._exercises(lab)
        rows = []
        for number, version, graded_at in found:
            result = self._result(number)
            own = {question.exercise: question.max_points for question in result.questions}
            corrections = self._adjustments(result.student, lab)
            rows.append(Row(result, version, graded_at, own or usual, corrections))
        return rows

    def _exercises(self, lab: str) -> dict[str, float]:
        """Names and points, as the submission that was graded last has them."""
        return dict(
            self._read(
                "SELECT exercise, max_points FROM questions WHERE submission = (SELECT id FROM submissions "
                "JOIN questions ON submission = id WHERE lab = ? ORDER BY graded_at DESC, id DESC LIMIT 1) "
                "ORDER BY position",
                (lab,),
            )
        )

    def _result(self, number: int) -> SubmissionResult:
        (row,) = self._read(f"SELECT {RESULT_COLUMNS} FROM submissions WHERE id = ?", (number,))
        student, lab, sha256, status, tier, reason, flags, seconds = row
        questions = tuple(
            QuestionResult(*values[:5], tuple(json.loads(values[5])), values[6], _finding(values[7]))
            for values in self._read(
                f"SELECT {QUESTION_COLUMNS} FROM questions WHERE submission = ? ORDER BY position", (number,)
            )
        )
        flags = tuple(json.loads(flags))
        return SubmissionResult(student, lab, sha256, status, tier, questions, reason, flags, seconds)

    def _adjustments(self, student: str, lab: str) -> tuple[Adjustment, ...]:
        found = self._read(
            "SELECT exercise, kind, points, reason, made_at FROM adjustments "
            "WHERE student = ? AND lab = ? ORDER BY id",
            (student, lab),
        )
        return tuple(Adjustment(*values) for values in found)

    def _write(self, result: SubmissionResult, version: str, number: int | None) -> int:
        """Inserts a result, or puts it in the place of an earlier one; returns its number."""
        texts = (_storable(result.reason), _flags(result.flags), result.seconds, _now())
        values = (_storable(result.student), result.lab, result.sha256, result.status, result.tier, *texts)
        columns = f"{RESULT_COLUMNS}, graded_at, version, id"
        number = self._db.execute(  # what is replaced takes its questions with it
            f"INSERT OR REPLACE INTO submissions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, version, number),
        ).lastrowid
        self._db.executemany(
            f"INSERT INTO questions (submission, position, {QUESTION_COLUMNS}) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(number, place, *_question(question)) for place, question in enumerate(result.questions)],
        )
        return number

    def _point(self, key: tuple[str, ...], number: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?)", (*key[:2], number))

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._explained():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            remedy = "free some space, or see that it can be written, and run the same command again"
            raise GradebookError(f"{self.path}: {error}; {remedy}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # a fault of this module's
            raise self._foreign(str(error)) from error

    def _foreign(self, reason: str) -> GradebookError:
        remedy = "restore it from a copy, or choose another --out"
        return GradebookError(f"{self.path} is no gradebook: {reason}; {remedy}")


_KEY = "student = ? AND lab = ? AND sha256 = ? AND version = ?"


def _gist(result: SubmissionResult) -> tuple:
    """What a student would notice if it changed."""
    return result.status, tuple((q.exercise, q.status, q.points, q.max_points) for q in result.questions)


def _question(question: QuestionResult) -> tuple:
    points = (question.exercise, question.status, question.points, question.max_points)
    finding = json.dumps(_told(question.finding))
    return (*points, _storable(question.reason), _flags(question.flags), question.seconds, finding)


def _told(finding: Finding) -> dict[str, Any]:
    """What it says, within bounds."""
    told = {name: value for name, value in asdict(finding).items() if value}
    given = told.pop("given", ())[:MAX_ARGUMENTS]
    texts = {name: text[:MAX_SHOWN] for name, text in told.items()}
    return texts | ({"given": [line[:MAX_SHOWN] for line in given]} if given else {})


def _finding(text: str) -> Finding:
    told = json.loads(text)
    return Finding(**told | {"given": tuple(told.get("given", ()))})


def _flags(flags: Sequence[str]) -> str:
    return json.dumps([_storable(flag) for flag in flags[:MAX_FLAGS]], ensure_ascii=False)


def _storable(text: str) -> str:
    """Within bounds, and UTF-8: file names and messages may hold half surrogates."""
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
