"""Which cells of a notebook answer which exercise, and what has to run before each answer.

A cell is matched by nbgrader's grade_id, else by its first line (`# Exercise 01.top_p`), else by the
function that it defines. For an answer run, in the order of the notebook: the student's cells and the
lab's locked cells from the top through the answer's own cell, and the student's cells right below it,
as a cell that was split in two continues there. Cells that only check or show something do not run.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from llmcourse.grading.cells.cell_text import exercise_named, functions_in, only_checks, plain
from llmcourse.grading.cells.lab_text import LabExercise, LabText, runnable
from llmcourse.grading.cells.locked_cells import Place, locked_flags, place_locked
from llmcourse.grading.cells.notebook import Cell, Notebook

__all__ = ["Answers", "LabText", "answers"]


@dataclass(frozen=True)
class Answers:
    """What a notebook answers; exercises in the order of the lab.

    Args:
        cells: by exercise, the sources to run, in order; its own among them.
        own: by exercise, the source of its own cell.
        missing: by exercise, why there is nothing to run: "cannot find exercise 01.top_p …".
        untouched: exercises whose cell is as it was handed out.
        flags: what an instructor should know; those about one exercise begin with its name and a colon.
    """

    cells: dict[str, tuple[str, ...]]
    own: dict[str, str]
    missing: dict[str, str]
    untouched: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A code cell and what it is taken for.

    Args:
        exercise: the exercise that its grade_id or first line names.
        locked: the grade_id of the locked cell of the lab that it is, edited or not.
        shows: whether it only checks or shows something.
    """

    cell: Cell
    functions: frozenset[str]
    exercise: str | None
    locked: str | None
    shows: bool

    @property
    def index(self) -> int:
        return self.cell.index

    @property
    def free(self) -> bool:
        """Whether it is a cell that the student added."""
        return self.exercise is None and self.locked is None and not self.shows


@dataclass(frozen=True)
class Match:
    """The cell of one exercise, and the later cells that repeat it."""

    exercise: LabExercise
    own: Seen
    repeats: tuple[Seen, ...]
    untouched: bool


def answers(notebook: Notebook, lab: LabText) -> Answers:
    """The answers of a notebook to the exercises of a lab."""
    seen = _recognised(notebook, lab)
    flags: list[str] = []
    matches = [match for exercise in lab.exercises if (match := _match(exercise, seen, lab, flags))]
    to_run = _to_run(seen, matches, lab, flags)
    order = sorted(to_run)
    cells, untouched = {}, []
    for match in matches:
        name = match.exercise.name
        last = _continued(match, seen, matches)
        below = [s for s in seen if s.free and match.own.index < s.index <= last]
        if anew := [s for s in below if match.exercise.function in s.functions]:
            flags.append(f"{name}: {_cell(anew[-1])}, right below its own, defines it anew and counts")
        elif match.untouched:
            untouched.append(name)
        cells[name] = tuple(to_run[place] for place in order if place <= (last, 1, 0))
    own = {match.exercise.name: match.own.cell.source for match in matches}
    return Answers(cells, own, _missing(notebook, lab, cells), tuple(untouched), tuple(flags))


def _to_run(seen: list[Seen], matches: list[Match], lab: LabText, flags: list[str]) -> dict[Place, str]:
    """The source that runs at each place; says what was done to locked cells."""
    owns = {match.own.index for match in matches}
    repeated = {repeat.index for match in matches for repeat in match.repeats}
    theirs = {
        (s.index, 1, 0): s.cell.source
        for s in seen
        if s.index in owns or not (s.locked or s.shows or s.index in repeated)
    }
    there: dict[str, Cell] = {}
    for s in seen:
        if s.locked and s.locked in there:
            flags.append(f"{_cell(s)} repeats the locked cell {s.locked}: left out")
        elif s.locked:
            there[s.locked] = s.cell
        elif s.shows and s.cell.demo and s.functions and plain(s.cell.source) not in lab.demos:
            flags.append(f"{_cell(s)} is tagged demo and defines functions: left out")
    where = {match.exercise.grade_id: match.own.index for match in matches}
    places, moved = place_locked(lab, runnable(lab), {g: cell.index for g, cell in there.items()}, where)
    flags += locked_flags(lab, there, moved)
    return theirs | {place: lab.locked[grade_id] for grade_id, place in places.items()}


