"""A request whose drafts are in flight: until they are judged, nobody knows how far it has come.

At the launch it is known that its text is computed then, but not which of the drafts behind it will stand,
nor which token follows. So it is "verifying", and sits out what is scheduled meanwhile. Drafts that fall
leave keys and values in its blocks, which the next step writes over. They are no part of its text, so no
block is ever found by them; one that was taken for them is kept for what comes in their place.

A request without drafts goes on like any other. But now and then its step too is waited for, so that its
drafter can be asked (`step_plan` says when).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.request import PENDING, FinishReason, RequestState
from llmcourse.serving.schedule import Chunk, Output, Sampled


class Verifying:
    """A chunk with drafts, or one that is waited for to ask for them, from launch to verdict."""

    def __init__(self, chunk: Chunk, drafts: Sequence[int]):
        self._state, self._start = chunk.state, chunk.start
        self._table = chunk.state.blocks
        self._num_drafts = len(drafts)
        self._length = chunk.stop - len(drafts)  # of the text
        if self._state.status == "running":  # not cancelled since it was scheduled
            self._state.num_computed = self._length
            self._state.tokens.append(PENDING)
            self._state.status = "verifying"

    def resolve(
        self, sampled: Sampled, pool: BlockPool, finish: Callable[[RequestState, FinishReason], None]
    ) -> list[Output]:
        """Appends what the text gained, up to its end if that is among it; an output for each token."""
        state = self._state
        if state.status == "finished":
            return []
        brought = sampled[state.id]
        if isinstance(brought, Exception):
            state.error = brought
            finish(state, "error")
            return [Output(state, None, "error")]
        brought = [brought] if isinstance(brought, int) else list(brought)
        gained, reason = self._until_the_end(brought)
        state.tokens[self._length :] = gained
        state.num_drafted += self._num_drafts
        state.num_accepted += min(len(gained), len(brought) - 1)
        if state.blocks is self._table:
            self._move_on(self._length + len(gained) - 1, pool)
        if reason:
            finish(state, reason)
        return [*(Output(state, token, None) for token in gained[:-1]), Output(state, gained[-1], reason)]

    def undo(self) -> None:
        """Takes the request back to where it was."""
        state = self._state
        if state.status != "finished":
            state.tokens.pop()
            if state.blocks is self._table:
                state.num_computed, state.status = self._start, "running"

    def _until_the_end(self, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
        """What is wanted of the tokens, and why no more is; there are never more than the answer may have."""
        ends = self._state.request.stop_token_ids
        for count, token in enumerate(tokens, 1):
            if token in ends:
                return tokens[:count], "stop"
        full = self._length + len(tokens) > self._state.max_length
        return tokens, "length" if full else None

    def _move_on(self, num_computed: int, pool: BlockPool) -> None:
        """Counts the drafts that stand as computed, and makes the blocks known that they fill."""
        state, size = self._state, pool.block_size
        pool.register(state.blocks, state.tokens, self._start // size, num_computed // size)
        state.num_computed, state.status = num_computed, "running"
