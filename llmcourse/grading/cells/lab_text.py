"""A lab as it was handed out: what answers are held against."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llmcourse.grading.cells.cell_text import exercise_named, functions_in, only_checks, plain
from llmcourse.grading.cells.notebook import Cell, read
from llmcourse.grading.printable import clean


class LabExercise(NamedTuple):
    """The exercise `01.top_p`, the grade_id of its cell, and the function that it asks for."""

    name: str
    grade_id: str
    function: str


@dataclass(frozen=True)
class LabText:
    """The text of a lab.

    Args:
        name: `01_decoding`.
        locked: the source of each locked code cell, by grade_id.
        exercises: in the order of the lab.
        stubs: the source of each exercise's cell as handed out, by the exercise's name.
        demos: the sources of cells that only show something, as `plain` gives them.
        order: grade_ids of locked cells and exercises, from top to bottom; by default the locked
            cells come first.
    """

    name: str
    locked: dict[str, str]
    exercises: tuple[LabExercise, ...]
    stubs: dict[str, str] = field(default_factory=dict)
    demos: frozenset[str] = frozenset()
    order: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.order:
            ids = (*self.locked, *(exercise.grade_id for exercise in self.exercises))
            object.__setattr__(self, "order", ids)


def lab_text(path: str | os.PathLike) -> LabText:
    """The lab in the notebook at `path`.

    An exercise is a code cell with a grade_id whose first line is `# Exercise 01.top_p`. Its function
    is what `check("01.top_p", ...)` names somewhere in the lab, else the last one that it defines.

    Raises:
        ValueError: there is no such lab, or it is none.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb"))) or "none: make labs"
        raise ValueError(
            f"lab must name a notebook of {clean(str(path.parent))} ({known}), got {clean(path.stem)}"
        )
    code = [cell for cell in read(path.read_bytes()).cells if cell.kind == "code"]
    named = [cell for cell in code if cell.grade_id and not cell.locked and exercise_named(cell.source)]
    exercises = tuple(_exercise(cell, code) for cell in named)
    locked = {cell.grade_id: cell.source for cell in code if cell.grade_id and cell.locked and not cell.demo}
    order = tuple(cell.grade_id for cell in code if cell in named or cell.grade_id in locked)
    if not exercises or len(set(order)) < len(order) or len({e.name for e in exercises}) < len(exercises):
        raise ValueError(f"{path.name} is no lab: it has no exercises, or two cells of one name")
    stubs = {exercise.name: cell.source for exercise, cell in zip(exercises, named, strict=True)}
    demos = frozenset(plain(cell.source) for cell in code if cell.demo and plain(cell.source))
    return LabText(path.stem, locked, exercises, stubs, demos, order)


def _exercise(cell: Cell, code: list[Cell]) -> LabExercise:
    name = exercise_named(cell.source)
    call = re.compile(rf"check\(\s*['\"]{re.escape(name)}['\"]\s*,\s*(\w+)", re.IGNORECASE)
    checked = [match[1] for other in code if (match := call.search(other.source))]
    defined = functions_in(cell.source)
    if not checked and not defined:
        raise ValueError(f"exercise {name} is none: no cell checks it and it defines no function")
    return LabExercise(name, cell.grade_id, (checked or defined)[-1])


def runnable(lab: LabText) -> tuple[str, ...]:
    """The grade_ids of the locked cells that answers may need: all that do more than check."""
    return tuple(g for g in lab.order if g in lab.locked and not only_checks(lab.locked[g]))
