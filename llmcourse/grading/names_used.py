"""Names that an answer needs from outside of itself, from the text of cells and from the objects it reaches.

The grader reads the text of all cells, and a worker tells of the answer's objects; a self-check reads the
statements that the objects are from. Both end here, so that the one refuses what the other does.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from llmcourse.grading.process.replay import without_magics

COURSE = "llmcourse"
LIBRARIES = ("transformers", "vllm", "scipy")  # hold finished answers to what this course asks
PACKAGE = Path(__file__).parent.parent
LONGEST_CELL, LONGEST_SOURCE = 50_000, 500_000  # characters that are read; an answer has a few thousand
NO_PYTHON, TOO_DEEP = (SyntaxError, ValueError), (RecursionError, MemoryError)
BY_TEXT = ("getattr", "attrgetter", "methodcaller", "import_module", "__import__")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PATH = re.compile(r"\.*[^\W\d]\w*(\.[^\W\d]\w*)*")  # of a module or an attribute


@lru_cache(maxsize=64)  # the same cells are looked at for every seed
def names_used(source: str, function: str, reached: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names that a function needs from outside the source: globals, attributes, imports.

    Followed through everything in the source that the function refers to; what is defined there under a
    forbidden name is the student's own. Empty where the source is no Python and nothing else is known.

    Args:
        reached: of objects that it reaches, as `Origins.names`.
    """
    places: dict[str, list[ast.stmt]] = {}
    for statement in _parsed(source):
        for name in _defines(statement):
            places.setdefault(name, []).append(statement)
    waiting, asked, outside, done = [function], {function}, set(), set()
    while waiting:
        for statement in places.get(waiting.pop(), []):
            if statement in done:  # one import can define thousands of names
                continue
            done.add(statement)
            loaded = loads(statement)
            waiting += loaded - asked
            asked |= loaded
            outside |= loaded - places.keys()
    done |= {statement for statement in places.get("*", []) if _gives(statement, outside)}
    return names_in(done, outside, reached)


def names_in(
    statements: Iterable[ast.stmt], outside: Collection[str], reached: Iterable[str]
) -> frozenset[str]:
    """All names in statements that an answer needs, with those of objects.

    A word that is spelt as text counts where anything is from the course: `vars(llmcourse)["early_exit"]`.

    Args:
        outside: the globals among them that nothing of one's own defines.
        reached: as for `names_used`.
    """
    found, spelt = set(outside), set()
    for name in reached:
        first, *rest = name.split(".")
        found |= {first, *(rest if first in (COURSE, *LIBRARIES) else rest[-1:])}
    for statement in statements:
        found.update(_reached(statement))
        spelt.update(_spelt(statement))
    return frozenset(found | spelt if COURSE in found else found)


def loads(statement: ast.stmt) -> set[str]:
    """Names that a statement takes from around it."""
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} - set(_local(statement))


def statement_at(text: str, line: int) -> ast.stmt | None:
    """The outermost statement of a cell or a file that holds a line, from 1."""
    for statement in _kept(text):
        parts = [statement, *getattr(statement, "decorator_list", [])]
        if min(part.lineno for part in parts) <= line <= (statement.end_lineno or line):
            return statement
    return None


