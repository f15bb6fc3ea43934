"""What a self-check knows of what an answer uses: the grader's rule, read from its objects and their cells.

The grader reads the text of all cells. Here a function finds the cell that it is from, and those of the
functions that it reaches; what an import has put beside them, a star among them, shows in the objects.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable
from contextlib import suppress
from types import FunctionType

from llmcourse.grading.names_used import loads, names_in, statement_at
from llmcourse.grading.process.origins import Origins


def used_by(answer: object) -> frozenset[str]:
    """Names that an answer needs from outside, as `names_used` has them of the text of a notebook.

    Args:
        answer: a function, or any other object that is called as one.
    """
    statements: dict[ast.stmt, set[str]] = {}  # each with what it loads

    def loaded(function: FunctionType) -> Iterable[str]:
        statement = _statement_of(function)
        return statements.setdefault(statement, loads(statement)) if statement else ()

    origins = Origins(answer, loaded)
    outside = {name for names in statements.values() for name in names} - origins.home.keys()
    return names_in(statements, outside, origins.names)


def _statement_of(function: FunctionType) -> ast.stmt | None:
    """That which defines it, in its cell or file; None where that is not known."""
    code = function.__code__
    with suppress(Exception):  # the object is the student's: anything may happen
        return statement_at("".join(linecache.getlines(code.co_filename)), code.co_firstlineno)
    return None
