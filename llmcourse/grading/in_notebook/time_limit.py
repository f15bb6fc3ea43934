"""A limit on the time of a call in this process: a timer that raises, where the system has one.

Signals reach the main thread only, and Windows has no timer that sends one: there the limit is none. What
computes in one call of C, such as an operation of PyTorch, is stopped when it comes back to Python.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import no_type_check

AGAIN_S = 0.05  # a loop that catches everything is asked again, until it is caught outside its `try`
SOON_S = 1e-3  # for a timer of somebody else's that ran out meanwhile


class TimeIsUp(BaseException):
    """The limit was reached; no `Exception`, so that what a student catches is not this."""


def can_limit() -> bool:
    """Whether a limit holds here."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def time_limit(limit_s: float | int) -> AbstractContextManager[object]:
    """What runs inside ends with `TimeIsUp` when it takes longer; none where `can_limit()` is false.

    The handler and the timer that were there before are put back.

    Args:
        limit_s: positive; infinity is no limit.
    """
    return _Timer(limit_s) if limit_s < math.inf and can_limit() else nullcontext()


@no_type_check  # a wrapper that checks their arguments would stand around the two methods, and be interrupted
class _Timer:
    """Rings anywhere but in its own `__enter__` and `__exit__`, so that what was there before comes back."""

    def __init__(self, limit_s: float | int):
        self.limit_s = limit_s

    def __enter__(self) -> None:
        self.started = time.monotonic()
        self.before = signal.getitimer(signal.ITIMER_REAL)
        self.handler = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self.limit_s, AGAIN_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler or signal.SIG_DFL)  # None: it was not set by Python
        rest_s, every_s = self.before
        if rest_s:
            rest_s = max(rest_s - (time.monotonic() - self.started), SOON_S)
        signal.setitimer(signal.ITIMER_REAL, rest_s, every_s)

    def _ring(self, _: int, frame: FrameType | None) -> None:
        quiet = (_Timer.__enter__.__code__, _Timer.__exit__.__code__)
        while frame is not None:
            if frame.f_code in quiet:
                return
            frame = frame.f_back
        raise TimeIsUp
