import inspect
from collections.abc import Callable

import pytest

from llmcourse.serving.engine import Engine
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.runner import FunctionRunner, OverlappingRunner, Runner
from tests.serving.fakes import END, POLICIES, PagedRunner, answer, scheduler

overlap = pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])


def engine(overlap: bool) -> Engine:
    served = scheduler(ContinuousBatching())
    return Engine(served, PagedRunner(served.pool), overlap)


@overlap
def test_tokens_stream_until_all_is_done(overlap):
    serving = engine(overlap)
    states = [serving.add(Request(name, [ord(name)], max_tokens=5)) for name in "ab"]
    outputs = list(serving.stream())
    for state in states:
        assert [o.token for o in outputs if o.state is state] == state.generated == answer(state.request)
    assert [o.finish_reason for o in outputs] == [None] * 8 + ["length"] * 2
    assert not serving.has_work


def test_requests_come_and_go_between_steps():
    serving = engine(False)
    first = serving.add(Request("a", [1], max_tokens=50))
    serving.step()
    second = serving.add(Request("b", [2], max_tokens=2))
    serving.step()
    serving.abort("a")
    serving.step()
    assert first.num_generated == 2 and second.generated == answer(second.request)
    assert serving.step() == []


def test_an_overlapping_step_brings_the_tokens_of_the_one_before():
    serving = engine(True)
    state = serving.add(Request("a", [1], max_tokens=3))
    brought = []
    while serving.has_work:
        brought.append([output.token for output in serving.step()])
    assert brought == [[], *([token] for token in answer(state.request))]


def test_the_next_step_is_launched_before_the_one_before_is_waited_for():
    events = []

    class Watched(PagedRunner):
        def launch(self, schedule):
            events.append(f"launch {schedule.number}")
            wait = super().launch(schedule)
            return lambda: events.append(f"wait {schedule.number}") or wait()

    served = scheduler(ContinuousBatching())
    serving = Engine(served, Watched(served.pool), overlap=True)
    serving.add(Request("a", [1], max_tokens=3))
    list(serving.stream())
    assert events == ["launch 0", "launch 1", "wait 0", "launch 2", "wait 1", "wait 2"]


def test_a_step_too_many_is_waited_for_before_the_work_is_done():
    """The only request ends with a stop token, which is known when the next step is on its way."""
    serving = engine(True)
    state = serving.add(Request("a", [1], max_tokens=30, stop_token_ids=range(10)))
    assert serving.step() == []
    assert [output.finish_reason for output in serving.step()] == ["stop"]
    assert serving.has_work and state.status == "finished"
    assert serving.step() == [] and not serving.has_work
    assert state.generated == answer(state.request) and state.tokens[1:] == state.generated


class Unreliable(PagedRunner):
    """Fails every third time, with half of the step done: when launched, or when waited for."""

    def __init__(self, pool, fails_at: str):
        super().__init__(pool)
        self.fails_at = fails_at
        self.runs = 0

    def launch(self, schedule) -> Callable[[], dict[str, int]]:
        self.runs += 1
        wait = super().launch(schedule)
        if self.runs % 3 != 1:
            return wait
        for chunk in schedule.chunks[::2]:
            self.spoil(chunk)
        if self.fails_at == "launch":
            self.fail()
        return self.fail

    def spoil(self, chunk):
        for i in range(chunk.start, chunk.stop):
            self.memory[chunk.state.blocks[i // self.size]][i % self.size] = None
        self.last[chunk.state.slot] = chunk.state, chunk.stop, END

    def fail(self):
        raise ConnectionError("the device is gone")


@pytest.mark.parametrize("fails_at", ["launch", "wait"])
@overlap
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_step_that_fails_as_a_whole_is_computed_again(policy, fails_at, overlap):
    served = scheduler(policy, num_blocks=14)
    serving = Engine(served, Unreliable(served.pool, fails_at), overlap)
    requests = [Request(name, [ord(name)] * 5, max_tokens=9, stop_token_ids=[END]) for name in "abcdef"]
    states, num_failed = [serving.add(request) for request in requests], 0
    for _ in range(1000):
        try:
            serving.step()
        except ConnectionError:
            num_failed += 1
        if not serving.has_work:
            break
    assert num_failed > 5
    assert [state.generated for state in states] == [answer(request) for request in requests]
    assert served.pool.num_free == served.pool.num_blocks


def test_runners_are_known_by_what_they_do():
    function = FunctionRunner(lambda state: 1)
    assert isinstance(function, Runner) and not isinstance(object(), Runner)
    served = scheduler(ContinuousBatching())
    assert isinstance(PagedRunner(served.pool), OverlappingRunner)
    with pytest.raises(ValueError, match=r"runner must be an OverlappingRunner .* got FunctionRunner; "):
        Engine(served, function, overlap=True)


@pytest.mark.parametrize("runner", [None, lambda state: 1, "model"])
def test_what_is_no_runner_is_refused(runner):
    unchecked = inspect.unwrap(Engine.__init__)  # as it is outside of tests, where types are not enforced
    with pytest.raises(ValueError, match=f"runner must be a Runner, got {type(runner).__name__}; wrap"):
        unchecked(object.__new__(Engine), scheduler(ContinuousBatching()), runner)
