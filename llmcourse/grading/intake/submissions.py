"""The submissions in a folder, a zip or one notebook: whose each is, and why some cannot be taken.

Understood are a folder of notebooks, a folder of students' folders, nbgrader's submitted/STUDENT/LAB/,
what Moodle exports, a zip of any of these, and a zip in place of a student's notebook. Nothing is
unpacked to the disk, and no more than one file is held in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

from llmcourse.grading.intake.archive import SUBMISSION, entries
from llmcourse.grading.intake.companions import attributed, flag, left_behind, no_notebook
from llmcourse.grading.intake.files import MAX_SHOWN, Item, Unreadable, read_file, refuse, walk
from llmcourse.grading.intake.identity import EXTENSION, ZIP, sameness, stem_of, student_of, without_lab
from llmcourse.grading.printable import clean

__all__ = ["Submission", "collect"]

OTHER_LAB = re.compile(r"\d\d_[a-z0-9_]+")
NOT_KEPT = partial(refuse, "was not kept")


@dataclass(frozen=True)
class Submission:
    """One student's notebook, read again from where it lies whenever it is needed.

    Args:
        student: an id; no two submissions of one `collect` have the same.
        path_name: where it lies, fit to be shown.
        sha256: of its bytes, empty when there are none.
        problem: why it is rejected, None if it can be graded.
        flags: what an instructor should know.
        source: returns the bytes.
    """

    student: str
    path_name: str
    sha256: str = ""
    problem: str | None = None
    flags: tuple[str, ...] = ()
    source: Callable[[], bytes] = field(default=NOT_KEPT, compare=False, repr=False)

    @classmethod
    def of(cls, student: str, data: bytes, path_name: str = "") -> Submission:
        """A submission that is held in memory."""
        return cls(student, path_name or f"{student}.ipynb", _sha256(data), source=partial(bytes, data))

    def read(self) -> bytes:
        """The bytes that `sha256` belongs to.

        Raises:
            Unreadable: there is a problem, or the file is no longer what it was.
        """
        if self.problem:
            raise Unreadable(self.problem)
        try:
            data = self.source()
        except Unreadable as unreadable:
            raise Unreadable(f"{self.path_name} {unreadable}") from None
        if _sha256(data) != self.sha256:
            raise Unreadable(f"{self.path_name} has changed since it was collected; grade again")
        return data


def collect(path: str | os.PathLike, lab: str) -> list[Submission]:
    """The submissions at `path`, sorted by student, one each.

    A file that cannot be taken becomes a submission with a `problem`, and so do a student's folder
    without a notebook and different files under one student's id. What has no id that could be
    stored goes by `rejected-` and a number.

    Args:
        path: a folder, a zip or a notebook.
        lab: its name, `01_decoding`; students' ids are what file names say besides it.

    Raises:
        ValueError: nothing is there, it is none of these, or it holds no notebook.
    """
    path = Path(path)
    items, outer = _listed(path)
    items = _of_this_lab([item for item in items if not left_behind(item)], lab)
    wrapped = _wrapped([item for item in items if _is_notebook(item)], lab)
    candidates = [item for item in items if _is_candidate(item, wrapped)]
    if not candidates:
        raise ValueError(f"submissions must hold .ipynb files or zips of them, got none in {_shown(path)}")

    def identified(parts: tuple[str, ...], entry: Submission) -> Submission:
        try:
            if not parts:
                raise ValueError(f"{entry.path_name} {entry.problem}")
            return replace(entry, student=student_of(parts, lab, outer, wrapped))
        except ValueError as error:
            return replace(
                entry, student=f"rejected-{_sha256(entry.path_name.encode())[:8]}", problem=str(error)
            )

    drafts = [(item, identified(item.parts, _draft(item, lab))) for item in candidates]
    others = [item for item in items if not _is_candidate(item, wrapped)]
    along, bare = attributed(others, [(item.parts, draft.student) for item, draft in drafts])
    groups: dict[str, list[tuple[Item, Submission]]] = {}
    for item, draft in drafts:
        with_flags = replace(draft, flags=draft.flags + flag(along.get(draft.student, ())))
        groups.setdefault(sameness(draft.student), []).append((item, with_flags))
    chosen = {key: _chosen(group, lab, wrapped) for key, group in groups.items()}
    for parts, held in bare.items():
        name = clean("/".join(parts), MAX_SHOWN)
        empty = identified((*parts, lab), Submission("", name, problem=f"{name}: {no_notebook(held)}"))
        chosen.setdefault(sameness(empty.student), empty)
    return sorted(chosen.values(), key=lambda submission: (submission.student, submission.path_name))


def _listed(path: Path) -> tuple[list[Item], Sequence[str]]:
    """What lies at `path`, and the names of the folders around it."""
    try:
        if path.is_dir():
            return walk(path), path.resolve().parts
        around, is_file = path.parent.resolve().parts, path.is_file()
        there = is_file or path.is_symlink() or path.exists()
    except (OSError, ValueError) as error:
        raise ValueError(f"submissions must be a path, got {_shown(path)}: {error}") from None
    if not there:
        raise ValueError(
            f"submissions must be a folder, zip or notebook, got {_shown(path)}: nothing is there"
        )
    if EXTENSION.fullmatch(path.name):
        return [Item((path.name,), partial(read_file, path.parent, (path.name,)))], around
    if not is_file or not ZIP.fullmatch(path.name):
        raise ValueError(f"submissions must be a folder, a .zip or an .ipynb file, got {_shown(path)}")
    try:
        return entries(partial(open, path, "rb")), (*around, stem_of(path.name))
    except Unreadable as unreadable:
        raise ValueError(f"{_shown(path)} {unreadable}") from None


def _of_this_lab(items: list[Item], lab: str) -> list[Item]:
    """Leaves out what nbgrader keeps of other labs: STUDENT/02_serving/02_serving.ipynb and its company."""
    others = {
        item.parts[:-1]
        for item in items
        if len(item.parts) > 1
        and stem_of(item.parts[-1]) == item.parts[-2] != lab
        and OTHER_LAB.fullmatch(item.parts[-2])
    }
    return [i for i in items if not any(i.parts[:depth] in others for depth in range(1, len(i.parts)))]


def _is_notebook(item: Item) -> bool:
    """Whether it should be a notebook, or an archive with one."""
    name = item.parts[-1] if item.parts else ""
    return not item.folder and bool(EXTENSION.fullmatch(name) or ZIP.fullmatch(name))


def _is_candidate(item: Item, wrapped: int) -> bool:
    """Whether somebody has to be told what became of it: a notebook, or what stands in a student's place."""
    in_a_students_place = item.folder and len(item.parts) <= wrapped + 1
    return not item.parts or in_a_students_place or _is_notebook(item)


