"""What can go wrong while decoding, and the one form in which bad arguments are reported."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real


class DecodingError(RuntimeError):
    """A sequence that cannot go on; the others of its batch can.

    Attributes:
        generations: what every row of the batch came to, once the loop has ended.
    """

    generations: list


class NonFiniteLogitsError(DecodingError):
    """A row of logits holds NaN or +inf."""


class EverythingMaskedError(DecodingError):
    """A row of logits is -inf throughout: no token is left to choose."""


def require(holds: bool, name: str, allowed: str, value: object, remedy: str) -> None:
    """Raises `ValueError` as `top_p must be in (0, 1], got 1.3; use 1.0 to disable it`."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value}; {remedy}")


def require_number(
    holds: Callable[[float], bool], name: str, allowed: str, value: object, remedy: str, *, kind: type = Real
) -> None:
    """As `require`, for a number: text, None, True and False are refused before `holds` compares them."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} must be {allowed}, got {value!r}; {remedy}")
    require(bool(holds(value)), name, allowed, value, remedy)  # NumPy compares to a bool of its own


def require_integer(least: int, name: str, value: object, remedy: str) -> None:
    """As `require_number`, for an integer of at least `least`."""
    allowed = f"an integer of at least {least}"
    require_number(lambda number: number >= least, name, allowed, value, remedy, kind=Integral)


def require_on_error(on_error: str) -> None:
    """Refuses what says neither to raise a row's error nor to return it."""
    require(on_error in ("raise", "return"), "on_error", "'raise' or 'return'", repr(on_error), "choose one")
