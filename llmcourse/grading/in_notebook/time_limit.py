"""A limit on the time of a call in this process: a timer that raises, where the system has one.

Signals reach the main thread only, and Windows has no timer that sends one: there the limit is none. What
computes in one call of C, such as an operation of PyTorch, is stopped when it comes back to Python.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 0.05  # a loop that catches everything is asked again, until it is caught outside its `try`
SOON_S = 1e-3  # for a timer of somebody else's that ran out meanwhile


class TimeIsUp(BaseException):
    """The limit was reached; no `Exception`, so that what a student catches is not this."""


def can_limit() -> bool:
    """Whether a limit holds here."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def time_limit(limit_s: float | int) -> Iterator[None]:
    """What runs inside ends with `TimeIsUp` when it takes longer; none where `can_limit()` is false.

    The handler and the timer that were there before are put back.

    Args:
        limit_s: positive; infinity is no limit.
    """
    if limit_s == math.inf or not can_limit():
        yield
        return
    running = False

    def ring(*_: object) -> None:
        if running:
            raise TimeIsUp

    started = time.monotonic()
    rest_s, every_s = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
            running = True
            yield
        finally:
            running = False
    finally:  # also when the bell rings in the line above
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)  # None: it was not set by Python
        if rest_s:
            rest_s = max(rest_s - (time.monotonic() - started), SOON_S)
        signal.setitimer(signal.ITIMER_REAL, rest_s, every_s)
