"""A notebook that was handed in, read with suspicion: cells, or one clear line why not."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmcourse.grading.intake.files import MAX_BYTES, MIB, Unreadable, read_file

__all__ = ["Cell", "Notebook", "Unreadable", "read"]

MAX_CELLS = 2_000
MAX_CODE = MIB  # characters in all code cells together
# A few bytes of JSON become a hundred bytes of Python objects: what is counted is not bytes but values.
MAX_VALUES = 1_000_000
MAX_NESTING = 100
MAX_GRADE_ID = 100
KINDS = ("code", "markdown", "raw")
# Possessive, and with the closing quote left optional: linear in the text whatever it holds.
JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
NO_BRACKETS = re.compile(r"[^][{}]++")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        index: its place among all cells, from 0.
        source: its text, lines ended by `\\n`, encodable as UTF-8.
        grade_id: nbgrader's name for it, if it has one.
        locked: whether nbgrader's metadata says that it must not be edited.
        demo: whether it carries the tag `demo`.
    """

    index: int
    kind: Literal["code", "markdown", "raw"]
    source: str
    grade_id: str | None = None
    locked: bool = False
    demo: bool = False


@dataclass(frozen=True)
class Notebook:
    """The cells of a notebook, and what was odd about the file."""

    cells: tuple[Cell, ...]
    flags: tuple[str, ...] = ()


def read(source: bytes | str | os.PathLike) -> Notebook:
    """The notebook in a file, or in the bytes of one; nothing of its outputs is kept.

    Formats 4.0 and later are read. Missing ids, metadata and unknown keys do not matter.

    Raises:
        Unreadable: anything that is no such notebook, or is larger than a notebook has reason to be.
    """
    try:
        if not isinstance(source, bytes):
            path = Path(source)
            source = read_file(path.parent, (path.name,))
        return _read(source)
    except Unreadable as unreadable:
        raise Unreadable(f"the notebook {unreadable}") from None


def _read(data: bytes) -> Notebook:
    book = _parse(data)
    flags = [] if "nbformat" in book else ["the notebook does not say its format: read as format 4"]
    _require_format(book)
    cells = [_cell(index, cell, flags) for index, cell in enumerate(_list_of_cells(book))]
    code = sum(len(cell.source) for cell in cells if cell.kind == "code")
    if code > MAX_CODE:
        raise Unreadable(f"holds {code / MIB:.1f} MiB of code; at most {MAX_CODE / MIB:.0f} MiB are read")
    return Notebook(tuple(cells), tuple(flags))


def _parse(data: bytes) -> dict[str, Any]:
    text = _text(data)
    _require_modest(text)
    try:
        book = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; nesting is bounded above
        raise Unreadable("is not JSON that a notebook would hold") from None
    if not isinstance(book, dict):
        raise Unreadable("is JSON but no notebook: that is an object with cells")
    return book


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        limit = f"at most {MAX_BYTES / MIB:.0f} MiB are read: clear its outputs"
        raise Unreadable(f"is {len(data) / MIB:.1f} MiB large; {limit}")
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not text in UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise Unreadable("is empty")
    if text.lstrip().startswith("<"):
        raise Unreadable("is a web page; download the raw file")
    return text


def _require_modest(text: str) -> None:
    """Refuses what would take much memory or stack as Python objects, before there are any."""
    quotes = text.count('"') - text.count('\\"')
    bare = JSON_STRING.sub("", text) if quotes <= 4 * MAX_VALUES else None
    if bare is None or sum(map(bare.count, ",[]{}")) > MAX_VALUES:
        raise Unreadable(f"holds more than {MAX_VALUES:,} values; clear its outputs")
    brackets = NO_BRACKETS.sub("", bare)
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_NESTING:
            raise Unreadable(f"is nested deeper than {MAX_NESTING} levels")


def _require_format(book: dict[str, Any]) -> None:
    version = book.get("nbformat", 3 if "worksheets" in book else 4)
    if version == 4:
        return
    if isinstance(version, int) and not isinstance(version, bool) and 1 <= version <= 99:
        remedy = "open it in JupyterLab and save it" if version < 4 else "save it as format 4"
        raise Unreadable(f"is of format {version}; {remedy}")
    raise Unreadable("does not say its format: nbformat must be 4")


def _list_of_cells(book: dict[str, Any]) -> list[Any]:
    cells = book.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("is JSON but no notebook: it has no list of cells")
    if len(cells) > MAX_CELLS:
        raise Unreadable(f"has {len(cells):,} cells; at most {MAX_CELLS:,} are read")
    return cells


def _cell(index: int, cell: object, flags: list[str]) -> Cell:
    if not isinstance(cell, dict) or cell.get("cell_type") not in KINDS:
        raise Unreadable(f"has no code, markdown or raw cell where cell {index + 1} should be")
    source = cell.get("source")
    lines = source if isinstance(source, list) else [source]
    if not all(isinstance(line, str) for line in lines):
        raise Unreadable(f"has a cell whose source is no text: cell {index + 1}")
    text = "".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    encodable = text.encode("utf-8", "replace").decode()  # half a surrogate pair can be sent nowhere
    if encodable != text:
        flags.append(f"cell {index + 1} held characters that are none: replaced by ?")
    metadata = _mapping(cell.get("metadata"))
    nbgrader = _mapping(metadata.get("nbgrader"))
    grade_id, tags = nbgrader.get("grade_id"), metadata.get("tags")
    return Cell(
        index,
        cell["cell_type"],
        encodable,
        grade_id if isinstance(grade_id, str) and 0 < len(grade_id) <= MAX_GRADE_ID else None,
        nbgrader.get("locked") is True,
        isinstance(tags, list) and "demo" in tags,
    )


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