def _wrapped(notebooks: list[Item], lab: str) -> int:
    """How many folders lie around all notebooks without being a student's."""
    if len(notebooks) < 2:
        return 0
    columns = zip(*(item.parts[:-1] for item in notebooks), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    inside = [item.parts[-1] for item in notebooks if len(item.parts) == common + 1]
    named_as_lab = any(not without_lab(stem_of(name), lab) for name in inside)
    return max(0, common - named_as_lab)


def _draft(item: Item, lab: str) -> Submission:
    """A notebook, or the notebook in an archive, still without its student."""
    draft = Submission("", item.shown)
    if item.problem:
        return replace(draft, problem=f"{item.shown} {item.problem}" if item.parts else item.problem)
    try:
        source, flags = item.read, ()
        if ZIP.fullmatch(item.parts[-1]):
            inner, flags = _notebook_in(item, lab)
            source = inner.read
        return replace(draft, sha256=_sha256(source()), flags=flags, source=source)
    except Unreadable as unreadable:
        return replace(draft, problem=f"{item.shown} {unreadable}")


def _notebook_in(archive: Item, lab: str) -> tuple[Item, tuple[str, ...]]:
    """The one notebook that a student's archive is about, and what else is to be said of it."""
    inside = [
        item for item in entries(partial(_in_memory, archive.read), SUBMISSION) if not left_behind(item)
    ]
    for item in inside:
        if item.problem:
            raise Unreadable(f"holds {item.shown}, which {item.problem}")
    notebooks = [item for item in inside if EXTENSION.fullmatch(item.parts[-1])]
    exact = [item for item in notebooks if sameness(stem_of(item.parts[-1])) == sameness(lab)]
    fitting = exact if len(exact) == 1 else notebooks
    if not notebooks:
        raise Unreadable("is an archive without a notebook; archives in archives are not opened")
    if len(fitting) > 1:
        raise Unreadable(
            f"is an archive of {len(notebooks)} notebooks, not one of them or several called {lab}.ipynb; "
            "hand in one (to grade many students' notebooks, name their archive itself)"
        )
    return fitting[0], flag([item for item in inside if item not in notebooks])


def _in_memory(read: Callable[[], bytes]) -> io.BytesIO:
    return io.BytesIO(read())


def _chosen(group: list[tuple[Item, Submission]], lab: str, wrapped: int) -> Submission:
    """The one submission of a student who has several files."""
    first = group[0][1]
    if len(group) == 1:
        return first
    names = ", ".join(draft.path_name for _, draft in group)
    exact = [
        draft for item, draft in group if item.parts and sameness(stem_of(item.parts[-1])) == sameness(lab)
    ]
    if len(exact) == 1 and len({item.parts[: wrapped + 1] for item, _ in group}) == 1:
        rest = ", ".join(draft.path_name for _, draft in group if draft is not exact[0])
        return replace(exact[0], flags=(*exact[0].flags, f"handed in with {rest}: not graded"))
    if len({draft.sha256 for _, draft in group}) == 1 and not any(draft.problem for _, draft in group):
        return replace(first, flags=(*first.flags, f"handed in {len(group)} times, byte for byte: {names}"))
    ids = " or ".join(sorted({draft.student for _, draft in group}))
    return Submission(
        first.student,
        first.path_name,
        _sha256("\n".join(sorted(draft.sha256 for _, draft in group)).encode()),
        f"{len(group)} different files have the student id {ids}: {names}; leave one of them",
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(path: Path) -> str:
    return clean(str(path), MAX_SHOWN)
