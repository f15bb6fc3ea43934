import time

import pytest

from llmcourse.serving import Engine, Request, measure, padded, replay, simulate
from tests.serving.fakes import POLICIES, PagedRunner, answer, scheduler


def engine(**changes) -> Engine:
    served = scheduler(POLICIES["chunked"], **changes)
    return Engine(served, PagedRunner(served.pool))


REQUESTS = [Request(str(i), [i] * (3 + i), max_tokens=4 + i, arrival_s=0.02 * i) for i in range(6)]


def test_every_request_gets_its_tokens_after_it_came_and_in_order():
    trace = replay(REQUESTS, engine())
    for timeline in trace.timelines:
        assert len(timeline.token_s) == len(answer(timeline.request))
        assert timeline.finish_reason == "length" and timeline.answered
        assert timeline.request.arrival_s <= timeline.token_s[0]
        assert timeline.token_s == sorted(timeline.token_s)
    assert trace.end_s >= 0.1 == REQUESTS[-1].arrival_s
    assert measure(trace).num_finished == 6


def test_it_takes_as_many_steps_as_on_the_virtual_clock():
    at_once = [Request(r.id, r.prompt, r.max_tokens) for r in REQUESTS]
    served = scheduler(POLICIES["chunked"])
    assert len(replay(at_once, engine()).steps) == len(simulate(at_once, served).steps)


def test_a_silence_is_waited_for():
    began = time.perf_counter()
    trace = replay([Request("late", [1], max_tokens=1, arrival_s=0.2)], engine())
    assert time.perf_counter() - began >= 0.2 <= trace.timelines[0].token_s[0]


def test_what_never_fits_is_refused_and_the_rest_is_served():
    trace = replay([Request("large", [1] * 1000), REQUESTS[0]], engine())
    assert "needs" in trace.timelines[0].refusal and not trace.timelines[0].answered
    assert trace.timelines[1].answered


def test_an_engine_with_work_is_refused():
    busy = engine()
    busy.add(Request("a", [1]))
    with pytest.raises(ValueError, match="engine must be one without work"):
        replay(REQUESTS, busy)


def test_padding_makes_batches_rectangular():
    requests = [Request("a", [1, 2], 9), Request("b", [3, 4, 5], 2, stop_token_ids=[7]), Request("c", [6], 5)]
    first, second, third = padded(requests, 2)
    assert (first.prompt, first.max_tokens) == ((1, 1, 2), 9)
    assert (second.prompt, second.max_tokens, second.stop_token_ids) == ((3, 4, 5), 9, frozenset())
    assert (third.prompt, third.max_tokens) == ((6,), 5)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        padded(requests, 0)
