"""Who is let in, whose token is whose, and that nothing is left behind."""

import asyncio
import threading

import pytest

from llmcourse.serving.http.service import Closed, Overloaded, Service
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import NeverFits, Scheduler
from tests.serving.fakes import PagedRunner, answer, scheduler
from tests.serving.http.fakes import Script, service_of


def run(work, service):
    """Some work on an event loop, while the service is open."""

    async def whole():
        service.start()
        try:
            return await asyncio.wait_for(work(), 20)
        finally:
            assert await asyncio.to_thread(service.stop)

    return asyncio.run(whole())


async def collect(service, *requests) -> dict[str, list[int]]:
    tokens, open_ids = {request.id: [] for request in requests}, {request.id for request in requests}
    async with service.answers(requests) as answers:
        while open_ids:
            for event in await answers.events():
                if event.error:
                    raise event.error
                tokens[event.request_id].append(event.token)
                open_ids -= {event.request_id} if event.finish_reason else set()
    return tokens


async def until(holds):
    while not holds():
        await asyncio.sleep(0.001)


def test_every_token_reaches_the_one_who_asked():
    service = service_of(Script(lambda state: state.tokens[0]))
    requests = [Request(str(number), [number], max_tokens=number) for number in range(1, 9)]

    async def work():
        return await asyncio.gather(*(collect(service, *requests[i : i + 2]) for i in range(0, 8, 2)))

    found = {name: tokens for answer in run(work, service) for name, tokens in answer.items()}
    assert found == {str(number): [number] * number for number in range(1, 9)}
    assert service.num_free_blocks == service.num_blocks and service.token_rate.total == 36


def test_requests_that_can_never_fit_leave_none_behind():
    service = service_of(Script(lambda state: 5), num_blocks=4)  # of 4 tokens

    async def work():
        small, large = Request("small", [5], max_tokens=9), Request("large", [5] * 10, max_tokens=9)
        with pytest.raises(NeverFits, match=r"needs 5 blocks .* the pool has 4"):
            await collect(service, small, large)
        await until(lambda: service.num_running == service.num_waiting == 0)
        assert service.holds(16) and not service.holds(17)
        return await collect(service, small)

    assert run(work, service) == {"small": [5] * 9}


def test_a_full_queue_takes_no_more():
    script = Script(lambda state: 5)
    service = service_of(script, max_running=1, queue_limit=2)

    async def work():
        script.gate.clear()
        first = asyncio.ensure_future(collect(service, Request("a", [5], max_tokens=2)))
        await until(lambda: service.num_running == 1)
        others = [asyncio.ensure_future(collect(service, Request(name, [5], max_tokens=2))) for name in "bc"]
        await until(lambda: service.num_waiting == 2)
        with pytest.raises(Overloaded, match="2 requests wait, 1 more would exceed 2"):
            await collect(service, Request("d", [5]))
        script.gate.set()
        return await asyncio.gather(first, *others)

    assert run(work, service) == [{name: [5, 5]} for name in "abc"]


def test_who_leaves_frees_blocks_wherever_the_request_stands():
    script = Script(lambda state: 5)
    script.steps = threading.Semaphore(1)
    service = service_of(script, max_running=1)

    async def work():
        runs = asyncio.ensure_future(collect(service, Request("runs", [5], max_tokens=50)))
        await until(lambda: service.num_running == 1)
        waits = asyncio.ensure_future(collect(service, Request("waits", [5], max_tokens=50)))
        await until(lambda: service.num_waiting == 1)
        for task in (waits, runs):
            task.cancel()
        await asyncio.wait([waits, runs])
        script.steps.release(5)
        await until(lambda: service.num_running == 0 and service.num_free_blocks == service.num_blocks)
        return service.num_waiting

    assert run(work, service) == 0
    assert "waits" not in script.seen and script.seen["runs"].finish_reason == "abort"


def test_closing_lets_what_runs_finish_in_time_and_then_ends_it():
    script = Script(lambda state: 5)
    service = service_of(script)

    async def work():
        assert service.closed is None
        script.gate.clear()
        short = asyncio.ensure_future(collect(service, Request("short", [5], max_tokens=1)))
        long = asyncio.ensure_future(collect(service, Request("long", [5], max_tokens=200)))
        await until(lambda: service.num_running == 2)
        service.close(grace_s=0.2)
        with pytest.raises(Closed, match="shutting down"):
            await collect(service, Request("new", [5]))
        script.steps = threading.Semaphore(1)
        script.gate.set()
        assert await short == {"short": [5]}
        with pytest.raises(Closed, match="shutting down"):
            await long
        script.steps.release(300)

    run(work, service)
    assert service.num_free_blocks == service.num_blocks


def test_an_engine_that_fails_leaves_nobody_waiting(monkeypatch, caplog):
    script = Script([])
    service = service_of(script)
    # A fault in the scheduler: in a runner it would be contained.
    monkeypatch.setattr(Scheduler, "postprocess", lambda self, schedule, sampled: 1 / 0)

    async def work():
        script.gate.clear()
        runs = asyncio.ensure_future(collect(service, Request("runs", [5])))
        await until(lambda: service.num_running == 1)
        on_its_way = asyncio.ensure_future(collect(service, Request("on its way", [5])))
        await until(lambda: service.num_waiting == 1)
        script.gate.set()
        for waits in (runs, on_its_way, collect(service, Request("late", [5]))):
            with pytest.raises(Closed, match=r"the engine has failed .*ZeroDivisionError"):
                await waits

    run(work, service)
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_may_overlap(overlap):
    served = scheduler(ContinuousBatching(), max_running=3)
    service = Service(served, PagedRunner(served.pool), overlap=overlap)
    requests = [Request(str(i), [i + 1], max_tokens=2 + i % 5, stop_token_ids=[0]) for i in range(9)]

    async def work():
        return await asyncio.gather(*(collect(service, request) for request in requests))

    assert run(work, service) == [{request.id: answer(request)} for request in requests]
    assert service.num_free_blocks == service.num_blocks


def test_a_service_that_was_never_started_stops():
    assert service_of(Script([])).stop()


def test_a_queue_of_no_length_is_refused():
    with pytest.raises(ValueError, match="queue_limit must be an integer of at least 1, got 0"):
        service_of(Script([]), queue_limit=0)
