"""A step that was launched and whose tokens are not here yet: what is known already, and what is not.

Which keys and values it writes is known at its launch, so `num_computed` moves on at once, and `PENDING`
stands in place of each token that it samples. That is enough to schedule the next step. What depends on
the tokens waits until they are here: whether an answer ends, and by which text its blocks are found.

Meanwhile a request may be cancelled, fail or be preempted. Its blocks are given away while the step in
flight still writes into them, which is harmless: a device runs its steps in order, so whoever gets the
blocks writes them later, and reads only what it wrote. But a block that a request was given after the launch
does not hold what the step computed; so the very table of each chunk is kept, to tell one from the other.

Of a request with drafts even less is known, see `verifying`.
"""

from __future__ import annotations

from collections.abc import Callable

from llmcourse.decoding.errors import require
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.request import PENDING, FinishReason, RequestState
from llmcourse.serving.schedule import Output, Sampled, Schedule
from llmcourse.serving.verifying import Verifying


class StepInFlight:
    """A step from its launch, with which its requests move on, until it is resolved or undone."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self._tables: list[list[int]] = []
        self._chunks, self._verifying = schedule.chunks, []
        if drafts := schedule.drafts:
            self._chunks = tuple(chunk for chunk in schedule.chunks if chunk.state.id not in drafts)
            others = (chunk for chunk in schedule.chunks if chunk.state.id in drafts)
            self._verifying = [Verifying(chunk, drafts[chunk.state.id].tokens) for chunk in others]
        for state, _, stop, samples in self._chunks:
            self._tables.append(state.blocks)
            if state.status != "running":  # cancelled or at its end since it was scheduled
                continue
            state.num_computed = stop
            if samples:
                state.tokens.append(PENDING)
                if stop == state.max_length:
                    state.status = "ending"

    def resolve(
        self,
        sampled: Sampled,
        pool: BlockPool,
        finish: Callable[[RequestState, FinishReason], None],
    ) -> list[Output]:
        """Puts the tokens in their places, makes full blocks known, and ends what is at its end.

        Raises:
            ValueError: a token is missing; nothing is changed then.
        """
        if self.schedule.failed:
            sampled = {**sampled, **self.schedule.failed}
        tokens = [sampled.get(chunk.state.id) for chunk in self._chunks]
        if None in tokens or self._verifying:
            self._check_complete(sampled)
        outputs = self._take_in(tokens, pool, finish)
        for one in self._verifying:
            outputs += one.resolve(sampled, pool, finish)
        return outputs

    def _take_in(
        self,
        tokens: list[int | Exception | None],
        pool: BlockPool,
        finish: Callable[[RequestState, FinishReason], None],
    ) -> list[Output]:
        """The tokens of chunks that are not waited for."""
        size, new = pool.block_size, tuple.__new__
        outputs = []
        launched = zip(self._chunks, self._tables, tokens, strict=True)
        for (state, start, stop, samples), table, token in launched:
            if state.status == "finished":  # this step computed more than was wanted
                continue
            reason = None
            if isinstance(token, Exception):
                state.error, token, reason = token, None, "error"
            else:
                if stop // size > start // size and state.blocks is table:
                    pool.register(table, state.tokens, start // size, stop // size)
                if not samples:
                    continue
                state.tokens[stop] = token
                if token in state.request.stop_token_ids:
                    reason = "stop"
                elif stop == state.max_length:
                    reason = "length"
            if reason:
                finish(state, reason)
            outputs.append(new(Output, (state, token, reason)))  # in half the time of Output(…)
        return outputs

    def undo(self) -> None:
        """Takes its requests back to where they were before it; the steps after it are undone first."""
        for one in self._verifying:
            one.undo()
        for (state, start, _, samples), table in zip(self._chunks, self._tables, strict=True):
            if state.status == "finished":
                continue
            if samples:
                state.tokens.pop()
            if state.blocks is table:
                state.num_computed = start
                state.status = "running"

    def _check_complete(self, sampled: Sampled) -> None:
        chunks = self.schedule.chunks
        missing = [
            state.id
            for state, _, _, samples in chunks
            if samples and sampled.get(state.id) is None and state.status != "finished"
        ]
        require(
            not missing, "sampled", "a token for each chunk that samples", f"none for {missing}", "run it"
        )
