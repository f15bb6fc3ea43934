"""Answers that are programs, as a student would write them: a text in which lines are changed.

Triton finds a kernel's text as it finds that of a notebook's cell, so each program is kept where it looks.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable
from functools import cache
from typing import Any

_numbers = itertools.count()


def written(source: str, function: str, *changes: tuple[str, str]) -> Callable:
    """What a program with these texts replaced defines under a name; it is run when that is first called."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)

    def answer(**given: Any) -> Any:
        return _run(source)[function](**given)

    return answer


@cache
def _run(source: str) -> dict[str, Any]:
    name, names = f"<program {next(_numbers)}>", {"__name__": "__main__"}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), names)
    return names
