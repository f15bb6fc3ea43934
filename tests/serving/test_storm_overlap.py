"""The storms of `test_storm`, with the next step launched before the tokens of the one before are here."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from llmcourse.serving.request import PENDING
from llmcourse.serving.schedule import Schedule
from tests.serving.test_storm import Storm


class OverlappingStorm(Storm):
    """`before` is the step that is not resolved yet, with what it sampled."""

    def __init__(self):
        super().__init__()
        self.before: tuple[Schedule, dict] | None = None

    @rule()
    def step(self):
        self.take_in(*self.launch())

    @rule(data=st.data(), when=st.sampled_from(["launched", "advanced", "resolved"]))
    def fail_or_abort_during_a_step(self, data, when):
        schedule, sampled = self.launch()
        if when == "launched" and self.unfinished():
            self.abort(data)
        self.advance(schedule)
        if when == "advanced" and self.unfinished():
            self.abort(data)
        before, self.before = self.before, (schedule, sampled)
        if before and when == "resolved":
            self.fail(data, *before)
        self.resolve(before)

    def fail(self, data, schedule, sampled) -> None:
        if ids := [chunk.state.id for chunk in schedule.chunks]:
            sampled[data.draw(st.sampled_from(ids))] = ArithmeticError("NaN")

    @rule(begun=st.booleans())
    def lose_a_step(self, begun):
        """A step is not launched, or only in part, with which what was sampled before may be gone."""
        schedule = self.schedule(counts=False)
        if begun:
            self.runner.launch(schedule)
        self.served.abandon(schedule)
        if begun:
            self.drain()

    @precondition(lambda self: self.before)
    @rule(later=st.booleans())
    def lose_the_step_before(self, later):
        """With the step that was launched after it, or before there is one."""
        if later:
            self.advance(self.launch(counts=False)[0])
        self.served.abandon(self.before[0])
        self.before = None

    @rule()
    def drain(self):
        before, self.before = self.before, None
        self.resolve(before)

    def launch(self, counts: bool = True) -> tuple[Schedule, dict]:
        schedule = self.schedule(counts)
        return schedule, dict(self.runner.launch(schedule)())

    def take_in(self, schedule, sampled) -> None:
        self.advance(schedule)
        before, self.before = self.before, (schedule, sampled)
        self.resolve(before)

    def advance(self, schedule) -> None:
        self.serve(schedule)
        self.served.advance(schedule)

    def resolve(self, before) -> None:
        if before:
            self.served.resolve(*before)

    def most_steps(self, longest: int) -> int:
        return longest + 1  # a request keeps its slot until its end is known

    def idles(self) -> bool:
        return self.before is not None

    @invariant()
    def pending_is_what_the_step_in_flight_samples(self):
        chunks = self.before[0].chunks if self.before else ()
        on_their_way = {chunk.state for chunk in chunks if chunk.samples}
        for state in self.states:
            unknown = int(state in on_their_way and state.status != "finished")
            assert state.tokens[state.num_known :] == [PENDING] * unknown
            assert PENDING not in state.generated
            assert (state.status == "ending") <= (unknown == 1)


OverlappingStorm.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOverlappingStorm = OverlappingStorm.TestCase
