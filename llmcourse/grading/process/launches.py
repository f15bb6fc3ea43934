"""Launches of Triton's kernels in its interpreter, and how many numbers they load and store.

Best effort in a student's process, which can call the interpreter's own functions. What is counted is what
the masks let through: a number that is loaded twice counts twice. What the masks let through outside of the
kernel's tensors counts as well, but is held back: the interpreter writes to any address, and a forgotten mask
would end the whole notebook.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

INTERPRETER = "triton.runtime.interpreter"
LOADED_MASK, STORED_MASK = 1, 2  # places of the mask among the arguments


def _lanes(mask: Any) -> int:
    """How many a mask lets through: that of a block pointer is an array, others hold one."""
    return int((mask if hasattr(mask, "sum") else mask.data).sum())


def _narrowed(mask: Any, inside: Any) -> Any:
    """The same mask, of whichever kind, with nothing let through but what is inside."""
    if hasattr(mask, "sum"):
        return mask & inside
    narrowed = copy.copy(mask)
    narrowed.data = mask.data & inside
    return narrowed


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
        self._memory: list[tuple[int, int]] = []  # where what the kernel was given begins and ends
        self._replaced: list[tuple[type, str, Callable]] = []

    def __enter__(self) -> Launches:
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") == "1":
            interpreter = importlib.import_module(INTERPRETER)
            self._replace(interpreter.GridExecutor, "__call__", self._launching)
            self._replace(interpreter.GridExecutor, "_init_args_hst", self._noting_memory)
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

    def _noting_memory(self, prepare: Callable) -> Callable:
        def noted(executor: Any, /, *arguments: Any, **options: Any) -> Any:
            ready = prepare(executor, *arguments, **options)
            self._memory = [*_extents([*ready[0], *ready[1].values()])]
            return ready

        return noted

    def _moving(self, what: str, mask: int) -> Callable[[Callable], Callable]:
        def wrapped(move: Callable) -> Callable:
            def counted(builder: Any, /, *arguments: Any, **options: Any) -> Any:
                self.counts[what] += _lanes(arguments[mask])
                inside = _narrowed(arguments[mask], self._is_inside(arguments[0]))
                return move(builder, *arguments[:mask], inside, *arguments[mask + 1 :], **options)

            return counted

        return wrapped

    def _is_inside(self, pointers: Any) -> Any:
        """Which of these addresses lie in memory that the kernel was given."""
        first, size = pointers.data, -(-pointers.get_element_ty().primitive_bitwidth // 8)
        inside = first != first
        for start, end in self._memory:
            inside = inside | ((first >= start) & (first + size <= end))
        return inside


def _extents(arguments: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Where the memory of tensors lies, of those in tuples and descriptors, too."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _extents(argument)
        elif hasattr(argument, "untyped_storage"):
            storage = argument.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        elif hasattr(argument, "base"):
            yield from _extents([argument.base])
