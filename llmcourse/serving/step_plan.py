"""A step in the making: what a policy plans, request by request, and who loses its blocks for it.

Most of what a scheduler does is to plan one more token for each of hundreds of answers, at every step, so
`decode` does that in one loop. Chunks are made by `tuple.__new__` in half the time of `Chunk(…)`.

A drafter is asked where its request's text is known. If it has nothing to say, the step is an ordinary one.
Where steps overlap, the text is then not known in time the next time either, unless the request sits out a
step, which costs a token. So the drafter is asked again after 2 tokens, then after 4, 8 and 16 more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NoReturn

from llmcourse.decoding.errors import require
from llmcourse.serving.batch import Batch
from llmcourse.serving.request import PENDING, RequestState
from llmcourse.serving.schedule import Chunk
from llmcourse.serving.speculation import Drafts, propose

LONGEST_PAUSE = 16  # tokens; whoever never gets a draft sits out one step in 17


class StepPlan:
    """The chunks of one step so far (`policies.Plan`)."""

    def __init__(self, batch: Batch):
        self.num_tokens = 0
        self.preempted: list[RequestState] = []
        self.drafts: dict[str, Drafts] = {}
        self.failed: dict[str, Exception] = {}
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

    def speculate(self, num_tokens: int | None = None) -> None:
        left = sys.maxsize if num_tokens is None else num_tokens
        for state in self._batch.speculating:
            chunk = self._chunks.get(state)
            if chunk is None or not chunk.samples:
                continue
            if state.tokens[-1] == PENDING:
                if state.asks_from <= chunk.stop + 1 < state.max_length:
                    self.drafts[state.id] = Drafts()  # so that its text is known when it is planned next
            elif count := len((drafts := self._ask(state, left)).tokens):
                self.drafts[state.id] = drafts
                self._batch.extend(state, chunk.stop + count)
                self._chunks[state] = chunk._replace(stop=chunk.stop + count)
                self.num_tokens += count
                left -= count

    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self._chunks.values())

    def _extend(self, state: RequestState, num_tokens: int) -> bool:
        """Blocks for so many tokens; what was planned for those that lose theirs is not computed."""
        for victim in self._batch.extend(state, num_tokens):
            self.preempted.append(victim)
            if chunk := self._chunks.pop(victim, None):
                self.num_tokens -= chunk.num_tokens
                self.drafts.pop(victim.id, None)
        return state.status == "running"

    def _room_for_drafts(self, state: RequestState) -> int:
        """Tokens whose keys and values its blocks and the free ones hold and its answer may need."""
        if self.preempted:
            return 0
        num_blocks = len(state.blocks) + self._batch.pool.num_free
        return min(state.max_length, num_blocks * self._block_size) - len(state.tokens)

    def _ask(self, state: RequestState, left: int) -> Drafts:
        """Drafts to follow a text that is known; where there are none, when to ask again."""
        most = min(left, self._room_for_drafts(state))
        drafts = self._propose(state, most) if most > 0 else Drafts()
        state.pause = 1 if drafts.tokens else min(2 * state.pause, LONGEST_PAUSE)
        state.asks_from = len(state.tokens) + state.pause
        return drafts

    def _propose(self, state: RequestState, most: int) -> Drafts:
        """What its drafter makes; whatever that raises is the request's own error, and ends it alone."""
        try:
            return propose(state.speculator, state.tokens, most, state.request.speculation.vocab_size)
        except Exception as error:
            self.failed[state.id] = error
            return Drafts()

    def _refuse(self, state: RequestState, num_tokens: int) -> NoReturn:
        """Says what a policy planned wrongly."""
        allowed = "one that runs and is not planned yet"
        got = f"{state.id!r}, which is {'planned' if state in self._chunks else state.status}"
        require(
            state.status == "running" and state not in self._chunks, "state", allowed, got, "leave it out"
        )
        allowed = f"in [1, {state.num_pending}], the pending tokens of {state.id!r}"
        require(False, "num_tokens", allowed, num_tokens, "plan these")