def _recognised(notebook: Notebook, lab: LabText) -> list[Seen]:
    by_id = {exercise.grade_id: exercise.name for exercise in lab.exercises}
    names = {exercise.name.lower(): exercise.name for exercise in lab.exercises}
    locked_texts = {plain(source): grade_id for grade_id, source in lab.locked.items()}
    seen = []
    for cell in notebook.cells:
        if cell.kind != "code":
            continue
        text = plain(cell.source)
        exercise = by_id.get(cell.grade_id)
        locked = cell.grade_id if cell.grade_id in lab.locked else None
        if not exercise and not locked:  # its metadata may be gone
            exercise = names.get(exercise_named(cell.source) or "")
            locked = None if exercise else locked_texts.get(text)
        shows = not exercise and (cell.demo or text in lab.demos or only_checks(cell.source))
        seen.append(Seen(cell, frozenset(functions_in(cell.source)), exercise, locked, shows))
    return seen


def _match(exercise: LabExercise, seen: list[Seen], lab: LabText, flags: list[str]) -> Match | None:
    named = [s for s in seen if s.exercise == exercise.name]
    defining = [s for s in named if exercise.function in s.functions]
    # Of two answers under one name the first counts. A second half that does not define the function
    # anew repeats nothing: splitting a cell in the editor copies its metadata.
    repeats = tuple(defining[1:])
    elsewhere = _defined_elsewhere(exercise, seen)
    own = next(iter(defining or elsewhere or named), None)
    if own is None:
        return None
    stub = lab.stubs.get(exercise.name)
    untouched = stub is not None and plain(own.cell.source) == plain(stub)
    if repeats:
        kept = f"the first, {_cell(own)}, was kept" + (", though it is as handed out" if untouched else "")
        flags.append(f"{exercise.name}: repeated in {_cells(repeats)}; {kept}")
    below = [s for s in elsewhere if s.free and s.index > own.index]
    if untouched and below:
        flags.append(
            f"{exercise.name}: its cell is as handed out; {_cell(below[0])} defines it and was taken"
        )
        own, untouched = below[0], False
    if exercise.function not in own.functions:
        flags.append(f"{exercise.name}: no cell defines {exercise.function}")
    return Match(exercise, own, repeats, untouched)


def _defined_elsewhere(exercise: LabExercise, seen: list[Seen]) -> list[Seen]:
    """Cells that define the function without naming the exercise; the best kind there is."""
    defining = [s for s in seen if exercise.function in s.functions and s.exercise != exercise.name]
    free = [s for s in defining if s.free]
    merged = [s for s in defining if s.exercise]  # with the cell of another exercise
    in_locked = [s for s in defining if s.locked]  # merged with it, or written into it
    return free or merged or in_locked


def _continued(match: Match, seen: list[Seen], matches: list[Match]) -> int:
    """The index of the last cell that continues an answer: it ends where the lab's next cell stands."""
    others = {other.own.index for other in matches if other is not match}
    last = match.own.index
    for s in seen:
        if s.index > last and s not in match.repeats:
            if s.index in others or not (s.free or s.exercise == match.exercise.name):
                break
            last = s.index
    return last


def _missing(notebook: Notebook, lab: LabText, found: Container[str]) -> dict[str, str]:
    missing = {}
    for exercise in lab.exercises:
        if exercise.name in found:
            continue
        missing[exercise.name] = f"cannot find exercise {exercise.name}"
        for cell in notebook.cells:
            if cell.kind != "code" and exercise.function in functions_in(cell.source):
                missing[exercise.name] += f": cell {cell.index + 1} defines it but is a {cell.kind} cell"
                break
    return missing


def _cell(seen: Seen) -> str:
    return f"cell {seen.index + 1}"


def _cells(several: Iterable[Seen]) -> str:
    return ", ".join(map(_cell, several))
