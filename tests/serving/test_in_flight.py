"""What is known of a step when it is launched, and what only when its tokens are here."""

import pytest

from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import PENDING, Request
from llmcourse.serving.scheduler import Scheduler, StepOrder
from tests.serving.fakes import PagedRunner, answer, drain, scheduler


def launched(served: Scheduler):
    """A step that was scheduled and launched; nothing is resolved."""
    schedule = served.schedule()
    served.advance(schedule)
    return schedule


def test_a_launched_step_moves_its_requests_on_without_its_tokens():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1, 2, 3], max_tokens=5))
    first = launched(served)
    assert state.tokens == [1, 2, 3, PENDING] and (state.num_computed, state.generated) == (3, [])
    second = launched(served)
    assert [(chunk.start, chunk.stop, chunk.samples) for chunk in second.chunks] == [(3, 4, True)]
    assert state.tokens == [1, 2, 3, PENDING, PENDING]
    assert [output.token for output in served.resolve(first, {"a": 7})] == [7]
    assert state.tokens == [1, 2, 3, 7, PENDING] and state.generated == [7]
    served.resolve(second, {"a": 8})
    assert state.tokens == [1, 2, 3, 7, 8]


def test_a_piece_of_a_prompt_samples_nothing_and_needs_no_token():
    served = scheduler(ChunkedPrefill(token_budget=4))
    state = served.add(Request("a", [1, 2, 3, 4, 5], max_tokens=1))
    schedule = launched(served)
    assert state.num_computed == 4 and state.tokens == [1, 2, 3, 4, 5]
    assert served.resolve(schedule, {}) == [] and len(served.pool.match(state.tokens)) == 1


def test_nobody_is_planned_past_the_most_that_an_answer_may_have():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1], max_tokens=2))
    steps = [launched(served), launched(served)]
    assert state.status == "ending" and state.slot == 0 and served.num_running == 1
    served.resolve(steps[0], {"a": 5})
    nothing = served.schedule()
    assert nothing.chunks == () and served.has_work
    served.abandon(nothing)
    (output,) = served.resolve(steps[1], {"a": 6})
    assert (output.token, output.finish_reason, state.generated) == (6, "length", [5, 6])
    assert not served.has_work and served.pool.num_free == served.pool.num_blocks


def test_a_traditional_batch_is_not_done_before_its_last_token_is_here():
    served = scheduler(TraditionalBatching())
    served.add(Request("a", [1], max_tokens=1))
    last = launched(served)
    served.add(Request("b", [2], max_tokens=1))
    nothing = served.schedule()
    assert nothing.chunks == () and served.num_waiting == 1
    served.abandon(nothing)
    served.resolve(last, {"a": 5})
    assert [chunk.state.id for chunk in served.schedule().chunks] == ["b"]


def test_a_token_after_the_end_is_dropped_and_waited_for():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1], max_tokens=9, stop_token_ids=[5]))
    first, second = launched(served), launched(served)
    assert [output.finish_reason for output in served.resolve(first, {"a": 5})] == ["stop"]
    assert state.tokens == [1, 5] and state.blocks == [] and served.has_work
    assert served.resolve(second, {}) == [] and state.tokens == [1, 5] and not served.has_work


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_block_is_known_when_its_last_token_is(overlap):
    served = scheduler(ContinuousBatching(), block_size=2)
    state = served.add(Request("a", [1], max_tokens=9))
    before = None
    for token in range(11, 16):
        schedule = served.schedule()
        if overlap:
            served.advance(schedule)
            if before:
                served.resolve(*before)
            before = schedule, {"a": token}
        else:
            served.postprocess(schedule, {"a": token})
    if overlap:
        served.resolve(*before)
    assert state.tokens == [1, 11, 12, 13, 14, 15]
    assert served.pool.match(state.tokens) == state.blocks[:2]  # 15 is not computed yet
    served.abort("a")
    assert served.pool.match([1, 11, 12, 13]) and not served.pool.match([1, PENDING])


def test_a_block_is_not_known_before_it_is_resolved():
    served = scheduler(ContinuousBatching(), block_size=2)
    served.add(Request("a", [1, 2, 3], max_tokens=9))
    schedule = launched(served)
    assert served.pool.match([1, 2]) == []
    served.resolve(schedule, {"a": 4})
    assert len(served.pool.match([1, 2])) == 1


def tight() -> Scheduler:
    """Six blocks of two tokens and two requests, of which the second is soon preempted."""
    served = scheduler(ContinuousBatching(), num_blocks=6, block_size=2, max_running=2)
    for name in "ab":
        served.add(Request(name, [ord(name), 2, 3], max_tokens=8))
    return served


def preempting(served: Scheduler, runner: PagedRunner):
    """Overlapping steps until one is scheduled that preempts: the step in flight, its tokens, that one."""
    before = None
    while True:
        schedule = served.schedule()
        if schedule.preempted:
            return *before, schedule
        sampled = runner.launch(schedule)()
        served.advance(schedule)
        if before:
            served.resolve(*before)
        before = schedule, sampled


