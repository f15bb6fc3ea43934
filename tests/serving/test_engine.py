import pytest

from llmcourse.serving.engine import Engine
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.runner import FunctionRunner, Runner
from tests.serving.fakes import PagedRunner, answer, scheduler


def engine() -> Engine:
    served = scheduler(ContinuousBatching())
    return Engine(served, PagedRunner(served.pool))


def test_tokens_stream_until_all_is_done():
    serving = engine()
    states = [serving.add(Request(name, [ord(name)], max_tokens=5)) for name in "ab"]
    outputs = list(serving.stream())
    for state in states:
        assert [o.token for o in outputs if o.state is state] == state.generated == answer(state.request)
    assert [o.finish_reason for o in outputs] == [None] * 8 + ["length"] * 2


def test_requests_come_and_go_between_steps():
    serving = engine()
    first = serving.add(Request("a", [1], max_tokens=50))
    serving.step()
    second = serving.add(Request("b", [2], max_tokens=2))
    serving.step()
    serving.abort("a")
    serving.step()
    assert first.num_generated == 2 and second.generated == answer(second.request)
    assert serving.step() == []


class Unreliable(PagedRunner):
    """Fails every second time, after it has written half of the step."""

    def __init__(self, pool):
        super().__init__(pool)
        self.runs = 0

    def run(self, schedule):
        self.runs += 1
        if self.runs % 2:
            super().run(schedule._replace(chunks=schedule.chunks[::2]))
            raise ConnectionError("the device is gone")
        return super().run(schedule)


def test_a_step_that_fails_as_a_whole_is_computed_again():
    served = scheduler(ContinuousBatching())
    serving = Engine(served, Unreliable(served.pool))
    states = [serving.add(Request(name, [ord(name)] * 5, max_tokens=5)) for name in "abc"]
    while served.has_work:
        with pytest.raises(ConnectionError):
            serving.step()
        serving.step()
    assert [state.generated for state in states] == [answer(state.request) for state in states]


def test_runners_are_known_by_what_they_do():
    assert isinstance(FunctionRunner(lambda state: 1), Runner) and not isinstance(object(), Runner)
