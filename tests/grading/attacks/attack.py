"""What an attack is: something that a student hands in, and what must come of it."""

from __future__ import annotations

import copy
import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmcourse.grading.intake.files import MAX_SHOWN
from llmcourse.grading.printable import clean

LAB = "01_decoding"
Book = dict[str, Any]

# What the code of many attacks begins with: it tries things and says how that went in the one line that
# an answer may leave behind, the message of its exception.
TRIES = r"""
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
won, held = [], []

def attempt(name, action, *arguments):
    try:
        result = action(*arguments)
    except BaseException as error:
        held.append(f"{name}: {type(error).__name__}")
        return
    (held if result is False else won).append(name)
    if won:  # one is enough, and where nothing stops them two hundred would take their time
        tell()

def refused(result):
    '''For C functions: False when the kernel said no.'''
    return result >= 0 and result

def number(x86, arm):
    return {"x86_64": x86, "aarch64": arm}[os.uname().machine]

def called(x86, arm, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return libc.syscall(ctypes.c_long(number(x86, arm)), *words) >= 0

def tell():
    message = "BREA" + "CH: " + ", ".join(won) if won else f"held {len(held)} tries"
    raise RuntimeError(message)
"""
HELD = r"RuntimeError: held \d+ tries"


@dataclass(frozen=True)
class Places:
    """Where things lie that a student must not reach; attacks are written by somebody who knows.

    Args:
        submissions: the folder that is graded.
        out: the folder with the gradebook.
        home: of whoever grades, with a secret in it.
        temporary: where the grader makes its temporary folders.
        canaries: a folder anybody can write to; whatever appears there was written by an attack.
    """

    submissions: Path
    out: Path
    home: Path
    temporary: Path
    canaries: Path

    def filled_in(self, text: str) -> str:
        """`text` with `<<out>>` and the like replaced by paths."""
        repository = Path(__file__).resolve().parents[3]
        values = vars(self) | {"repository": repository, "package": repository / "llmcourse"}
        for name, value in values.items():
            text = text.replace(f"<<{name}>>", str(value))
        return text


@dataclass(frozen=True)
class Scene:
    """What an attack is built from: an honest notebook, which it may change, and where things lie."""

    honest: Book
    places: Places
    student: str

    def book(self) -> Book:
        """A copy of the honest notebook."""
        return copy.deepcopy(self.honest)

    def write(self, book: Book | bytes, name: str = "") -> Path:
        """Hands a notebook in; under another name than the student's, if given."""
        path = self.places.submissions / (name or f"{self.student}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(book if isinstance(book, bytes) else json.dumps(book).encode())
        return path


@dataclass(frozen=True)
class Attack:
    """One submission, and what must come of it.

    Args:
        name: the student's id; begins with the number in the list of attacks.
        place: hands it in.
        numbers: of the list of attacks.
        zero: exercises that must get no points, and what their reasons must say (a pattern).
        lost: the status of the others: they pass in an honest rest.
        status: of the submission.
        reason: of a submission that is rejected, a pattern.
        flags: patterns, each of which some flag must match.
        passes: exercises that must pass although the rest does not.
        within_s: what grading it may take, our own work included.
        found_by: finds the submission where it cannot go by the student's id.
    """

    name: str
    place: Callable[[Scene], None]
    numbers: tuple[int, ...]
    zero: Mapping[str, str] = field(default_factory=dict)
    rest: str = "pass"
    status: str = "graded"
    reason: str = ""
    flags: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    within_s: float = 120.0
    found_by: Callable[[dict], bool] | None = None


def new_name(text: str) -> Callable[[dict], bool]:
    """Finds the result of a file whose name is no student's: it goes by a number made from its name."""
    shown = clean(f"{text}.ipynb", MAX_SHOWN)
    student = f"rejected-{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
    return lambda result: result["student"] == student


def text_of(cell: dict) -> str:
    """A cell's source, which JSON may hold as one text or as a list of lines."""
    return "".join(cell["source"])


def cell_of(book: Book, exercise: str, check: bool = False) -> dict:
    """The cell that answers an exercise, or the one that checks it."""
    wanted = exercise.replace(".", "-") + ("-check" if check else "")
    (cell,) = [c for c in book["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == wanted]
    return cell


def answered(exercise: str, code: str) -> str:
    """The source of a cell that answers an exercise; `TRIES` stands for its code."""
    return f"# Exercise {exercise}\n{textwrap.dedent(code).strip()}\n".replace(
        "TRIES\n", f"{TRIES.strip()}\n"
    )


def by_code(
    name: str, numbers: tuple[int, ...], code: Mapping[str, str], alone: bool = False, **expected: Any
) -> Attack:
    """An attack in place of some answers.

    Args:
        code: by exercise; what stands in its cell.
        alone: the other answers are left out, which is quicker to grade.
    """

    def place(scene: Scene) -> None:
        book = scene.book()
        for exercise, source in code.items():
            cell_of(book, exercise)["source"] = scene.places.filled_in(answered(exercise, source))
        if alone:
            kept = {exercise.replace(".", "-") for exercise in code}
            book["cells"] = [cell for cell in book["cells"] if _grade_id(cell) in kept | {"01-setup"}]
        scene.write(book)

    return Attack(name, place, numbers, rest="fail" if alone else "pass", **expected)


def by_edit(name: str, numbers: tuple[int, ...], edit: Callable[[Book], None], **expected: Any) -> Attack:
    """An attack on the notebook: `edit` changes an honest one."""

    def place(scene: Scene) -> None:
        book = scene.book()
        edit(book)
        scene.write(book)

    return Attack(name, place, numbers, **expected)


def _grade_id(cell: dict) -> str:
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")
