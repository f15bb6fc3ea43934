"""Whose submission it is: a student's id out of the names of folders and files.

    alice.ipynb · alice_01_decoding.ipynb · 01_decoding-alice (1).ipynb     a notebook by itself: its name
    alice/anything.ipynb · submitted/alice/01_decoding/01_decoding.ipynb    in a folder: the folder's
    Ann Lee_1234567_assignsubmission_file_/x.ipynb                          from Moodle: Ann Lee_1234567

Moodle's number stays: two students may share a name. An id may be written in any script; what could
be a path, a formula, markup or a command is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from llmcourse.grading.printable import clean

MAX_ID = 100
ALLOWED = "letters, digits, spaces and . _ - ' ’ · , ( ) @ +"
PUNCTUATION = frozenset(" ._-'’·・,()@+\u200c\u200d")
OWN_FOLDER, OWN = "my_labs", "you"  # where `make lab` puts copies, and whose it is who grades them
MOODLE = re.compile(r"(?P<student>.*_\d+)_assignsubmission_(?:file|onlinetext)_?.*", re.DOTALL)
# What browsers and editors add to the name of a second copy.
COPY = re.compile(r"[\s_-]*(?:\(\d+\)|-\s*copy\s*\d*|-\s*副本)$", re.IGNORECASE)
SEPARATORS = " \t_-.,"
EXTENSION = re.compile(r"(?P<stem>.+)\.ipynb(?:\.txt|\.json)?", re.IGNORECASE | re.DOTALL)
ZIP = re.compile(r"(?P<stem>.+)\.zip", re.IGNORECASE | re.DOTALL)


def student_id(text: str) -> str:
    """`text` as a student's id: in Unicode's composed form (NFC), without blanks around it.

    Raises:
        ValueError: it is empty, too long, or not made of `ALLOWED` beginning with a letter or digit.
    """
    student = unicodedata.normalize("NFC", text[: 4 * MAX_ID]).strip(" ")
    shown = clean(student, MAX_ID)
    if not student:
        raise ValueError("a student id must not be empty")
    if len(student) > MAX_ID:
        raise ValueError(f"a student id must have at most {MAX_ID} characters, got {shown}")
    if not _is_letter(student[0]):
        raise ValueError(f"a student id must begin with a letter or digit, got {shown}")
    if ".." in student or not all(_may_stand(character) for character in student):
        raise ValueError(f"a student id must be made of {ALLOWED} (and no ..), got {shown}")
    return student


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def _may_stand(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in PUNCTUATION


def sameness(student: str) -> str:
    """Equal for ids that a person, or a disk that ignores case, would take for one."""
    return unicodedata.normalize("NFKC", student).casefold()


def without_lab(stem: str, lab: str) -> str:
    """A file's name without the lab's: `alice_01_decoding (1)` → `alice`; empty when nothing is left."""
    stem = COPY.sub("", unicodedata.normalize("NFC", stem))
    edge = f"[{re.escape(SEPARATORS)}]+"
    name = re.escape(lab)
    return re.sub(rf"^{name}(?:{edge}|$)|(?:^|{edge}){name}$", "", stem, flags=re.IGNORECASE)


def stem_of(name: str) -> str:
    """A notebook's or archive's name without its ending, `x.ipynb.txt` of some browsers included."""
    match = EXTENSION.fullmatch(name) or ZIP.fullmatch(name)
    return match["stem"] if match else name


def moodle_student(name: str) -> str | None:
    """The student in `Ann Lee_1234567_assignsubmission_file_`, None in other names."""
    match = MOODLE.fullmatch(name)
    return match["student"] if match else None


def student_of(parts: Sequence[str], lab: str, outer: Sequence[str] = (), wrapped: int = 0) -> str:
    """The id of the student whose file lies at `parts`.

    Args:
        parts: folders and name, from the root of the submissions.
        outer: the root's own name and those of the folders around it, outermost first.
        wrapped: how many of the folders hold all submissions and so are nobody's.

    Raises:
        ValueError: no name says whose it is, or what says it is no id.
    """
    *folders, name = parts
    for part in reversed(parts):
        if student := moodle_student(part):
            return student_id(student)
    if len(folders) > 1 and _same(folders[-1], lab):  # nbgrader: STUDENT/LAB/x.ipynb
        return student_id(folders[-2])
    if folders[wrapped:] and not _same(folders[wrapped], lab):
        return student_id(folders[wrapped])
    if student := without_lab(stem_of(name), lab):
        return student_id(student)
    around = [folder for folder in (*outer, *folders) if folder.strip("/") and not _same(folder, lab)]
    if not around:
        raise ValueError(f"nothing says whose it is; name it STUDENT_{lab}.ipynb")
    return OWN if _same(around[-1], OWN_FOLDER) else student_id(around[-1])


def _same(name: str, lab: str) -> bool:
    return sameness(name) == sameness(lab)
