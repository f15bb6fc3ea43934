"""Where what a function uses comes from: every object that it can reach by name, and the module of each.

A name alone says little: a star import does not spell it, a `partial` or a list hides it. So objects are
followed, from a function to the globals that it reads, from a class to its methods. A worker does so, and a
notebook. What cannot be looked into is passed over: beside a student's code this is best effort.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MOST_OBJECTS, MOST_ITEMS, MOST_NAMES = 5_000, 200, 900
GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
INSIDE = {  # of what stands around a function or a value, the attributes that hold it
    MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
}


class Origins:
    """What can be reached from an answer.

    Args:
        answer: any object; its own are those of the module that it is from.
        more: names of further globals that an own function's text speaks of.

    Attributes:
        home: the globals of that module.
        names: of all else, the module and the name in it: `llmcourse.early_exit.rules.PatienceRule`.
    """

    def __init__(self, answer: object, more: Callable[[FunctionType], Iterable[str]] = lambda function: ()):
        self.home: dict[str, Any] = {}
        self.names: set[str] = set()
        self._more = more
        self._module = ""
        seen: dict[int, object] = {}  # which keeps them alive, so that no number comes twice
        waiting = [_unwrapped(answer)]  # else a decorator's module would be home
        for thing in waiting:  # grows
            if id(thing) not in seen and len(seen) < MOST_OBJECTS:
                seen[id(thing)] = thing
                with suppress(Exception):  # they are the student's
                    waiting += self._behind(thing)

    def _behind(self, thing: object) -> Iterable[object]:
        kind = type(thing)
        if kind in INSIDE:
            return [getattr(thing, name) for name in INSIDE[kind]]
        if kind in (list, tuple, set, frozenset):
            return list(thing)[:MOST_ITEMS]
        if kind is dict:
            return list(thing.values())[:MOST_ITEMS]
        if issubclass(kind, ModuleType):  # `isinstance` would ask the thing
            return self._note([vars(thing)["__name__"]])
        if kind is FunctionType:
            return self._behind_function(thing)
        if issubclass(kind, type):
            bases, inside = (type.__getattribute__(thing, name) for name in ("__bases__", "__dict__"))
            own = self._is_own(inside.get("__module__"))
            return [*bases, *inside.values()] if own else self._note(_named(thing))
        inside = [kind, *vars(thing).values()] if hasattr(thing, "__dict__") else [kind]
        if self._is_own(kind.__module__):
            return inside
        self._note(_named(thing) if callable(thing) else _named(kind))
        return [part for part in inside[1:] if issubclass(type(part), FunctionType | type)]  # a wrapper's

    def _behind_function(self, function: FunctionType) -> Iterable[object]:
        module = function.__globals__.get("__name__", "")
        if not self._is_own(module):
            modules = (module, function.__module__)  # another where it is wrapped
            self._note([f"{module}.{function.__name__}" for module in modules])
            return [vars(function).get("__wrapped__")]
        self.home = function.__globals__
        names = {*_read(function.__code__, GLOBALS), *self._more(function)}
        found = [self.home[name] for name in names if name in self.home]
        found += _through([thing for thing in found if issubclass(type(thing), ModuleType)], function)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty one
                found.append(cell.cell_contents)
        more = (function.__defaults__, function.__kwdefaults__, function.__annotations__, vars(function))
        return [*found, *more]

    def _is_own(self, module: object) -> bool:
        """Whether that is the module of the answer; the first that is asked about is."""
        if not self._module and type(module) is str and module not in ("builtins", "functools"):
            self._module = module
            self._note([module])
        return module == self._module

    def _note(self, names: Iterable[object]) -> tuple[()]:
        """Nothing is behind them."""
        for name in names:
            if type(name) is str and not name.startswith("builtins.") and len(self.names) < MOST_NAMES:
                self.names.add(name)
        return ()


def _through(modules: list[ModuleType], function: FunctionType) -> list[object]:
    """What a function may have from modules: under each attribute that it reads, of whichever object."""
    attributes, found = {*_read(function.__code__, ATTRIBUTES)}, []
    waiting = list(modules)
    for module in waiting:  # grows
        inside = [vars(module)[name] for name in attributes & vars(module).keys()]
        found += inside
        waiting += [part for part in inside if issubclass(type(part), ModuleType) and part not in waiting]
    return found


def _read(code: CodeType, how: Collection[str]) -> Iterator[str]:
    """The names that a function reads in this way, its inner functions too."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in how)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _read(constant, how)


def _unwrapped(answer: object) -> object:
    with suppress(Exception):
        return inspect.unwrap(answer)
    return answer


def _named(thing: Any) -> list[str]:
    """Module and name; where a thing names no module, as SciPy's functions do not, all that hold it."""
    name, module = getattr(thing, "__name__", None), getattr(thing, "__module__", None)
    if type(name) is not str:
        return _named(type(thing))
    if type(module) is str:
        return [f"{module}.{name}"]
    everywhere = ((place, getattr(held, "__dict__", {})) for place, held in list(sys.modules.items()))
    return [f"{place}.{name}" for place, held in everywhere if held.get(name) is thing]
