"""Storms: requests come, go, fail and run out of memory in any order, and nothing is lost.

After every step all that must hold is checked from outside; at the end all is served, and every answer is
that of a model without cache, batch or scheduler.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.schedule import Schedule
from llmcourse.serving.scheduler import NeverFits, Scheduler
from llmcourse.serving.speculation import Speculation
from tests.serving.fakes import END, PagedRunner, answer

AGEING = 3
MOST_ALIKE, MOST_ANSWER = 9, 8
policies = st.one_of(
    st.just(TraditionalBatching()),
    st.builds(ContinuousBatching, st.integers(1, 16)),
    st.builds(ChunkedPrefill, st.integers(4, 16)),
)
# Many begin alike, for longer or shorter.
prompts = st.builds(
    lambda alike, own: [1] * alike + own,
    st.integers(0, MOST_ALIKE),
    st.lists(st.integers(1, 2), min_size=1, max_size=4),
)


class Storm(RuleBasedStateMachine):
    @initialize(
        policy=policies,
        num_tokens=st.integers(16, 40),
        block_size=st.integers(1, 4),
        max_running=st.integers(1, 4),
        reuse=st.booleans(),
        hash_block=st.sampled_from(
            [lambda parent, tokens: hash((parent, tokens)), lambda parent, tokens: len(tokens)]
        ),
    )
    def begin(self, policy, num_tokens, block_size, max_running, reuse, hash_block):
        self.pool = BlockPool(
            num_tokens // block_size, block_size, reuse_prefixes=reuse, hash_block=hash_block
        )
        self.served = Scheduler(self.pool, policy, max_running=max_running, ageing=AGEING)
        self.runner = PagedRunner(self.pool)
        self.policy, self.max_running = policy, max_running
        self.states: list[RequestState] = []
        self.steps_waited: Counter[RequestState] = Counter()
        self.ahead: Counter[RequestState] = Counter()
        self.overtaken: Counter[RequestState] = Counter()
        self.begun: set[RequestState] = set()

    def unfinished(self) -> list[RequestState]:
        return [state for state in self.states if state.status != "finished"]

    @rule(prompt=prompts, max_tokens=st.integers(1, MOST_ANSWER), priority=st.integers(0, 2))
    def add(self, prompt, max_tokens, priority):
        request = Request(
            str(len(self.states)),
            prompt,
            max_tokens=max_tokens,
            priority=priority,
            stop_token_ids=[END],
            speculation=self.speculation(),
        )
        before = self.unfinished()
        try:
            state = self.served.add(request)
        except NeverFits:
            assert -(-request.max_length // self.pool.block_size) > self.pool.num_blocks
            return
        self.states.append(state)
        self.ahead[state] = len(before)
        for other in before:  # those that the newcomer goes before
            self.ahead[other] += state.rank < other.rank

    def speculation(self) -> Speculation | None:
        """Of the next request."""
        return None

    @rule(crowd=st.lists(st.tuples(prompts, st.integers(4, MOST_ANSWER)), min_size=3, max_size=6))
    def a_crowd_comes(self, crowd):
        for prompt, max_tokens in crowd:
            self.add(prompt, max_tokens, 0)

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def abort(self, data):
        self.served.abort(data.draw(st.sampled_from([state.id for state in self.unfinished()])))

    @rule()
    def step(self):
        schedule = self.schedule()
        self.take_in(schedule, self.runner.run(schedule))

    @rule(times=st.integers(2, 8))
    def many_steps(self, times):
        for _ in range(times):
            self.step()
            self.nothing_leaks()

    @rule()
    def lose_a_step(self):
        schedule = self.schedule(counts=False)
        self.runner.run(schedule)
        self.served.abandon(schedule)

    @rule(data=st.data())
    def fail_or_abort_during_a_step(self, data):
        schedule = self.schedule()
        sampled = dict(self.runner.run(schedule))
        ids = [chunk.state.id for chunk in schedule.chunks]
        if ids and data.draw(st.booleans()):
            sampled[data.draw(st.sampled_from(ids))] = ArithmeticError("NaN")
        elif self.unfinished():
            self.abort(data)
        self.take_in(schedule, sampled)

    def schedule(self, counts: bool = True) -> Schedule:
        schedule = self.served.schedule()
        self.looks_right(schedule)
        if counts:
            self.steps_waited.update(self.unfinished())
        return schedule

    def looks_right(self, schedule: Schedule) -> None:
        chunks = schedule.chunks
        assert bool(chunks) == self.served.has_work or self.idles(), "there is work and nothing runs"
        assert len({chunk.state for chunk in chunks}) == len(chunks) <= self.max_running
        running = [state for state in self.states if state.status == "running"]
        assert not running or min(running, key=lambda s: s.rank) in [chunk.state for chunk in chunks]
        for victim in schedule.preempted:
            assert not self.holds(victim)
            assert victim.rank > max(state.rank for state in self.states if self.holds(state)), (
                "a more urgent request is preempted"
            )
        for state, start, stop, samples in chunks:
            num_drafts = len(schedule.drafts[state.id].tokens) if state.id in schedule.drafts else 0
            assert start == state.num_computed < stop - num_drafts <= len(state.tokens)
            assert samples == (stop - num_drafts == len(state.tokens))
            assert samples or not num_drafts
            assert stop <= state.max_length and (state.speculator or not num_drafts)
            size = self.pool.block_size
            written = state.blocks[start // size : -(-stop // size)]
            assert [self.pool.users(block) for block in written] == [1] * len(written), (
                "a shared block is written"
            )
            assert len(written) == -(-stop // size) - start // size, "a token has no slot"
        if isinstance(self.policy, ChunkedPrefill):
            assert schedule.num_tokens <= self.policy.token_budget
        if isinstance(self.policy, TraditionalBatching):
            assert not schedule.preempted

    def holds(self, state: RequestState) -> bool:
        return state.status in ("running", "ending", "verifying")

    def idles(self) -> bool:
        """Whether there may be nothing to compute although there is work."""
        return False

    def take_in(self, schedule: Schedule, sampled) -> None:
        self.serve(schedule)
        self.served.postprocess(schedule, sampled)

    def serve(self, schedule: Schedule) -> None:
        for chunk in sorted(schedule.chunks, key=lambda chunk: chunk.state.rank):
            self.begin_to_serve(chunk.state)

    def begin_to_serve(self, state: RequestState) -> None:
        if state in self.begun:
            return
        self.begun.add(state)
        for other in self.unfinished():
            if other not in self.begun and other.rank[1] < state.rank[1]:
                self.overtaken[other] += 1

    @invariant()
    def nothing_leaks(self):
        tables = [state.blocks for state in self.states]
        users = Counter(block for table in tables for block in table)
        assert all(len(set(table)) == len(table) for table in tables)
        assert [self.pool.users(block) for block in range(self.pool.num_blocks)] == [
            users[block] for block in range(self.pool.num_blocks)
        ]
        assert self.pool.num_free == self.pool.num_blocks - len(users)

    @invariant()
    def slots_are_shared_by_nobody(self):
        slots = [state.slot for state in self.states if self.holds(state)]
        assert len(set(slots)) == len(slots) and set(slots) <= set(range(self.max_running))
        assert all(state.slot is None and not state.blocks for state in self.states if not self.holds(state))
        assert all(state.num_computed == 0 for state in self.states if state.status == "waiting")
        assert self.served.num_running == len(slots)
        assert self.served.num_running + self.served.num_waiting == len(self.unfinished())

    def most_steps(self, longest: int) -> int:
        """Of a request, while it is the most urgent one."""
        return longest

    @invariant()
    def nobody_waits_for_ever(self):
        longest = max((state.request.max_length for state in self.states), default=0)
        for state in self.states:
            bound = (2 * self.ahead[state] + 1) * (self.max_running + 1) * self.most_steps(longest)
            assert self.steps_waited[state] <= bound
            assert self.overtaken[state] <= max(0, state.request.priority * AGEING - 1)

    def teardown(self):
        if not hasattr(self, "served"):
            return
        while self.served.has_work:
            self.step()
            self.nobody_waits_for_ever()
        self.nothing_leaks()
        assert self.pool.num_free == self.pool.num_blocks
        assert sorted(self.pool.allocate(self.pool.num_blocks)) == list(range(self.pool.num_blocks))
        for state in self.states:
            whole = answer(state.request)
            complete = state.finish_reason in ("stop", "length")
            assert state.generated == (whole if complete else whole[: state.num_generated])


Storm.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStorm = Storm.TestCase
