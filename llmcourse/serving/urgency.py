"""Who goes first: priorities that age, so that nobody waits for ever.

    rank = n + priority · ageing        (n: how many requests came before)

The smallest rank goes first. Each level of priority is worth `ageing` later arrivals: a request is
overtaken only by requests whose number is less than its own plus priority · ageing, so by fewer than
priority · ageing of those that come after it, however many come. Nothing has to be recomputed as time
passes, since all that wait grow older alike.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from llmcourse.serving.request import RequestState

_RANK = attrgetter("rank")


def rank(number: int, priority: int, ageing: int) -> tuple[int, int]:
    """The place in line of a request that came after `number` others; of two alike the earlier is first."""
    return number + priority * ageing, number


class Line:
    """Requests in the order of their ranks."""

    def __init__(self):
        self._states: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[RequestState]:
        """The most urgent first, as the line is now: it may change meanwhile."""
        return iter(tuple(self._states))

    @property
    def first(self) -> RequestState | None:
        """The most urgent one."""
        return self._states[0] if self._states else None

    @property
    def last(self) -> RequestState | None:
        """The least urgent one."""
        return self._states[-1] if self._states else None

    def add(self, state: RequestState) -> None:
        insort(self._states, state, key=_RANK)

    def remove(self, state: RequestState) -> None:
        """Takes one out that is in the line."""
        del self._states[bisect_left(self._states, state.rank, key=_RANK)]
