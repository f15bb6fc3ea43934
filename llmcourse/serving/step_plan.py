"""A step in the making: what a policy plans, request by request, and who loses its blocks for it.

Most of what a scheduler does is to plan one more token for each of hundreds of answers, at every step, so
`decode` does that in one loop. Chunks are made by `tuple.__new__` in half the time of `Chunk(…)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from llmcourse.decoding.errors import require
from llmcourse.serving.batch import Batch
from llmcourse.serving.request import RequestState
from llmcourse.serving.schedule import Chunk


class StepPlan:
    """The chunks of one step so far (`policies.Plan`)."""

    def __init__(self, batch: Batch):
        self.num_tokens = 0
        self.preempted: list[RequestState] = []
        self._batch = batch
        self._block_size = batch.pool.block_size
        self._chunks: dict[RequestState, Chunk] = {}

    @property
    def num_running(self) -> int:
        return len(self._batch.running)

    def running(self) -> Iterator[RequestState]:
        return (state for state in self._batch.running if state.status == "running")

    def admit(self) -> RequestState | None:
        # Where blocks were just taken from one request, none are given to another.
        return None if self.preempted else self._batch.admit()

    def decode(self) -> list[RequestState]:
        chunks, size, new = self._chunks, self._block_size, tuple.__new__
        others = []
        for state in self._batch.running:
            start, length = state.num_computed, len(state.tokens)
            if state.status != "running":
                continue
            if length - start > 1:
                others.append(state)
            elif length <= len(state.blocks) * size or self._extend(state, length):
                chunks[state] = new(Chunk, (state, start, length, True))
                self.num_tokens += 1
        return others

    def compute(self, state: RequestState, num_tokens: int) -> None:
        start, length = state.num_computed, len(state.tokens)
        stop = start + num_tokens
        if state.status != "running" or state in self._chunks or not start < stop <= length:
            self._refuse(state, num_tokens)
        if stop <= len(state.blocks) * self._block_size or self._extend(state, stop):
            self._chunks[state] = tuple.__new__(Chunk, (state, start, stop, stop == length))
            self.num_tokens += num_tokens

    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self._chunks.values())

    def _extend(self, state: RequestState, num_tokens: int) -> bool:
        """Blocks for so many tokens; what was planned for those that lose theirs is not computed."""
        for victim in self._batch.extend(state, num_tokens):
            self.preempted.append(victim)
            if chunk := self._chunks.pop(victim, None):
                self.num_tokens -= chunk.num_tokens
        return state.status == "running"

    def _refuse(self, state: RequestState, num_tokens: int) -> NoReturn:
        """Says what a policy planned wrongly."""
        allowed = "one that runs and is not planned yet"
        got = f"{state.id!r}, which is {'planned' if state in self._chunks else state.status}"
        require(
            state.status == "running" and state not in self._chunks, "state", allowed, got, "leave it out"
        )
        allowed = f"in [1, {state.num_pending}], the pending tokens of {state.id!r}"
        require(False, "num_tokens", allowed, num_tokens, "plan these")
