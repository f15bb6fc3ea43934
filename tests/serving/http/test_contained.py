from llmcourse.serving.engine import Engine
from llmcourse.serving.http.contained import contained
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.runner import Runner
from tests.serving.fakes import PagedRunner, answer, scheduler

GONE = ConnectionError("the device is gone")


class Unreliable(PagedRunner):
    """Fails in one step."""

    def __init__(self, pool, fails: int):
        super().__init__(pool)
        self.fails = fails

    def run(self, schedule):
        if schedule.number == self.fails:
            raise GONE
        return super().run(schedule)


class Overlapping(Unreliable):
    """Fails when it is launched, or when it is waited for."""

    def launch(self, schedule):
        if schedule.number == self.fails:
            raise GONE
        return lambda: self.run(schedule)


def test_a_failed_step_ends_the_requests_in_it_and_no_others():
    served = scheduler(ContinuousBatching(), max_running=2)
    engine = Engine(served, contained(Unreliable(served.pool, fails=1)))
    states = [engine.add(Request(name, [ord(name)], max_tokens=3)) for name in "abc"]
    while served.has_work:
        engine.step()
    assert [state.finish_reason for state in states] == ["error", "error", "length"]
    assert states[0].error is states[1].error is GONE and states[2].generated == answer(states[2].request)
    assert served.pool.num_free == served.pool.num_blocks


def test_a_runner_that_overlaps_still_does():
    served = scheduler(ContinuousBatching())
    plain, overlapping = Unreliable(served.pool, fails=1), Overlapping(served.pool, fails=1)
    assert isinstance(contained(plain), Runner) and not hasattr(contained(plain), "launch")
    runner = contained(overlapping)
    state = served.add(Request("a", [5], max_tokens=9))
    schedule = served.schedule()
    expected = plain.run(schedule)
    assert runner.launch(schedule)() == expected == runner.run(schedule)
    served.postprocess(schedule, expected)
    schedule = served.schedule()
    assert runner.launch(schedule)() == {state.id: GONE}
    assert contained(LateFailure(served.pool, fails=1)).launch(schedule)() == {state.id: GONE}


class LateFailure(Unreliable):
    def launch(self, schedule):
        return lambda: self.run(schedule)
