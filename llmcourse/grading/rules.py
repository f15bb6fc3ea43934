"""What must hold besides the value: no input changed, no more forward passes than needed, own work.

A forbidden operation is looked for in the operations that ran and in the syntax tree of the cell. Both can
be fooled by somebody who tries: this is best effort, and is said to be.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

from llmcourse.grading.answer import Answer
from llmcourse.grading.printable import clean

LIBRARIES = ("transformers", "vllm", "scipy")  # hold finished answers to what this course asks
LONGEST_SOURCE = 200_000  # characters: no honest lab comes near
NOT_PYTHON = re.compile(r"^(\s*)(?:[%!?].*|.*\?\s*)$")  # IPython's own lines
BY_TEXT = ("getattr", "attrgetter", "methodcaller", "import_module", "__import__")


@dataclass(frozen=True)
class Evidence:
    """One call, as the rules see it.

    Args:
        function: what the exercise asks for.
        answer: what the call came to; its value was right.
        reference_calls: how often the reference asked each oracle for the same case.
        source: the cell that defines the function, empty where it is not known.
    """

    function: str
    answer: Answer
    reference_calls: Mapping[str, int] = field(default_factory=dict)
    source: str = ""


@runtime_checkable
class Rule(Protocol):
    """Says in one line how a call breaks it; empty if it does not."""

    @property
    def name(self) -> str: ...

    def __call__(self, evidence: Evidence) -> str: ...


@dataclass(frozen=True)
class NoMutation:
    """The arguments are as they were: whoever calls still needs them."""

    name: str = "arguments stay as they were"

    def __call__(self, evidence: Evidence) -> str:
        changed = ", ".join(sorted(clean(name, 40) for name in evidence.answer.mutated))
        return f"{changed} was changed in place; work on a copy" if changed else ""


@dataclass(frozen=True)
class OracleCalls:
    """The model is asked as often as the reference asks it, or at most so often.

    Args:
        oracle: the name of the argument that is the model.
        at_most: fewer calls are right too.
    """

    oracle: str
    at_most: bool = False
    name: str = "forward passes"

    def __call__(self, evidence: Evidence) -> str:
        calls = evidence.answer.oracle_calls.get(self.oracle, 0)
        wanted = evidence.reference_calls[self.oracle]
        if calls == wanted or (self.at_most and calls < wanted):
            return ""
        times = "once" if calls == 1 else f"{calls} times"
        return f"{self.oracle} was called {times}, expected {'at most ' * self.at_most}{wanted}"


@dataclass(frozen=True)
class Forbid:
    """Operations of PyTorch, and names in the source, that would be the answer itself.

    Args:
        operations: as in `Answer.operations`, leading underscores left out: `softmax`.
        names: of functions, methods or modules, `logsumexp` or `scipy`; each operation is one too.
    """

    operations: tuple[str, ...] = ()
    names: tuple[str, ...] = LIBRARIES
    name: str = "own work"

    def __call__(self, evidence: Evidence) -> str:
        ran = {operation.lstrip("_") for operation in evidence.answer.operations}
        used = names_used(evidence.source, evidence.function)
        found = sorted(ran & set(self.operations)) or sorted(used & {*self.operations, *self.names})
        return f"uses {found[0]}, which this exercise is about" if found else ""


@lru_cache(maxsize=64)  # the same cell is looked at with every case
def names_used(source: str, function: str) -> frozenset[str]:
    """Names that a function needs from outside the source: globals, attributes, imports.

    Followed through everything in the source that the function refers to; what is defined there under
    a forbidden name is the student's own. Empty where the source is no Python.
    """
    places: dict[str, list[ast.stmt]] = {}
    for statement in _parsed(source)[1]:
        for name in _defines(statement):
            places.setdefault(name, []).append(statement)
    found, waiting, done = set(), [function], set()
    while waiting:
        for statement in places.get(waiting.pop(), []):
            if statement in done:  # one import can define thousands of names
                continue
            done.add(statement)
            inside = set(_local(statement))
            loaded = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} - inside
            waiting += loaded
            found |= {name for name in loaded if name not in places} | set(_reached(statement))
    return frozenset(found)


def joined(cells: Iterable[str]) -> str:
    """Cells as one source, without those that are no Python: they do not run, and must not hide the rest."""
    return "\n\n".join(_parsed(cell)[0] for cell in cells)


def _parsed(source: str) -> tuple[str, list[ast.stmt]]:
    """A source without IPython's own lines, and its statements; nothing where it is too long or broken."""
    lines = [NOT_PYTHON.sub(r"\1pass", line) for line in source[:LONGEST_SOURCE].split("\n")]
    for text in (source, "\n".join(lines)) if len(source) <= LONGEST_SOURCE else ():
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            return text, ast.parse(text).body
    return "", []


def _defines(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    else:
        yield from _stored(statement)


def _local(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds itself: parameters, variables, inner functions."""
    for node in ast.walk(statement):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
    yield from _stored(statement)


def _stored(tree: ast.AST) -> Iterable[str]:
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _reached(statement: ast.stmt) -> Iterator[str]:
    """Names after a dot, in imports, and as text in `getattr(torch, "softmax")`."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield from alias.name.split(".")
            yield from (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Call) and _last_name(node.func) in BY_TEXT:
            texts = (argument.value for argument in node.args if isinstance(argument, ast.Constant))
            yield from (text for text in texts if isinstance(text, str))


def _last_name(function: ast.expr) -> str:
    """`import_module` of `importlib.import_module`; not from `ast.unparse`, which recurses."""
    return getattr(function, "attr", getattr(function, "id", ""))
