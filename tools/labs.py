"""Builds solutions/NAME.ipynb from the text in solutions/source/NAME.py, runs it, and makes its lab.

The text is py:percent, as for chapters. What the catalogue of exercises says is not said again: in the
text `{{ statement 01.top_p }}` stands for an exercise's statement, `{{ starter 01.find_the_bug }}` for
code that is handed out, `{{ points }}`, `{{ minutes }}` and `{{ exercises }}` for the lab's totals.
nbgrader's metadata follows from what a cell is: a statement, a cell that begins `# Exercise 01.top_p`,
or one that begins `check("01.top_p", …)`.

    python -m tools.labs [NAME …]              all labs, or those named
    python -m tools.labs --release [NAME …]    make labs of solutions as they stand; nothing is run
"""

import argparse
import ast
import itertools
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from llmcourse.grading import labs
from llmcourse.grading.exercise import Exercise
from llmcourse.grading.exercises import catalogue
from tools import notebooks
from tools.notebooks import BuildError

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS, LABS = ROOT / "solutions", ROOT / "labs"
PLACEHOLDER = re.compile(r"\{\{ (\w+)(?: ([\w.]+))? \}\}")
CHECK = re.compile(r'check\("(?P<name>[\w.]+)", (?P<function>\w+)\)')
LEVELS = 5


def statement(exercise: Exercise) -> str:
    """What a student reads of an exercise, in Markdown."""
    stars = "★" * exercise.level + "☆" * (LEVELS - exercise.level)
    worth = f"**{exercise.points} points** · about {exercise.minutes} minutes · {stars}"
    return f"## {exercise.name} · {exercise.title}\n\n{worth}\n\n{exercise.asks.strip()}"


def expand(text: str, exercises: tuple[Exercise, ...]) -> str:
    """Replaces the placeholders of a py:percent text, each alone in its line or within one.

    Raises:
        BuildError: a placeholder is unknown, or names an exercise that the lab has not.
    """
    by_name = {exercise.name: exercise for exercise in exercises}
    totals = {
        "points": sum(exercise.points for exercise in exercises),
        "minutes": sum(exercise.minutes for exercise in exercises),
        "exercises": len(exercises),
    }

    def value(match: re.Match) -> str:
        what, name = match.groups()
        if name is None and what in totals:
            return str(totals[what])
        if what in ("statement", "starter") and name in by_name:
            exercise = by_name[name]
            return statement(exercise) if what == "statement" else exercise.starter.strip("\n")
        raise BuildError(f"{match.group()} stands for nothing; exercises are: {', '.join(by_name)}")

    lines = []
    for line in text.splitlines():
        new = PLACEHOLDER.sub(value, line).splitlines()
        # In Markdown each line of the statement is a comment; a starter's comment sign goes.
        code = "{{ starter " in line
        lines += [line] if not new else [new[0].removeprefix("# ") if code else new[0]]
        lines += [rest if code else f"# {rest}".rstrip() for rest in new[1:]]
    return "\n".join(lines) + "\n"


def nbgrader(grade_id: str, **settings: bool | int) -> dict:
    """A cell's metadata for nbgrader, schema version 3; `settings` are those that are not off."""
    plain = {"schema_version": 3, "grade": False, "locked": False, "solution": False, "task": False}
    return {**plain, "grade_id": grade_id, **settings}


def book_of(text: str, exercises: tuple[Exercise, ...]) -> NotebookNode:
    """The solution notebook of a py:percent text, with nbgrader's metadata, not yet run.

    Raises:
        BuildError: the text and the catalogue disagree.
    """
    book = notebooks.convert(expand(text, exercises))
    points = {exercise.name: exercise.points for exercise in exercises}
    for cell in book.cells:
        if meta := _role(cell, points):
            cell.id = meta["grade_id"]
            cell.metadata["nbgrader"] = nbformat.from_dict(meta)
    if found := disagreements(book, exercises):
        raise BuildError("; ".join(found))
    nbformat.validate(book)
    return book


