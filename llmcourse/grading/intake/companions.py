"""Files that came with notebooks: never loaded, told to the instructor; and folders without a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmcourse.grading.intake.files import MAX_SHOWN, Item
from llmcourse.grading.intake.identity import moodle_student
from llmcourse.grading.printable import clean

# What Python or an editor leaves behind; nobody hands these in.
LEFT_BEHIND = ("__MACOSX", "__pycache__")
# What Python would import, or run while it loads: a student may rely on it, or mean harm.
LOADABLE = (
    *(".py", ".pyc", ".pyi", ".pth", ".so", ".pyd", ".dll", ".dylib", ".egg", ".whl", ".sh"),
    *(".pkl", ".pickle", ".pt", ".npy", ".npz", ".joblib", ".safetensors"),
)
MAX_NAMED = 5


def left_behind(item: Item) -> bool:
    """Whether a system or an editor made it: hidden things, and Apple's copies of names."""
    *folders, name = item.parts or ("",)
    hidden = name.startswith("._") or (name.startswith(".") and (folders or not name.endswith(".ipynb")))
    return bool(hidden) or any(part in LEFT_BEHIND or part.startswith(".") for part in folders)


def flag(items: Iterable[Item]) -> tuple[str, ...]:
    """One line that names those among `items` that could have been loaded, or must not be read."""
    names = [i.shown for i in items if i.problem or i.parts[-1].lower().endswith(LOADABLE)]
    return (f"came with {_some(names)}: not used",) if names else ()


def no_notebook(items: Sequence[Item]) -> str:
    """What is wrong with a student's folder that holds just these."""
    return f"there is no notebook, only {_some([clean(item.parts[-1], MAX_SHOWN) for item in items])}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def attributed(
    others: Sequence[Item], owners: Sequence[tuple[tuple[str, ...], str]]
) -> tuple[dict[str, list[Item]], dict[tuple[str, ...], list[Item]]]:
    """What came with each student's notebook, and what lies in each student's folder without one.

    A file belongs to the student whose notebook alone lies in or below the nearest folder around it
    that has any. A folder without notebooks next to folders with some is a student's.

    Args:
        others: files that are no notebooks.
        owners: where each notebook lies, and whose it is.
    """
    beneath: dict[tuple[str, ...], set[str]] = {(): set()}
    for parts, student in owners:
        for depth in range(len(parts)):
            beneath.setdefault(parts[:depth], set()).add(student)
    deepest = max((len(parts) - 1 for parts, _ in owners), default=0)
    along: dict[str, list[Item]] = {}
    bare: dict[tuple[str, ...], list[Item]] = {}
    for item in others:
        *folders, name = item.parts
        depth = max(d for d in range(len(folders) + 1) if tuple(folders[:d]) in beneath)
        students = beneath[tuple(folders[:depth])]
        below = tuple(folders[: depth + 1])
        if not folders and moodle_student(name):
            bare.setdefault(item.parts, []).append(item)
        elif len(students) == 1 and (depth or not folders):
            along.setdefault(next(iter(students)), []).append(item)
        elif len(below) > depth and (deepest > depth or moodle_student(below[-1])):
            bare.setdefault(below, []).append(item)
    return along, bare
