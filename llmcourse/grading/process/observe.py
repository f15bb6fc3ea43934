"""One call of a student's function, and what can be seen of it: what came, what ran, what was changed.

A worker calls so, and so does the self-check in a notebook: what the one objects to, the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmcourse.grading.answer import Oracle
from llmcourse.grading.process import wire
from llmcourse.grading.process.aliasing import aliased
from llmcourse.grading.process.launches import Launches
from llmcourse.grading.process.operations import Operations


@dataclass(frozen=True)
class Observed:
    """What one call came to.

    Args:
        raised: what it raised instead of giving a value.
        operations: of PyTorch, those of oracles not among them.
        mutated: names of arguments that were changed in place, or were left with a gradient: that of another
            call would be added to it.
        aliased: names of arguments whose memory the value lies in.
        counts: `peak_bytes`, the most that tensors took up at once, without the arguments; and `launches`,
            `loads` and `stores` of Triton's kernels.
    """

    value: Any
    raised: BaseException | None
    operations: tuple[str, ...]
    mutated: tuple[str, ...]
    aliased: tuple[str, ...]
    counts: dict[str, int]


def observe(
    function: Callable[..., Any], arguments: Mapping[str, Any], oracles: Mapping[str, Callable[..., Any]]
) -> Observed:
    """Calls a function with these very arguments; whatever it raises is told, not raised.

    Args:
        oracles: what stands for an `Oracle` among the arguments, by its name.
    """
    operations, value, raised = Operations(dict(arguments)), None, None
    launches = Launches(operations.paused)
    before = {name: _frozen(given) for name, given in arguments.items() if not isinstance(given, Oracle)}
    given = {
        name: _unnoted(argument.name, oracles[argument.name], operations)
        if isinstance(argument, Oracle)
        else argument
        for name, argument in arguments.items()
    }
    try:
        with operations, launches:
            value = function(**given)
    except BaseException as error:
        raised = error
    mutated = tuple(name for name, frozen in before.items() if _frozen(arguments[name]) != frozen)
    counts = {"peak_bytes": operations.allocations.peak_bytes, **launches.counts}
    return Observed(value, raised, operations.names, mutated, aliased(value, arguments), counts)


def _unnoted(name: str, oracle: Callable[..., Any], operations: Operations) -> Callable[..., Any]:
    """An oracle under its own name, whose operations are not the student's; what it gives is theirs."""

    def ask(*arguments: Any, **options: Any) -> Any:
        with operations.paused():
            value = oracle(*arguments, **options)
        operations.allocations.note(value)
        return value

    ask.__name__ = ask.__qualname__ = name
    return ask


def _frozen(value: Any) -> tuple[bytes, bool]:
    """The bytes of a value, by which a change in place is seen, one of a NaN included; and its gradient."""
    try:
        return wire.encode(value, wire.REQUEST), _has_gradient(value)
    except BaseException:
        return b"changed into something that cannot be sent", False


def _has_gradient(value: Any) -> bool:
    """Whether a tensor, or one in a list, has a gradient that the next one is added to."""
    if type(value) in (list, tuple):
        return any(map(_has_gradient, value))
    return isinstance(value, Tensor) and value.is_leaf and value.grad is not None
