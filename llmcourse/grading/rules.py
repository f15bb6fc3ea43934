"""What must hold besides the value: no input changed or returned, no forward pass too many, no matrix where
tiles are asked for, own work.

A forbidden operation is looked for in the operations that ran and in the syntax tree of the cell. Both can
be fooled by somebody who tries: this is best effort, and is said to be.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

from llmcourse.grading.answer import Answer
from llmcourse.grading.printable import clean
from llmcourse.grading.process.replay import without_magics

COURSE = "llmcourse"
LIBRARIES = ("transformers", "vllm", "scipy")  # hold finished answers to what this course asks
KIB = 1024
LONGEST_CELL, LONGEST_SOURCE = 50_000, 500_000  # characters that are read; an answer has a few thousand
NO_PYTHON, TOO_DEEP = (SyntaxError, ValueError), (RecursionError, MemoryError)
BY_TEXT = ("getattr", "attrgetter", "methodcaller", "import_module", "__import__")


@dataclass(frozen=True)
class Evidence:
    """One call, as the rules see it.

    Args:
        function: what the exercise asks for.
        answer: what the call came to; its value was right.
        reference_calls: how often the reference asked each oracle for the same case.
        source: the cell that defines the function, empty where it is not known.
        allows: the most that may be counted, `Case.allows`.
    """

    function: str
    answer: Answer
    reference_calls: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    allows: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Rule(Protocol):
    """Says in one line how a call breaks it; empty if it does not."""

    @property
    def name(self) -> str: ...

    def __call__(self, evidence: Evidence) -> str: ...


def _changed(names: Collection[str]) -> str:
    """What is said of arguments that were changed; empty where there are none."""
    were = "was" if len(names) == 1 else "were"
    named = ", ".join(sorted(clean(name, 40) for name in names))
    return f"{named} {were} changed in place; work on a copy" if names else ""


@dataclass(frozen=True)
class NoMutation:
    """The arguments are as they were: whoever calls still needs them."""

    name: str = "arguments stay as they were"

    def __call__(self, evidence: Evidence) -> str:
        return _changed(evidence.answer.mutated)


@dataclass(frozen=True)
class NewTensor:
    """What is returned lies in memory of its own: whoever calls may change it and keep the arguments.

    Best effort: that memory is shared is reported from beside the student's code, which can hide it.
    """

    name: str = "a new tensor"

    def __call__(self, evidence: Evidence) -> str:
        shared = ", ".join(sorted(clean(name, 40) for name in evidence.answer.aliased))
        return f"the result shares its memory with {shared}; return a copy" if shared else ""


@dataclass(frozen=True)
class InPlace:
    """These arguments are written into and returned themselves, not copies of them; no other is changed.

    Best effort, as `NewTensor`.

    Args:
        buffers: names of the arguments.
    """

    buffers: tuple[str, ...]
    name: str = "written in place"

    def __call__(self, evidence: Evidence) -> str:
        answer = evidence.answer
        copied = [name for name in self.buffers if not {name} <= {*answer.aliased} & {*answer.mutated}]
        if copied:
            were, them = ("was", "it") if len(copied) == 1 else ("were", "them")
            return f"{', '.join(copied)} {were} copied; write into {them}, and return {them}"
        return _changed({*answer.mutated} - {*self.buffers})


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
class PeakMemory:
    """All tensors made during the call, together, never take up more than the case allows.

    Best effort: it is counted beside the student's code, and memory that is no tensor's is not seen.
    """

    name: str = "peak memory"

    def __call__(self, evidence: Evidence) -> str:
        most = evidence.allows.get("peak_bytes")
        held = evidence.answer.counts.get("peak_bytes", 0)
        if most is None or held <= most:
            return ""
        held, most = (f"{b / KIB:,.{0 if b >= 10 * KIB else 1}f} KiB" for b in (held, most))
        return f"tensors of {held} were alive at once, at most {most} are allowed"


@dataclass(frozen=True)
class OneLaunch:
    """A kernel of Triton's does it: one launch, which loads and stores as many numbers as the case allows.

    Best effort, as `PeakMemory`.
    """

    name: str = "one kernel"

    def __call__(self, evidence: Evidence) -> str:
        counts = evidence.answer.counts
        launches = counts.get("launches", 0)
        if launches != 1:
            times = "no kernel of Triton's was launched" if not launches else f"{launches} launches"
            return f"{times}, expected 1 launch"
        for what in ("loads", "stores"):
            moved, wanted = counts.get(what, 0), evidence.allows[what]
            if moved != wanted:
                return f"the kernel {what} {moved:,} numbers, expected {wanted:,}"
        return ""


@dataclass(frozen=True)
class Only:
    """Of PyTorch's operations, none but these run. Best effort, as `Forbid`.

    Args:
        operations: as in `Answer.operations`, leading underscores left out.
        instead: what does the rest.
    """

    operations: frozenset[str]
    instead: str
    name: str = "own work"

    def __call__(self, evidence: Evidence) -> str:
        ran = {operation.lstrip("_") for operation in evidence.answer.operations}
        others = sorted(ran - self.operations)
        return f"PyTorch's {others[0]} ran; {self.instead}" if others else ""


@dataclass(frozen=True)
class Forbid:
    """Operations of PyTorch, and names in the source, that would be the answer itself.

    Args:
        operations: as in `Answer.operations`, leading underscores left out: `softmax`.
        names: of functions, methods or modules, `logsumexp` or `scipy`; each operation is one too.
        parts: of the course; words that anybody may use, so they count only where the answer has anything
            from the course: `state.early_exit` may be an attribute of one's own.
    """

    operations: tuple[str, ...] = ()
    names: tuple[str, ...] = LIBRARIES
    parts: tuple[str, ...] = ()
    name: str = "own work"

    def __call__(self, evidence: Evidence) -> str:
        ran = {operation.lstrip("_") for operation in evidence.answer.operations}
        used = names_used(evidence.source, evidence.function)
        refused = {*self.operations, *self.names, *(self.parts if COURSE in used else ())}
        found = sorted(ran & set(self.operations)) or sorted(used & refused)
        return f"uses {found[0]}, which this exercise is about" if found else ""


@lru_cache(maxsize=64)  # the same cell is looked at with every case
def names_used(source: str, function: str) -> frozenset[str]:
    """Names that a function needs from outside the source: globals, attributes, imports.

    Followed through everything in the source that the function refers to; what is defined there under
    a forbidden name is the student's own. The course is among them where text speaks of it or all of a
    module of its is imported, since nobody sees what comes of that. Empty where the source is no Python.
    """
    places: dict[str, list[ast.stmt]] = {}
    for statement in _parsed(source):
        for name in _defines(statement):
            places.setdefault(name, []).append(statement)
    found, waiting, asked, done = set(), [function], {function}, set()
    while waiting:
        for statement in places.get(waiting.pop(), []):
            if statement in done:  # one import can define thousands of names
                continue
            done.add(statement)
            inside = set(_local(statement))
            loaded = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} - inside
            waiting += loaded - asked
            asked |= loaded
            found |= {name for name in loaded if name not in places} | set(_reached(statement))
    found |= {COURSE} & {name for statement in places.get("*", []) for name in _reached(statement)}
    return frozenset(found)


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
    """Names after a dot, in imports, and as text in `getattr(torch, "softmax")`; the course in any text."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield from alias.name.split(".")
            yield from (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Call) and _last_name(node.func) in BY_TEXT:
            texts = (argument.value for argument in node.args if isinstance(argument, ast.Constant))
            yield from (part for text in texts if isinstance(text, str) for part in text.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and COURSE in node.value:
            yield COURSE


def _last_name(function: ast.expr) -> str:
    """`import_module` of `importlib.import_module`; not from `ast.unparse`, which recurses."""
    return getattr(function, "attr", getattr(function, "id", ""))
