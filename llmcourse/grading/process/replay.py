"""Runs the cells of a notebook as IPython would, statement by statement, and notes what raised.

A student's notebook need not run from top to bottom: a statement that fails costs itself, and the next
goes on, so that every function that can be defined is.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import linecache
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder

from llmcourse.grading.printable import clean

MAX_NOTES = 200
MESSAGE = 500  # characters
TIMING_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # what follows is Python
FUTURES = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
# Of Python's own errors those that say what is wrong; a student may raise a class of theirs below some.
KINDS = {kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)}
KINDS -= {Exception}
KIND_NAMES = {kind.__name__ for kind in KINDS}
LAB_BUILDS_IT = "llmcourse.decoding is what this lab builds; answers cannot use it"


@dataclass(frozen=True)
class CellError:
    """What one statement of a cell raised.

    Args:
        cell_index: into the cells that were run.
        type: the exception's name.
        message: one line.
        line: in the cell, from 1; 0 when unknown.
    """

    cell_index: int
    type: str
    message: str
    line: int = 0


def new_main() -> types.ModuleType:
    """An empty `__main__`, put in the place of ours."""
    module = types.ModuleType("__main__")
    module.__dict__["display"] = lambda *objects, **options: None  # as in a notebook, but nobody looks
    sys.modules["__main__"] = module
    return module


def run(
    cells: Sequence[str], module: types.ModuleType, starts: Callable[[int], None] = lambda index: None
) -> list[CellError]:
    """Runs cells in a module.

    Args:
        starts: told the index of each cell before it runs.

    Returns:
        what was raised, `SystemExit` and `KeyboardInterrupt` included; the first 200.
    """
    errors: list[CellError] = []

    def note(error: BaseException) -> None:
        if len(errors) < MAX_NOTES:
            errors.append(CellError(index, *describe(error, name)))

    flags = 0
    for index, cell in enumerate(cells):
        starts(index)
        name = f"<cell {index}>"
        try:
            source = without_magics(cell)
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            statements = ast.parse(source, name).body
        except BaseException as error:
            note(error)
            continue
        for statement in statements:
            try:
                code = compile(ast.Module([statement], []), name, "exec", flags, dont_inherit=True)
                flags |= code.co_flags & FUTURES
                exec(code, module.__dict__)
            except BaseException as error:
                note(error)
    return errors


MOST_MAGICS = 30  # lines of a cell; each costs a parse of it


def without_magics(cell: str) -> str:
    """A cell whose lines of IPython (`%magic`, `!command`, `name?`) are made `pass`; no line moves.

    Only lines that Python stumbles over are looked at: `% b` may also continue an expression.
    """
    lines = cell.splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[first].startswith("%%"):
        if lines[first].split()[0] not in TIMING_MAGICS:
            return ""
        lines[first] = "pass"
    for _ in range(MOST_MAGICS):
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
            if not 0 <= number < len(lines) or not _is_magic(lines[number]):
                break
            indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
            lines[number] = f"{indent}pass"
    return "\n".join(lines) + "\n"


def _is_magic(line: str) -> bool:
    text = line.strip()
    assigned = text.partition("=")[2].strip()  # files = !ls
    return text.startswith(("%", "!", "?")) or text.endswith("?") or assigned.startswith(("%", "!"))


def describe(error: BaseException, filename: str = "<cell ") -> tuple[str, str, int]:
    """Name, one-line message and line of the student's code of an exception, whose `str` may itself raise.

    Args:
        filename: how the name of the file begins in which the line is looked for.
    """
    try:
        message = clean(str(error), MESSAGE)
    except BaseException:
        message = "its message cannot be shown"
    if isinstance(error, SyntaxError) and str(error.filename).startswith(filename):
        return type(error).__name__, clean(error.msg or "", MESSAGE), error.lineno or 0
    lines = [line for name, line in frames(error.__traceback__) if name.startswith(filename)]
    return clean(type(error).__name__, 80), message, lines[-1] if lines else 0


def shown(error: BaseException, filename: str = "<cell ") -> tuple[str, int]:
    """An exception as `ValueError: why`, and the line of the student's code; see `describe`.

    A class that is not Python's own is told with the nearest that are: `Orphan (a kind of ValueError): why`.
    """
    try:
        name, message, line = describe(error, filename)
        name += _kind_of(type(error))
    except BaseException:  # the exception is the student's, so are its methods
        name, message, line = "an exception that cannot be shown", "", 0
    return (f"{name}: {message}" if message else name), line


def kinds(error: BaseException) -> tuple[str, ...]:
    """The names of Python's own exceptions that `except` takes it for, whatever its class is called."""
    return tuple(sorted(kind.__name__ for kind in _above(type(error))))


def _above(kind: type[BaseException]) -> set[type[Exception]]:
    return {own for own in KINDS if issubclass(kind, own)}  # asks no method of the student's


def _kind_of(kind: type[BaseException]) -> str:
    above = _above(kind)
    if kind in above:
        return ""
    nearest = sorted(own.__name__ for own in above if not any(own in other.__bases__ for other in above))
    borrowed = " (not Python's own)" if kind.__name__ in KIND_NAMES else ""
    return f" (a kind of {' and '.join(nearest)})" if nearest else borrowed


def frames(traceback: types.TracebackType | None) -> Iterator[tuple[str, int]]:
    """File and line of each step of a traceback, the innermost last."""
    while traceback:
        yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno or 0
        traceback = traceback.tb_next


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, PyTorch's way of saying so included."""
    try:
        if isinstance(error, RuntimeError):
            return any(part in str(error) for part in OUT_OF_MEMORY)
        return isinstance(error, MemoryError)
    except BaseException:  # its methods are the student's
        return False


class Blocked(MetaPathFinder):
    """Says why a part of the course cannot be imported, before any file is looked for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "llmcourse.decoding" or name.startswith("llmcourse.decoding."):
            raise ImportError(LAB_BUILDS_IT, name=name)
        if name.startswith("llmcourse.grading."):
            raise ImportError(f"{name} is not there while an answer is graded", name=name)


def grader_modules() -> list[str]:
    """Those of the grader's modules that are loaded."""
    return [name for name in sys.modules if name.startswith("llmcourse.grading.")]


def hide(modules: Iterable[str]) -> None:
    """Leaves of the grader's modules only a `selfcheck` whose checks do nothing.

    The sandbox is what keeps a student's code from the grader; this keeps it from tripping over it.
    """
    package = sys.modules["llmcourse.grading"]
    for name in modules:
        del sys.modules[name]
        vars(package).pop(name.split(".")[2], None)
    stub = types.ModuleType("llmcourse.grading.selfcheck")
    stub.check = stub.require = lambda *arguments, **options: None
    sys.modules[stub.__name__] = package.selfcheck = stub
    sys.meta_path.insert(0, Blocked())
