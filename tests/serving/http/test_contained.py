import pytest

from llmcourse.decoding.errors import require
from llmcourse.serving.engine import Engine
from llmcourse.serving.http.contained import contained
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.runner import FunctionRunner, OverlappingRunner
from tests.serving.fakes import PagedRunner, answer, scheduler

GONE = ConnectionError("the device is gone")


class Unreliable(PagedRunner):
    """Fails in one step, before it has computed anything."""

    def __init__(self, pool, fails: int):
        super().__init__(pool)
        self.fails = fails

    def launch(self, schedule):
        if schedule.number == self.fails:
            raise GONE
        return super().launch(schedule)


class FailsLate(Unreliable):
    """Fails when its tokens are waited for; the next step is on its way then."""

    def launch(self, schedule):
        def wait():
            if schedule.number == self.fails:
                raise GONE
            return tokens()

        tokens = PagedRunner.launch(self, schedule)
        return wait


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("runner", [Unreliable, FailsLate])
@pytest.mark.parametrize("fails", range(8))
def test_a_failed_step_ends_the_requests_in_it_and_no_others(runner, overlap, fails):
    served = scheduler(ContinuousBatching(), max_running=2)
    engine = Engine(served, contained(runner(served.pool, fails)), overlap)
    # One of the two is always about to end while the other goes on, so each step but the first has newcomers.
    states = [engine.add(Request(str(i), [i + 1], max_tokens=2 + i % 2)) for i in range(8)]
    while engine.has_work:
        engine.step()
    failed = [state for state in states if state.finish_reason == "error"]
    assert 1 <= len(failed) <= 2 and all(state.error is GONE for state in failed)
    for state in states:
        assert state in failed or state.generated == answer(state.request)
    assert served.pool.num_free == served.pool.num_blocks


def test_what_is_contained_overlaps_where_it_did():
    assert isinstance(contained(PagedRunner(scheduler(ContinuousBatching()).pool)), OverlappingRunner)
    assert not isinstance(contained(FunctionRunner(lambda state: 1)), OverlappingRunner)


class Small(PagedRunner):
    """Has memory for three requests and knows the tokens below 9."""

    def check_scheduler(self, num_blocks, block_size, max_running):
        require(max_running <= 3, "max_running", "at most 3", max_running, "use 3")

    def check_request(self, request):
        require(max(request.prompt) < 9, "prompt", "below 9", max(request.prompt), "use 8")


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_contained_is_asked_for_its_bounds(overlap):
    large, served = (scheduler(ContinuousBatching(), max_running=slots) for slots in (4, 3))
    with pytest.raises(ValueError, match="max_running must be at most 3, got 4"):
        Engine(large, contained(Small(large.pool)), overlap)
    engine = Engine(served, contained(Small(served.pool)), overlap)
    with pytest.raises(ValueError, match="prompt must be below 9, got 9"):
        engine.add(Request("a", [9]))
    assert not engine.has_work
