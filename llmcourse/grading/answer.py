"""What one call of a student's function came to: a value, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FailureKind = Literal[
    "raised",
    "missing",
    "time limit",
    "memory limit",
    "disk limit",
    "output limit",
    "reply too large",
    "malformed reply",
    "forged reply",
    "process ended",
]


# NumPy's scalars look like numbers and are objects of a library: no values that are sent or compared.
PLAIN = {np.bool_: "bool", np.integer: "int", np.floating: "float", np.str_: "str"}


def numpy_remedy(kind: type) -> str:
    """`; float(…) makes a plain float` for `numpy.float64`; empty for a type that is no scalar of NumPy's."""
    plain = next((name for base, name in PLAIN.items() if issubclass(kind, base)), "")
    return f"; {plain}(…) makes a plain {plain}" if plain else ""


@dataclass(frozen=True)
class Oracle:
    """An argument that is a function of the judge's: each call of it is a question that the judge counts.

    Args:
        name: the key under which the case holds the function.
        shown: what it is, in a line for students.
    """

    name: str
    shown: str = "the model"


@dataclass(frozen=True)
class Failure:
    """Why a call gave no value.

    Args:
        message: one line, made of printable characters.
        kinds: of what was raised: the names of Python's own exceptions that `except` takes it for.
    """

    kind: FailureKind
    message: str = ""
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


@dataclass(frozen=True)
class Answer:
    """One call's outcome.

    Args:
        value: what the function returned, when `error` is None.
        operations: names of the PyTorch operations that ran, as `aten.softmax.int` without overload:
            `softmax`; what a student's process reports, so a hint rather than a proof.
        mutated: names of arguments that were changed in place.
        aliased: names of arguments that share memory with the value; what a student's process reports of
            both is a hint too.
        oracle_calls: how often each oracle was asked.
        counts: what else was counted during the call, by name, as `observe` says; reported by a student's
            process, so a hint too.
        seconds: by the caller's clock.
    """

    value: Any = None
    error: Failure | None = None
    operations: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()
    aliased: tuple[str, ...] = ()
    oracle_calls: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
