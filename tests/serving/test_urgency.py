"""Priorities, and that they starve nobody."""

import pytest

from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from tests.serving.fakes import POLICIES, PagedRunner, drain, scheduler, step

AGEING = 8


def served_order(served, names) -> list[str]:
    """The requests in the order in which their first token came."""
    order = []
    runner = PagedRunner(served.pool)
    while served.has_work:
        order += [output.state.id for output in step(served, runner)[1] if output.state.num_generated == 1]
    return [name for name in order if name in names]


def test_the_urgent_go_first_and_equals_in_the_order_of_arrival():
    served = scheduler(ContinuousBatching(), max_running=1, ageing=100)
    for name, priority in (("c", 1), ("d", 1), ("e", 2), ("a", 0), ("b", 0)):
        served.add(Request(name, [1], max_tokens=1, priority=priority))
    assert served_order(served, "abcde") == ["a", "b", "c", "d", "e"]


def test_without_ageing_requests_are_served_as_they_came():
    served = scheduler(ContinuousBatching(), max_running=1, ageing=0)
    for name, priority in (("a", 3), ("b", 0), ("c", 1)):
        served.add(Request(name, [1], max_tokens=1, priority=priority))
    assert served_order(served, "abc") == ["a", "b", "c"]


@pytest.mark.parametrize("priority", [0, 1, 3])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_fewer_than_priority_times_ageing_later_requests_overtake(policy, priority):
    """An endless stream of urgent requests, one a step, more than can be served."""
    served = scheduler(policy, max_running=1, ageing=AGEING)
    served.add(Request("running", [1], max_tokens=4))
    runner = PagedRunner(served.pool)
    step(served, runner)
    slow = served.add(Request("slow", [1], max_tokens=1, priority=priority))
    overtook = 0
    for number in range(400):
        served.add(Request(f"urgent {number}", [1], max_tokens=2))
        outputs = step(served, runner)[1]
        overtook += sum(o.state.num_generated == 1 and o.state.id.startswith("urgent") for o in outputs)
        if slow.num_generated:
            break
    assert slow.num_generated and overtook == max(0, priority * AGEING - 1)


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_memory():
    served = scheduler(ContinuousBatching(), num_blocks=4, block_size=4)
    served.add(Request("runs", [1] * 9, max_tokens=3))  # three of four blocks
    step(served, PagedRunner(served.pool))
    served.add(Request("large", [2] * 9, max_tokens=1))
    served.add(Request("small", [3], max_tokens=1))
    assert served_order(served, {"large", "small"}) == ["large", "small"]


def test_the_least_urgent_is_preempted():
    served = scheduler(ContinuousBatching(), num_blocks=6, block_size=2, max_running=3)
    states = [served.add(Request(str(p), [9 - p, 1, 1], max_tokens=6, priority=p)) for p in (2, 0, 1)]
    first = next(schedule for schedule in drain(served) if schedule.preempted)
    assert [state.request.priority for state in first.preempted] == [2]
    assert {state.request.priority: state.num_preemptions for state in states}[0] == 0
