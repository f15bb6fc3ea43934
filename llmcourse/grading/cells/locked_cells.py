"""Cells of a lab that students must not edit: the lab's own text runs, where the lab has it."""

from __future__ import annotations

import re
import sys

from llmcourse.grading.cells.cell_text import plain
from llmcourse.grading.cells.lab_text import LabText
from llmcourse.grading.cells.notebook import Cell

# A cell's index, before (0), at (1) or after (2) it, and among several there the place in the lab.
Place = tuple[int, int, int]
# nbgrader puts them back before it grades, and so does whoever hands in the solution.
HIDDEN_TESTS = re.compile(r"^### BEGIN HIDDEN TESTS$.*?^### END HIDDEN TESTS$", re.MULTILINE | re.DOTALL)
TOP: Place = (-1, 2, -1)


def place_locked(
    lab: LabText, wanted: tuple[str, ...], there: dict[str, int], answers: dict[str, int]
) -> tuple[dict[str, Place], list[str]]:
    """Where each locked cell runs, and which of them had been moved.

    A cell stays where the notebook has it, if that is below the lab's cells before it and above the
    answers after it; otherwise it runs right below the former.

    Args:
        wanted: grade_ids of the locked cells that run, in the order of the lab.
        there: indices of the locked cells in the notebook, by grade_id.
        answers: indices of the exercises' cells in the notebook, by grade_id.
    """
    places, moved, above = {}, [], TOP
    for number, grade_id in enumerate(lab.order):
        if grade_id in answers:
            above = max(above, (answers[grade_id], 1, 0))
        if grade_id not in wanted:
            continue
        latest = min((answers[g] for g in lab.order[number:] if g in answers), default=sys.maxsize)
        place = min((above[0], 2, number), (latest, 0, number))
        if grade_id in there:
            index = there[grade_id]
            # Where an answer was written into the locked cell, the lab's text comes first.
            here = (index, 0, number) if index in answers.values() else (index, 1, 0)
            if above < here < (latest, 1, 0):
                place = here
            else:
                moved.append(grade_id)
        places[grade_id] = above = place
    return places, moved


def locked_flags(lab: LabText, there: dict[str, Cell], moved: list[str]) -> list[str]:
    """What was done to the locked cells, tests included."""
    flags = []
    for grade_id, source in lab.locked.items():
        if grade_id not in there:
            flags.append(f"locked cell {grade_id} is not there: the lab's own was used")
            continue
        where = f"locked cell {grade_id} (cell {there[grade_id].index + 1})"
        if plain(HIDDEN_TESTS.sub("", there[grade_id].source)) != plain(source):
            flags.append(f"{where} was edited: the lab's own was used")
        if grade_id in moved:
            flags.append(f"{where} was moved: it was run where the lab has it")
    return flags