def test_a_token_that_arrives_after_its_request_was_preempted_is_kept():
    served = tight()
    runner = PagedRunner(served.pool)
    before, sampled, schedule = preempting(served, runner)
    (victim,) = schedule.preempted
    known = victim.generated
    assert victim.tokens[-1] == PENDING
    runner.launch(schedule)
    served.advance(schedule)
    outputs = served.resolve(before, sampled)
    assert victim in [output.state for output in outputs]
    assert victim.generated == [*known, sampled[victim.id]] == answer(victim.request)[: len(known) + 1]


def test_a_preempted_request_is_not_admitted_before_its_token_is_here():
    """The step that preempted it is lost, so the next might admit it at once."""
    served = tight()
    runner = PagedRunner(served.pool)
    before, sampled, schedule = preempting(served, runner)
    (victim,) = schedule.preempted
    served.abandon(schedule)
    served.abort("a")
    assert served.schedule().chunks == () and victim.status == "waiting"
    assert len(served.resolve(before, sampled)) == 1


def test_a_chunk_in_flight_says_nothing_of_blocks_that_were_given_since():
    """A preempted request has other blocks before the step that computed the old ones is resolved."""
    served = scheduler(ChunkedPrefill(token_budget=4), num_blocks=6, block_size=2, max_running=2)
    served.add(Request("a", [1, 2, 3], max_tokens=8))
    state = served.add(Request("b", [4, 5, 6, 7, 8, 9, 9], max_tokens=1))
    first, second = launched(served), launched(served)
    served.resolve(first, {"a": 1})
    assert [(chunk.start, chunk.stop) for chunk in second.chunks] == [(3, 4), (1, 4)]
    lost = served.schedule()
    assert lost.preempted == (state,)
    served.abandon(lost)
    served.abort("a")
    assert [(chunk.start, chunk.stop) for chunk in served.schedule().chunks] == [(0, 4)]
    served.resolve(second, {})
    assert served.pool.match([4, 5, 6, 7]) == []


@pytest.mark.parametrize("later", [0, 1])
def test_a_step_that_failed_takes_the_later_one_with_it(later):
    served = scheduler(ContinuousBatching())
    ends, goes_on = served.add(Request("a", [1, 2], max_tokens=1 + later)), served.add(Request("b", [3]))
    first, *_ = [launched(served) for _ in range(1 + later)]
    assert ends.status == "ending"
    served.abandon(first)
    assert (ends.tokens, goes_on.tokens) == ([1, 2], [3]) and ends.status == "running"
    again = served.schedule()
    assert {c.state.id: (c.start, c.stop, c.samples) for c in again.chunks} == {
        "a": (0, 2, True),
        "b": (0, 1, True),
    }


def test_a_request_that_was_preempted_since_is_not_taken_back_into_the_batch():
    served = tight()
    runner = PagedRunner(served.pool)
    before, _, schedule = preempting(served, runner)
    (victim,) = schedule.preempted
    served.abandon(before)
    assert (victim.status, victim.num_computed, victim.blocks) == ("waiting", 0, [])
    assert victim.tokens[-1] != PENDING
    drain(served, runner, overlap=True)
    assert victim.generated == answer(victim.request)


def test_cancelled_between_launch_and_resolve_a_request_keeps_what_it_got():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1], max_tokens=9))
    first, second = launched(served), launched(served)
    served.resolve(first, {"a": 5})
    third = launched(served)
    served.abort("a")
    assert state.generated == [5] and state.tokens == [1, 5]
    assert served.resolve(second, {"a": 6}) == served.resolve(third, {}) == []
    assert served.pool.num_free == served.pool.num_blocks


def test_a_request_that_fails_ends_alone_and_what_was_computed_of_it_since_is_dropped():
    served = scheduler(ContinuousBatching())
    bad, good = served.add(Request("bad", [1])), served.add(Request("good", [2]))
    first, second = launched(served), launched(served)
    error = ArithmeticError("logits hold NaN")
    served.resolve(first, {"bad": error, "good": 3})
    assert bad.error is error and bad.tokens == [1] and bad.blocks == []
    assert [output.state for output in served.resolve(second, {"bad": 7, "good": 4})] == [good]


def test_steps_overlap_in_turn_and_no_more_than_two():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1], max_tokens=9))
    first = served.schedule()
    with pytest.raises(StepOrder, match="the earliest step in flight, got step 0"):
        served.resolve(first, {"a": 1})
    served.advance(first)
    with pytest.raises(StepOrder, match="the one scheduled last, got step 0; pass each step once"):
        served.advance(first)
    second = launched(served)
    with pytest.raises(StepOrder, match="step 0 must be resolved before a third is scheduled"):
        served.schedule()
    for take_in in (served.resolve, served.postprocess):
        with pytest.raises(StepOrder, match="the earliest step in flight, got step 1"):
            take_in(second, {"a": 1})
    served.resolve(first, {"a": 1})
    with pytest.raises(StepOrder, match="a step in flight, got step 0"):
        served.abandon(first)


def test_a_missing_token_is_noticed_before_anything_is_taken_in():
    served = scheduler(ContinuousBatching())
    states = [served.add(Request(name, [1])) for name in "ab"]
    schedule = launched(served)
    with pytest.raises(ValueError, match=r"a token for each chunk that samples, got none for \['b'\]"):
        served.resolve(schedule, {"a": 1})
    assert [state.generated for state in states] == [[], []]
    assert len(served.resolve(schedule, {"a": 1, "b": 2})) == 2
