"""Who has a slot and blocks, and who waits for them: the mechanism under every policy."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.request import PENDING, FinishReason, RequestState
from llmcourse.serving.urgency import Line


class Batch:
    """The running requests, each with a slot and a block table, and the waiting ones.

    Args:
        pool: where blocks come from.
        max_running: how many slots there are; no more are made than blocks, since whoever runs has at least
            one that it shares with nobody.
        reserves: whether a request is admitted only with blocks for the longest answer it may get.
    """

    def __init__(self, pool: BlockPool, max_running: int, reserves: bool):
        self.pool = pool
        self.running = Line()
        self.waiting = Line()
        self.speculating = Line()  # of the running ones
        self._reserves = reserves
        self.num_slots = min(max_running, pool.num_blocks)
        self._free_slots = list(range(self.num_slots))

    def admit(self) -> RequestState | None:
        """Gives the most urgent waiting request the lowest slot and its blocks.

        None overtakes it: where it does not fit yet, the less urgent wait too, or a long prompt might
        wait for ever while short ones take every block that becomes free.
        """
        state = self.waiting.first
        if state is None or state.tokens[-1] == PENDING or not self._free_slots:
            return None  # a token on its way to a slot that was taken from its request is waited for
        if not self._take_blocks(state):
            return None
        self.waiting.remove(state)
        self.running.add(state)
        state.slot = heappop(self._free_slots)
        state.status = "running"
        if state.speculator is not None:
            self.speculating.add(state)
        return state

    def extend(self, state: RequestState, num_tokens: int) -> Sequence[RequestState]:
        """Brings a running request's blocks up to the more tokens, at the cost of the least urgent.

        Returns:
            The preempted requests; the last of them is `state` if it was the least urgent itself.
        """
        lacking = self.pool.blocks_for(num_tokens) - len(state.blocks)
        preempted: list[RequestState] = []
        while lacking > self.pool.num_free:
            preempted.append(self.running.last)
            self._preempt(preempted[-1])
            if preempted[-1] is state:
                return preempted
        state.blocks += self.pool.allocate(lacking)
        return preempted

    def finish(self, state: RequestState, reason: FinishReason) -> None:
        """Takes a request out, wherever it stands."""
        if state.status == "waiting":
            self.waiting.remove(state)
        else:
            self._give_back(state)
        del state.tokens[state.num_known :]
        state.status = "finished"
        state.finish_reason = reason
        state.speculator = None  # and with it its memory, however long somebody looks at the state

    def _take_blocks(self, state: RequestState) -> bool:
        """Blocks for all its tokens, those that hold its beginning already included; False if too few."""
        pool = self.pool
        num_tokens = state.request.max_length if self._reserves else len(state.tokens)
        known = pool.match(state.tokens[:-1])  # the last one is computed, since logits come of it
        fresh = pool.blocks_for(num_tokens) - len(known)
        if fresh > pool.num_free - sum(not pool.users(block) for block in known):
            return False
        pool.share(known)
        state.blocks = known + pool.allocate(fresh)
        state.num_computed = state.num_reused = len(known) * pool.block_size
        return True

    def _preempt(self, state: RequestState) -> None:
        """Takes everything from a request; what it had computed is computed again (recomputation)."""
        self._give_back(state)
        state.status = "waiting"
        state.num_computed = 0
        state.num_preemptions += 1
        self.waiting.add(state)

    def _give_back(self, state: RequestState) -> None:
        self.running.remove(state)
        if state.speculator is not None:
            self.speculating.remove(state)
        self.pool.free(state.blocks)
        heappush(self._free_slots, state.slot)
        state.blocks, state.slot = [], None
