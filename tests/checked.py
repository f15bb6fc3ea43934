"""How each call of the package is checked in tests: arguments and result, by type and by shape.

jaxtyping's own way binds the arguments to their names and looks at each twice, before the function and
behind it, and that took half of the suite's time. Here beartype looks at each once, around the function, in
the same scope of sizes. What passes and what does not is the same, but for arguments that a function itself
makes wrong where they lie: those were looked at once more behind it.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

_jaxtyped = jaxtyping.jaxtyped
_scope = _jaxtyped("context")  # of its own for the sizes of each call; it keeps nothing itself


def checked(*, typechecker: Callable) -> Callable:
    """As `jaxtyping.jaxtyped`; a function without annotations stays as it is: nothing is checked in it."""
    check = _jaxtyped(typechecker=typechecker)

    def decorate(made):
        if not inspect.isfunction(made) or _comes_piece_by_piece(made):
            return check(made)
        return _checked_once(made, typechecker) if made.__annotations__ else made

    return decorate


def _comes_piece_by_piece(made: types.FunctionType) -> bool:
    """Such a function has its arguments checked when it is called, not when the first piece is asked for."""
    kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    return any(kind(made) for kind in kinds)


def _checked_once(made: types.FunctionType, typechecker: Callable) -> types.FunctionType:
    written, seen = made.__annotations__, made.__globals__
    hints = {name: _read(hint, seen) for name, hint in written.items()}
    twin = types.FunctionType(
        made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__
    )
    twin.__kwdefaults__, twin.__annotations__ = made.__kwdefaults__, hints
    twin.__module__, twin.__qualname__ = made.__module__, made.__qualname__
    checking, switches = typechecker(twin), jaxtyping.config
    if checking is twin:
        return made

    @functools.wraps(made)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if switches.jaxtyping_disable:
            return made(*args, **kwargs)
        try:
            return checking(*args, **kwargs)
        except BeartypeCallHintViolation as wrong:
            raise jaxtyping.TypeCheckError(str(wrong)) from None

    if not any(map(_has_a_shape, hints.values())):
        return call

    @functools.wraps(made)
    def call_in_scope(*args, **kwargs):
        __tracebackhide__ = True
        with _scope:
            return call(*args, **kwargs)

    return call_in_scope


def _read(written: object, seen: dict[str, object]) -> object:
    """A hint that may stand there as a string; what names nothing yet is not checked, as by jaxtyping."""

    def holder(value): ...

    holder.__annotations__ = {"value": written}
    try:
        return typing.get_type_hints(holder, seen, include_extras=True)["value"]
    except (NameError, AttributeError, TypeError, SyntaxError, ValueError):
        return typing.Any


def _has_a_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list | tuple) else typing.get_args(hint)
    return any(map(_has_a_shape, parts))
