"""Labs made from solutions: what students must not see is cut out, and the cut is checked.

A solution notebook carries nbgrader's metadata and markers. Between `### BEGIN SOLUTION` and
`### END SOLUTION` stands what the student writes; between `### BEGIN HIDDEN TESTS` and
`### END HIDDEN TESTS`, in a check cell, what only a grader runs. A marker that is misspelt would hand
out what it should hide, so a comment that resembles one is an error.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Book = dict[str, Any]  # a notebook of nbformat 4, as JSON has it
CellJson = dict[str, Any]

MARKER = re.compile(r"(?P<indent> *)### (?P<edge>BEGIN|END) (?P<kind>SOLUTION|HIDDEN TESTS)")
# A comment that starts with ## or with "begin" or "end", or speaks of solutions or hidden things.
SUSPECT = re.compile(r"^\s*#(#|\s*(begin|end)\b|.*(\bsol(u|t)|\bhid))", re.IGNORECASE)
EXERCISE = re.compile(r"# Exercise (?P<name>\d\d\.\w+)")
STUB = 'raise NotImplementedError("{name} is not written yet")'
OUTPUT_TAG = "nbval-check-output"
SHORTEST_SECRET = 12  # characters without blanks: `return text` gives nothing away


class LabError(ValueError):
    """A solution notebook of which no lab can be made; the message names the cell and the remedy."""


def read(path: Path) -> Book:
    """A notebook's JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(cell: CellJson) -> str:
    """A cell's source, which JSON may hold as one text or as a list of lines."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def duty(cell: CellJson) -> str:
    """What a cell is to nbgrader: `solution`, `check`, `locked`, or empty."""
    meta = cell["metadata"].get("nbgrader", {})
    kinds = {"solution": "solution", "grade": "check", "locked": "locked"}
    return next((kind for key, kind in kinds.items() if meta.get(key)), "")


def cut(source: str, stub: str = "") -> tuple[str, list[str]]:
    """What is shown of a cell, and the lines that are not.

    Args:
        stub: takes the place of each solution that is indented, in a function that is; where a whole
            function is replaced, what stands before it stays as it is.

    Raises:
        LabError: a marker is misspelt, or has no other end.
    """
    shown, hidden, inside = [], [], None
    for line in source.splitlines():
        marker = MARKER.fullmatch(line)
        if marker is None:
            if SUSPECT.match(line):
                raise LabError(f"{line.strip()!r} is no marker but resembles one; mend or reword it")
            (hidden if inside else shown).append(line)
            continue
        opens, kind = marker["edge"] == "BEGIN", marker["kind"]
        if inside != (None if opens else kind):
            raise LabError(f"{line.strip()!r} stands where {inside or 'no region'} is open; pair the markers")
        inside = kind if opens else None
        if opens and kind == "SOLUTION" and marker["indent"]:
            shown.append(marker["indent"] + stub)
    if inside:
        raise LabError(f"### BEGIN {inside} has no ### END {inside}; add it")
    return "\n".join(shown).strip("\n"), hidden


def without_solutions(solution: Book) -> Book:
    """The students' notebook: solutions and hidden tests cut out, outputs and counts cleared.

    Raises:
        LabError: markers are not as they should be, or a cell that needs them has none.
    """
    lab = copy.deepcopy(solution)
    for cell in lab["cells"]:
        cell["metadata"] = _metadata(cell)
        text = text_of(cell)
        if cell["cell_type"] == "code":
            try:
                text, _ = _cut_cell(cell)
            except LabError as error:
                raise LabError(f"cell {cell.get('id', '?')}: {error}") from None
            cell["outputs"], cell["execution_count"] = [], None
        cell["source"] = text.splitlines(keepends=True)
    return lab


def _cut_cell(cell: CellJson) -> tuple[str, list[str]]:
    source, kind = text_of(cell), duty(cell)
    name = exercise_of(cell)
    if kind == "solution" and not name:
        raise LabError("a solution must begin with the line `# Exercise NN.name`")
    shown, hidden = cut(source, STUB.format(name=name))
    allowed = {"solution": "SOLUTION", "check": "HIDDEN TESTS"}.get(kind)
    found = {marker["kind"] for line in source.splitlines() if (marker := MARKER.fullmatch(line))}
    if found - {allowed}:
        raise LabError(f"{', '.join(sorted(found - {allowed}))} in a cell that is {kind or 'free to edit'}")
    if allowed and not hidden:
        raise LabError(f"has no ### BEGIN {allowed}; everything in it would be handed out")
    return shown, hidden


def exercise_of(cell: CellJson) -> str:
    """The exercise that a code cell answers, by its first line; empty for other cells."""
    match = EXERCISE.match(text_of(cell))
    return match["name"] if match else ""


def _metadata(cell: CellJson) -> dict[str, Any]:
    meta, kind = copy.deepcopy(cell["metadata"]), duty(cell)
    if tags := [tag for tag in meta.pop("tags", []) if tag != OUTPUT_TAG]:
        meta["tags"] = tags
    if kind:  # as nbgrader locks them
        meta["deletable"] = False
    if kind in ("check", "locked"):
        meta["editable"] = False
    return meta


def leaks(solution: Book, lab: Book) -> list[str]:
    """Every place of a lab, metadata and outputs included, where a hidden line or a marker is found.

    Lines are compared without blanks. A hidden line that its own cell also shows, such as one of a
    program whose fault is to be found, is no secret; nor is a very short one.
    """
    secrets = set()
    for cell in solution["cells"]:
        shown, hidden = _cut_cell(cell) if cell["cell_type"] == "code" else ("", [])
        open_lines = {_bare(line) for line in shown.splitlines()}
        secrets |= {bare for line in hidden if len(bare := _bare(line)) >= SHORTEST_SECRET} - open_lines
    found = []
    for cell in lab["cells"]:
        for line in _strings({**cell, "source": text_of(cell)}):
            if MARKER.fullmatch(line) or (cell["cell_type"] == "code" and SUSPECT.match(line)):
                found.append(f"cell {cell.get('id', '?')} has a marker: {line.strip()}")
            elif any(secret in _bare(line) for secret in secrets):
                found.append(f"cell {cell.get('id', '?')} gives away: {line.strip()}")
    return found


def _bare(line: str) -> str:
    return re.sub(r"\s+", "", line.split("  # ")[0])


def _strings(value: Any) -> Iterator[str]:
    """Every line of every text in a JSON value."""
    if isinstance(value, str):
        yield from value.splitlines()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def differences(found: Book, wanted: Book) -> list[str]:
    """How the cells of two notebooks differ in what a text says: ids, kinds, sources, metadata."""
    if len(found["cells"]) != len(wanted["cells"]):
        return [f"{len(found['cells'])} cells, not {len(wanted['cells'])}"]
    pairs = zip(found["cells"], wanted["cells"], strict=True)
    return [
        f"cell {index} ({new.get('id', '?')}): {key}"
        for index, (old, new) in enumerate(pairs)
        for key in ("id", "cell_type", "source", "metadata")
        if (text_of(old) != text_of(new) if key == "source" else old.get(key) != new.get(key))
    ]


def stale(solution: Path, lab: Path) -> list[str]:
    """Why a lab is not the one that its solution gives; empty when it is."""
    if not lab.exists():
        return [f"{lab.name} is not made; run `make labs`"]
    found, wanted = read(lab), without_solutions(read(solution))
    reasons = differences(found, wanted)
    if not reasons and found != wanted:
        reasons = ["outputs, counts or notebook metadata"]
    return [f"{lab.name} differs from its solution, {reason}; run `make labs`" for reason in reasons]


def release(solution: Path, lab: Path) -> Path:
    """Writes the lab of a solution, by rename: there is the old one or the new one, whole.

    Raises:
        LabError: no lab can be made, or it would give something away.
    """
    book = read(solution)
    made = without_solutions(book)
    if found := leaks(book, made):
        raise LabError(f"{solution.name}: {found[0]} ({len(found)} in all); reword the lab or the solution")
    text = json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    lab.parent.mkdir(parents=True, exist_ok=True)
    draft = lab.with_name(f".{lab.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(lab)
    return lab
