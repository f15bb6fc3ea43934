"""What waits until a reader rests: Python's search for garbage, and what a reader may want next.

Objects that refer to one another in a circle, as those of a figure do, are freed by a search through all
objects. With PyTorch loaded that takes a quarter of a second, and comes whenever enough was made anew: in
the middle of an answer as likely as not.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from IPython import get_ipython
from IPython.core.events import EventManager

from llmcourse.figures.style import DRAWING

REST_S = 0.3  # without an answer
LONGEST_S = 5.0  # that garbage may wait while answer follows answer
NEVER = 2**31 - 1  # new objects until a search


class Collector:
    """Holds Python's collector back during answers, and lets it go on when none has come for a while.

    Enter it from one thread at a time. It is held back by a threshold that nothing reaches, and not by
    `gc.disable()`: whoever turns the collector off or on, before or meanwhile, is obeyed. Thresholds that
    somebody sets meanwhile stay, too.
    """

    def __init__(self, rest_s: float = REST_S, longest_s: float = LONGEST_S):
        self.rest_s, self.longest_s = rest_s, longest_s
        self._answering = 0
        self._since_s: float | None = None  # held back since then; None: not by us
        self._thresholds = gc.get_threshold()  # while it is held back: those of before
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()  # the timer has a thread of its own

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the length of an answer, one inside another too."""
        counted = False
        try:
            with self._lock:
                self._hold()
                self._answering += 1
                counted = True
            yield
        finally:  # an interrupted answer, too, ends the wait
            with self._lock:
                self._answering -= counted
                if not self._answering and self._since_s is not None:
                    left_s = self._since_s + self.longest_s - time.monotonic()
                    self._timer = threading.Timer(max(0.0, min(self.rest_s, left_s)), self._go_on)
                    self._timer.daemon = True
                    self._timer.start()

    def _hold(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        thresholds = gc.get_threshold()
        if thresholds[0] != NEVER:
            self._thresholds = thresholds
            gc.set_threshold(NEVER, *thresholds[1:])
        if self._since_s is None:
            self._since_s = time.monotonic()

    def _go_on(self) -> None:
        with self._lock:
            if not self._answering:  # else the end of that answer sets another timer
                self._since_s = None
                if gc.get_threshold()[0] == NEVER:
                    gc.set_threshold(*self._thresholds)


COLLECTOR = Collector()


class Cells:
    """Whether a cell runs, as IPython tells before and after each.

    Of a cell within a cell the end of the inner one counts as the end.
    """

    def __init__(self):
        self.running = False
        self._events: EventManager | None = None

    def watch(self, events: EventManager | None) -> None:
        """From now on, a shell's events; without a shell, as in a program, no cell runs."""
        if events is not None and events is not self._events:
            self._events = events
            events.register("pre_run_cell", self._begin)
            events.register("post_run_cell", self._end)

    def _begin(self, _) -> None:
        self.running = True

    def _end(self, _) -> None:
        self.running = False


CELLS = Cells()
PAUSE_S = 0.02  # between pieces, in which the kernel looks for what a reader wants


class Idle:
    """Work that is done a piece at a time while the kernel's event loop has nothing else to do.

    A new plan takes the place of the one before: nobody waits for what was wanted a moment ago. A piece runs
    on the thread that planned it, while no cell runs, on whichever thread, and nobody draws: what a cell
    times is not slowed. Without an event loop, as in a program, nothing is planned.
    """

    def __init__(self):
        self._work: Iterator[None] | None = None
        CELLS.watch(getattr(get_ipython(), "events", None))

    @property
    def planned(self) -> bool:
        """Whether something is left to do."""
        return self._work is not None

    def plan(self, work: Iterator[None]) -> bool:
        """Does this instead of what was planned; False, and nothing is done, where no event loop runs."""
        self.drop()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._work = work
        loop.call_later(PAUSE_S, self._go_on, work, loop)
        return True

    def drop(self) -> None:
        self._work = None

    def finish(self) -> None:
        """Does now what is left of the plan."""
        with DRAWING:
            work, self._work = self._work, None
            for _ in work or ():
                pass

    def _go_on(self, work: Iterator[None], loop: asyncio.AbstractEventLoop) -> None:
        if CELLS.running and self._work is work:
            loop.call_later(REST_S, self._go_on, work, loop)
            return
        try:
            with DRAWING:
                if self._work is not work:
                    return
                next(work)
        except (StopIteration, KeyboardInterrupt):  # the second ends the work, not the kernel
            self.drop()
            return
        except BaseException:
            self.drop()
            raise
        loop.call_later(PAUSE_S, self._go_on, work, loop)
