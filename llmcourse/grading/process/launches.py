"""Launches of Triton's kernels in its interpreter, and how many numbers they load and store.

Best effort in a student's process, which can call the interpreter's own functions. What is counted is what
the masks let through: a number that is loaded twice counts twice.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

INTERPRETER = "triton.runtime.interpreter"
LOADED_MASK, STORED_MASK = 1, 2  # places of the mask among the arguments


def _lanes(mask: Any) -> int:
    """How many a mask lets through: that of a block pointer is an array, others hold one."""
    return int((mask if hasattr(mask, "sum") else mask.data).sum())


class Launches:
    """Counts while it is entered; nothing where Triton was not imported before, or is not interpreted.

    Args:
        paused: entered around a launch: what the interpreter does for it is not the student's doing.

    Attributes:
        counts: `launches`, `loads` and `stores` so far.
    """

    def __init__(self, paused: Callable[[], AbstractContextManager]):
        self.counts = {"launches": 0, "loads": 0, "stores": 0}
        self._paused = paused
        self._replaced: list[tuple[type, str, Callable]] = []

    def __enter__(self) -> Launches:
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") == "1":
            interpreter = importlib.import_module(INTERPRETER)
            self._replace(interpreter.GridExecutor, "__call__", self._launching)
            builder = interpreter.InterpreterBuilder
            self._replace(builder, "create_masked_load", self._moving("loads", LOADED_MASK))
            self._replace(builder, "create_masked_store", self._moving("stores", STORED_MASK))
        return self

    def __exit__(self, *exception: object) -> None:
        for owner, name, original in self._replaced:
            setattr(owner, name, original)

    def _replace(self, owner: type, name: str, wrapped: Callable[[Callable], Callable]) -> None:
        original = getattr(owner, name)
        self._replaced.append((owner, name, original))
        setattr(owner, name, wrapped(original))

    def _launching(self, launch: Callable) -> Callable:
        def counted(executor: Any, /, *arguments: Any, **options: Any) -> Any:
            self.counts["launches"] += 1
            with self._paused():
                return launch(executor, *arguments, **options)

        return counted

    def _moving(self, what: str, mask: int) -> Callable[[Callable], Callable]:
        def wrapped(move: Callable) -> Callable:
            def counted(builder: Any, /, *arguments: Any, **options: Any) -> Any:
                self.counts[what] += _lanes(arguments[mask])
                return move(builder, *arguments, **options)

            return counted

        return wrapped
