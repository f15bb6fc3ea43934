"""What a self-check reads of an answer: its source, its helpers', and where what it uses comes from.

The grader reads all cells. The source of a function alone does not say what a cell above it has imported, so
imports that come to the same are put in front of it.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType

from llmcourse.grading.rules import LIBRARIES

LOOKED_AT = ("llmcourse", *LIBRARIES)  # packages that may hold an answer
MOST_HELPERS = 50


def source_of(function: object) -> str:
    """What defines a function, behind imports of what it has from the course or a library that is looked at.

    Empty where its own source cannot be known.
    """
    try:
        texts = [textwrap.dedent(inspect.getsource(function))]
    except Exception:  # the object is the student's: anything may happen
        return ""
    helpers = [function]
    for helper in helpers:  # grows
        for name, value in _globals_of(helper):
            with suppress(Exception):
                if _is_own(value, function) and value not in helpers and len(helpers) < MOST_HELPERS:
                    texts.append(textwrap.dedent(inspect.getsource(value)))
                    helpers.append(value)
                elif origin := _origin(name, value):
                    texts.insert(0, origin)
    return "\n".join(texts)


def _globals_of(function: object) -> Iterator[tuple[str, object]]:
    """The globals that a function may use, its inner functions too; names of attributes may be among them."""
    if isinstance(function, FunctionType):
        found = function.__globals__
        yield from ((name, found[name]) for name in _names(function.__code__) if name in found)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_own(value: object, function: FunctionType) -> bool:
    """Whether a function is from the same notebook, or the same file."""
    return isinstance(value, FunctionType) and value.__globals__ is function.__globals__


def _origin(name: str, value: object) -> str:
    """An import that gives such an object that name; empty where it is from nowhere that is looked at."""
    if isinstance(value, ModuleType):
        module = value.__name__
    else:
        module = (value if isinstance(value, type | FunctionType) else type(value)).__module__
    parts = module.split(".")
    if parts[0] not in LOOKED_AT or not all(part.isidentifier() for part in parts):
        return ""
    return f"import {module} as {name}" if isinstance(value, ModuleType) else f"from {module} import {name}"
