"""Tokens a second, over the last seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from llmcourse.decoding.errors import require_integer


class TokenRate:
    """Counts tokens in the second in which they come, and keeps as many seconds as it looks back.

    Args:
        window_s: seconds to look back, the running one not included.
        clock: seconds since any moment.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, window_s: int = 10, clock: Callable[[], float] = time.monotonic):
        require_integer(1, "window_s", window_s, "use 10")
        self.total = 0
        self._window_s = window_s
        self._clock = clock
        self._counts: deque[list[int]] = deque()  # [second, tokens], the latest last

    def add(self, count: int) -> None:
        """Counts tokens that came now."""
        self.total += count
        second = int(self._clock())
        if not self._counts or self._counts[-1][0] != second:
            self._forget(second)
            self._counts.append([second, 0])
        self._counts[-1][1] += count

    def per_s(self) -> float:
        """Tokens a second over the whole seconds of the window."""
        second = int(self._clock())
        self._forget(second)
        return sum(count for when, count in self._counts if when != second) / self._window_s

    def _forget(self, second: int) -> None:
        while self._counts and self._counts[0][0] < second - self._window_s:
            self._counts.popleft()
