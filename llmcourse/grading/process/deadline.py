"""A time limit by the judge's clock, which stands still while the judge itself is kept from running.

A judge that is stopped, swapped out or waits for Python's lock sees nothing of what a worker does in
time. Nobody else is asked how long that took: a thread that has neither run nor waited by its own wish
knows it from its clock and from the processor time that it was given.
"""

from __future__ import annotations

import time

STEP_S = 0.1  # whoever waits looks at the time at least so often
STALL_S = 0.3  # on top: what a busy machine, or an oracle that sleeps, may take
DOUBT = 0.2  # stalls of this share of the limit: who knows what else was kept from running


class Deadline:
    """Some seconds from now, for the thread that makes it.

    Ask `left` before each wait, and wait no longer than it and `STEP_S`. Time in which this thread did
    nothing for longer than `STEP_S + STALL_S` between two looks is a stall, and all but `STEP_S` of it
    does not count; so stalls without end cannot keep the time from running out.

    Attributes:
        stalled_s: what did not count.
    """

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self.stalled_s = 0.0
        self._started = self._looked = time.monotonic()
        self._ran = time.thread_time()

    def left(self) -> float:
        """Seconds that are left; negative once it has passed."""
        now, ran = time.monotonic(), time.thread_time()
        idle = (now - self._looked) - (ran - self._ran)
        if idle > STEP_S + STALL_S:
            self.stalled_s += idle - STEP_S
        self._looked, self._ran = now, ran
        return self.limit_s - (now - self._started - self.stalled_s)

    def spent(self) -> float:
        """Seconds that counted so far."""
        return self.limit_s - self.left()

    @property
    def in_doubt(self) -> bool:
        """Whether there were such stalls that one should not conclude from the time that it has passed."""
        return self.stalled_s > DOUBT * self.limit_s

    def step(self) -> float:
        """How long to wait before the next look, at least 0."""
        return max(0.0, min(self.left(), STEP_S))