def _role(cell: NotebookNode, points: dict[str, int]) -> dict | None:
    name = cell.metadata.get("name", "")
    if name.endswith("-setup"):
        return nbgrader(name, locked=True)
    if cell.cell_type == "markdown":
        match = re.match(r"## (\d\d\.\w+) · ", cell.source)
        return nbgrader(_id(match[1], "-statement"), locked=True) if match else None
    if exercise := labs.exercise_of(cell):
        return nbgrader(_id(exercise), solution=True)
    if match := CHECK.match(cell.source):
        if match["name"] not in points:
            raise BuildError(f"{match.group()}: the lab has no such exercise")
        return nbgrader(_id(match["name"], "-check"), grade=True, locked=True, points=points[match["name"]])
    return None


def _id(exercise: str, suffix: str = "") -> str:
    return exercise.replace(".", "-") + suffix


def disagreements(book: NotebookNode, exercises: tuple[Exercise, ...]) -> list[str]:
    """Where a solution notebook departs from the catalogue; empty when they say the same."""
    ids = [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in book.cells]
    wanted = [_id(e.name, part) for e in exercises for part in ("-statement", "", "-check")]
    present = [grade_id for grade_id in ids if grade_id and not grade_id.endswith("-setup")]
    if present != wanted:
        pairs = itertools.zip_longest(present, wanted, fillvalue="nothing")
        got, expected = next((got, expected) for got, expected in pairs if got != expected)
        return [f"cells must follow the catalogue: {expected} is expected where {got} is"]
    found, cells = [], dict(zip(ids, book.cells, strict=True))
    for exercise in exercises:
        given = parameters(cells[_id(exercise.name)].source, exercise.function)
        asked = parameters(f"def {exercise.signature.rstrip(':')}: ...", exercise.function)
        if given != asked:
            found.append(f"{exercise.name}: def {exercise.function}{given}, the catalogue has {asked}")
        check = cells[_id(exercise.name, "-check")].source
        first, hidden = check.splitlines()[0], f'require("{exercise.name}", {exercise.function}, '
        if first != f'check("{exercise.name}", {exercise.function})' or hidden not in check:
            found.append(f"{exercise.name}: the check cell must call check and require with its function")
    return found


def parameters(source: str, function: str) -> str | None:
    """The parameters of a function that a cell defines last, as `(logits, p=0.9)`; None without one."""
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function]
    if not nodes:
        return None
    for argument in ast.walk(nodes[-1].args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(nodes[-1].args)})"


def sources(folder: Path = SOLUTIONS) -> list[Path]:
    return notebooks.sources(folder)


def build(source: Path) -> Path:
    """Converts, runs and writes one solution; the old notebook stays if anything fails.

    Raises:
        BuildError: text and catalogue disagree, or a cell raised, as a hidden test does on a wrong answer.
    """
    book = book_of(source.read_text(encoding="utf-8"), catalogue.labs()[source.stem])
    target = notebooks.target_of(source)
    notebooks.run(book, target.parent)
    notebooks.tidy(book)
    nbformat.validate(book)
    target.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
    return target


def outdated(source: Path) -> list[str]:
    """How a solution notebook departs from its text and the catalogue, and the lab from both."""
    target = notebooks.target_of(source)
    if not target.exists():
        return [f"{target.name} is not built; run `make labs`"]
    wanted = book_of(source.read_text(encoding="utf-8"), catalogue.labs()[source.stem])
    found = labs.differences(labs.read(target), wanted)
    old = [f"solutions/{target.name}, {reason}: run `make labs`" for reason in found]
    return old or labs.stale(target, LABS / target.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="labs, such as 01_decoding; default all")
    parser.add_argument("--release", action="store_true", help="make labs of solutions as they stand")
    arguments = parser.parse_args()
    known = {source.stem: source for source in sources()}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        print(f"error: no lab {unknown[0]!r}; there are: {', '.join(known) or 'none'}", file=sys.stderr)
        return 2
    for name in arguments.names or known:
        try:
            print(f"{name} …", end=" ", flush=True)
            solution = notebooks.target_of(known[name]) if arguments.release else build(known[name])
            lab = labs.release(solution, LABS / solution.name)
            print(f"lab of {lab.stat().st_size / 1024:.0f} KiB written", flush=True)
        except (BuildError, labs.LabError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