def joined(cells: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Cells as one source, and those that cannot be read, each with the reason: they must not run either.

    Cells that are no Python are not in it, since they do not run and must not hide the rest. Too long is
    what is longer than any answer: parsing takes a hundred times the memory of the text.
    """
    read, unread, length = [], {}, 0
    for cell in cells:
        text, trouble = _read(cell)
        if not trouble and length + len(cell) > LONGEST_SOURCE:
            trouble = f"at most {LONGEST_SOURCE:,} characters of a notebook are read"
        if trouble:
            unread[cell] = trouble
        else:
            length += len(cell)
            read.append(text)
    return "\n\n".join(read), unread


@lru_cache(maxsize=64)  # every question of a submission looks at the same cells
def _read(cell: str) -> tuple[str, str]:
    """A cell without IPython's own lines, empty if it is no Python; and why it cannot be read."""
    if len(cell) > LONGEST_CELL:
        return "", f"{len(cell):,} characters long, at most {LONGEST_CELL:,} are read"
    try:
        text = without_magics(cell)
        ast.parse(text)
    except NO_PYTHON:
        return "", ""
    except TOO_DEEP:
        return "", "nested too deep to be read"
    return text, ""


def _parsed(source: str) -> list[ast.stmt]:
    text = _read(source)[0] if len(source) <= LONGEST_CELL else source
    with contextlib.suppress(*NO_PYTHON, *TOO_DEEP):
        return ast.parse(text).body if len(text) <= 2 * LONGEST_SOURCE else []
    return []


_kept = lru_cache(maxsize=16)(_parsed)  # for who looks at the same cell again; trees are large


def _defines(statement: ast.stmt) -> Iterator[str]:
    """Names that it gives to those around it; an `if` or a `try` gives what stands in it."""
    if isinstance(statement, DEFINITIONS):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, DEFINITIONS):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    yield from _stored(statement)


def _local(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds itself: parameters, variables, inner functions."""
    for node in ast.walk(statement):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, DEFINITIONS):
            yield node.name
    yield from _stored(statement)


def _stored(tree: ast.AST) -> Iterable[str]:
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _reached(statement: ast.stmt) -> Iterator[str]:
    """Names after a dot, in imports, as text in `getattr(torch, "softmax")`, and in text about the course."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield from alias.name.split(".")
            yield from (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Call) and _last_name(node.func) in BY_TEXT:
            given = (*node.args, *(keyword.value for keyword in node.keywords))
            yield from (part for argument in given for part in _text(argument).split("."))
        elif isinstance(node, ast.Constant) and COURSE in _text(node):  # in prose too
            yield COURSE
    for text in _texts(statement):
        if COURSE in text:
            yield from re.findall(r"\w+", text)
        elif PATH.fullmatch(text) and text.split(".")[0] in LIBRARIES:
            yield from text.split(".")


def _spelt(statement: ast.stmt) -> Iterator[str]:
    for text in _texts(statement):
        if PATH.fullmatch(text):
            yield from text.split(".")


def _texts(statement: ast.stmt) -> Iterator[str]:
    """All that is written down as text and is more than a docstring."""
    prose = {id(node.value) for node in ast.walk(statement) if isinstance(node, ast.Expr)}
    texts = (_text(node) for node in ast.walk(statement) if id(node) not in prose)
    return (text for text in texts if text)


def _text(node: ast.AST, depth: int = 8) -> str:
    """The text that it is, or that a few of them are, one behind the other."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and depth:
        both = _text(node.left, depth - 1), _text(node.right, depth - 1)
        return "".join(both) if all(both) else ""
    return ""


def _gives(statement: ast.stmt, outside: Collection[str]) -> bool:
    """Whether some name from outside may come of a star import in it, of the course or a library looked at.

    What the course gives is read; of a library any name may be.
    """
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            first, *rest = (node.module or "").split(".")
            if first == COURSE and not _exported(tuple(rest)).isdisjoint(outside):
                return True
            if first in LIBRARIES and any(not hasattr(builtins, name) for name in outside):
                return True
    return False


@lru_cache(maxsize=256)
def _exported(inside: tuple[str, ...]) -> frozenset[str]:
    """What a star import of a module of the course gives; it is read and does not run."""
    place = PACKAGE.joinpath(*inside)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return frozenset()
    names = {path.stem for path in place.iterdir()} if place.is_dir() else set()  # modules that may be loaded
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        defined = set(_defines(statement))
        if "__all__" in defined and isinstance(statement, ast.Assign):
            return frozenset(ast.literal_eval(statement.value))
        names |= defined
    return frozenset(name for name in names if not name.startswith("_"))


def _last_name(function: ast.expr) -> str:
    """`import_module` of `importlib.import_module`; not from `ast.unparse`, which recurses."""
    return getattr(function, "attr", getattr(function, "id", ""))
