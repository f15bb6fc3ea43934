import math

import pytest

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import one_second, simulate
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.workload import LogNormal, bursty, make_requests, poisson
from tests.serving.fakes import PagedRunner, answer, scheduler


def test_tokens_come_at_the_ends_of_steps():
    requests = [Request("a", [1, 2], max_tokens=3), Request("b", [1], max_tokens=1, arrival_s=1.5)]
    trace = simulate(requests, scheduler(ContinuousBatching()), one_second)
    assert [timeline.token_s for timeline in trace.timelines] == [[1.0, 2.0, 3.0], [3.0]]
    assert [(step.start_s, step.end_s) for step in trace.steps] == [(0, 1), (1, 2), (2, 3)]
    assert [[(cell.id, cell.slot, cell.num_tokens) for cell in step.cells] for step in trace.steps] == [
        [("a", 0, 2)],
        [("a", 0, 1)],
        [("a", 0, 1), ("b", 1, 1)],
    ]
    assert trace.end_s == 3.0


def test_the_clock_jumps_to_the_next_arrival():
    requests = [Request("late", [1], max_tokens=1, arrival_s=100.0), Request("early", [1], max_tokens=1)]
    trace = simulate(requests, scheduler(ContinuousBatching()))
    assert [timeline.token_s for timeline in trace.timelines] == [[101.0], [1.0]]


def test_the_cost_sees_what_is_scheduled():
    trace = simulate(
        [Request("a", range(10), max_tokens=2)],
        scheduler(ChunkedPrefill(token_budget=4)),
        lambda schedule: schedule.num_tokens / 4,
    )
    assert trace.timelines[0].token_s == [2.5, 2.75] and [step.num_tokens for step in trace.steps] == [
        4,
        4,
        2,
        1,
    ]


def test_what_cannot_fit_is_refused_and_the_others_are_served():
    requests = [Request("long", range(100)), Request("a", [1], max_tokens=1)]
    trace = simulate(requests, scheduler(ContinuousBatching(), num_blocks=8))
    refused, served = trace.timelines
    assert "'long' needs 29 blocks" in refused.refusal and refused.finish_reason is None
    assert served.refusal is None and served.finish_reason == "length"


def test_a_runner_may_give_the_tokens():
    served = scheduler(ContinuousBatching())
    request = Request("a", [1, 2], max_tokens=30, stop_token_ids=[0])
    trace = simulate([request], served, runner=PagedRunner(served.pool))
    assert len(trace.timelines[0].token_s) == len(answer(request)) < 30
    assert trace.timelines[0].finish_reason == "stop"


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_step_takes_time(seconds):
    with pytest.raises(ValueError, match="cost must be positive and finite, got"):
        simulate([Request("a", [1])], scheduler(ContinuousBatching()), lambda schedule: seconds)


def test_a_scheduler_begins_without_work():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1]))
    with pytest.raises(ValueError, match="scheduler must be one without work"):
        simulate([], served)


def test_two_requests_of_one_name_are_refused_before_any_is_served():
    with pytest.raises(ValueError, match="requests must be of different ids, got 'a' twice"):
        simulate([Request("a", [1]), Request("a", [2])], scheduler(ContinuousBatching()))


@pytest.mark.parametrize("arrivals", [poisson(50.0), bursty(50.0)])
def test_preemptions_and_reuse_are_written_down(arrivals):
    requests = make_requests(60, arrivals, LogNormal(20), LogNormal(20, longest=60), shared_prefix=32)
    served = Scheduler(BlockPool(400, 4), ContinuousBatching(), max_running=32)
    trace = simulate(requests, served, lambda schedule: 0.05)
    assert sum(step.num_preempted for step in trace.steps) > 0
    assert sum(timeline.num_preemptions for timeline in trace.timelines) == sum(
        step.num_preempted for step in trace.steps
    )
    assert sum(timeline.num_reused >= 32 for timeline in trace.timelines) > 30
    assert [len(timeline.token_s) for timeline in trace.timelines] == [r.max_tokens for r in requests]


def test_continuous_batching_beats_traditional_and_chunks_shorten_the_worst_gap():
    """What the chapter says, on a machine whose step takes 10 ms and 50 µs for each token."""
    requests = make_requests(200, poisson(10.0), LogNormal(400), LogNormal(40, longest=200))
    duration_s, worst_gap_s = {}, {}
    for policy in (TraditionalBatching(), ContinuousBatching(), ChunkedPrefill(token_budget=256)):
        served = Scheduler(BlockPool(4000), policy, max_running=16)
        trace = simulate(requests, served, lambda schedule: 0.01 + 50e-6 * schedule.num_tokens)
        duration_s[type(policy)] = trace.end_s
        worst_gap_s[type(policy)] = max(
            after - before
            for t in trace.timelines
            for before, after in zip(t.token_s, t.token_s[1:], strict=False)
        )
    assert duration_s[ContinuousBatching] < 0.7 * duration_s[TraditionalBatching]
    assert worst_gap_s[ChunkedPrefill] <= 0.01 + 50e-6 * 256 + 1e-9 < 0.5 * worst_gap_s[ContinuousBatching]
