import inspect
import random

import pytest

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import (
    DuplicateId,
    NeverFits,
    Scheduler,
    StepOrder,
    UnknownRequest,
)
from tests.serving.fakes import END, POLICIES, PagedRunner, answer, drain, scheduler, step

policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def many(count: int, seed: int = 0) -> list[Request]:
    """Requests of which half begin alike."""
    rng = random.Random(seed)
    start = [rng.randrange(1, 10) for _ in range(9)]
    starts = [start if i % 2 else [] for i in range(count)]
    prompts = [start + [rng.randrange(10) for _ in range(rng.randint(1, 12))] for start in starts]
    limits = [{"max_tokens": rng.randint(1, 16), "priority": rng.choice([0, 0, 2])} for _ in range(count)]
    return [
        Request(str(i), prompt, stop_token_ids=[END], **limit)
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def ranges(schedule) -> dict[str, tuple[int, int]]:
    """What a step computes of each request."""
    return {chunk.state.id: (chunk.start, chunk.stop) for chunk in schedule.chunks}


@policies
@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("num_blocks", [10, 16, 64])
def test_answers_are_the_same_whatever_the_policy_and_the_memory(policy, num_blocks, overlap):
    served = scheduler(policy, num_blocks=num_blocks)
    requests = many(30)
    states = [served.add(request) for request in requests]
    drain(served, overlap=overlap)
    assert [state.generated for state in states] == [answer(request) for request in requests]
    assert {state.finish_reason for state in states} == {"stop", "length"}
    assert served.pool.num_free == num_blocks and served.num_running == served.num_waiting == 0


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_continuous_batching_preempts_where_memory_is_short_and_traditional_never(overlap):
    preempted = {}
    for name in ("traditional", "continuous", "chunked"):
        served = scheduler(POLICIES[name], num_blocks=10)
        states = [served.add(request) for request in many(30)]
        drain(served, overlap=overlap)
        preempted[name] = sum(state.num_preemptions for state in states)
    assert preempted["traditional"] == 0 < min(preempted["continuous"], preempted["chunked"])


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_traditional_batch_ends_before_the_next_begins(overlap):
    served = scheduler(TraditionalBatching(), max_running=2)
    for name, length in (("a", 1), ("b", 3), ("c", 1)):
        served.add(Request(name, [1, 2, 3], max_tokens=length))
    steps = [ranges(schedule) for schedule in drain(served, overlap=overlap)]
    assert steps == [{"a": (0, 3), "b": (0, 3)}, {"b": (3, 4)}, {"b": (4, 5)}, {"c": (0, 3)}]


def test_continuous_batching_fills_a_slot_at_once():
    served = scheduler(ContinuousBatching(), max_running=2)
    for name, length in (("a", 1), ("b", 3), ("c", 1)):
        served.add(Request(name, [1, 2, 3], max_tokens=length))
    steps = [ranges(schedule) for schedule in drain(served)]
    assert steps == [{"a": (0, 3), "b": (0, 3)}, {"b": (3, 4), "c": (0, 3)}, {"b": (4, 5)}]


def test_no_prompt_is_added_to_a_step_that_has_its_budget():
    served = scheduler(ContinuousBatching(token_budget=5))
    for name in "abc":
        served.add(Request(name, [1, 2, ord(name)], max_tokens=2))
    assert list(ranges(step(served, PagedRunner(served.pool))[0])) == ["a", "b"]


def test_chunked_prefill_decodes_first_and_fills_the_budget_with_prompts():
    served = scheduler(ChunkedPrefill(token_budget=4))
    served.add(Request("a", [1, 2], max_tokens=4))
    served.add(Request("b", [3, 4, 5, 6, 7, 8, 9], max_tokens=1))
    steps = [ranges(schedule) for schedule in drain(served)]
    assert steps == [
        {"a": (0, 2), "b": (0, 2)},
        {"a": (2, 3), "b": (2, 5)},
        {"a": (3, 4), "b": (5, 7)},
        {"a": (4, 5)},
    ]


def test_chunked_prefill_keeps_to_its_budget():
    served = scheduler(ChunkedPrefill(token_budget=8), num_blocks=16)
    for request in many(30):
        served.add(request)
    sizes = [schedule.num_tokens for schedule in drain(served)]
    assert max(sizes) == 8 and min(sizes) >= 1


def test_a_beginning_that_another_request_has_computed_is_not_computed_again():
    served = scheduler(ContinuousBatching(), block_size=4)
    served.add(Request("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=1))
    drain(served)
    state = served.add(Request("b", [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1))
    assert ranges(served.schedule()) == {"b": (4, 8)}  # the last token is computed for its logits
    assert state.num_reused == 4


def test_a_preempted_request_goes_on_where_it_was():
    """Its own blocks, as far as nobody has written over them, are found again."""
    served = scheduler(ContinuousBatching(), num_blocks=6, block_size=2, max_running=2)
    states = [served.add(Request(name, [ord(name), 2, 3], max_tokens=8)) for name in "ab"]
    runner = PagedRunner(served.pool)
    while not states[1].num_preemptions:
        schedule, _ = step(served, runner)
    assert schedule.preempted == (states[1],) and states[0].num_preemptions == 0
    assert states[1].status == "waiting" and states[1].blocks == [] and states[1].slot is None
    drain(served, runner)
    assert [state.generated for state in states] == [answer(state.request) for state in states]


def test_a_step_that_takes_blocks_from_one_request_gives_none_to_another():
    served = scheduler(ContinuousBatching(), num_blocks=6, block_size=2, max_running=2)
    for name in "ab":
        served.add(Request(name, [ord(name), 2, 3], max_tokens=8, priority=1))
    runner = PagedRunner(served.pool)
    step(served, runner)
    served.add(Request("urgent", [5], max_tokens=1))
    steps = drain(served, runner)
    first = next(i for i, schedule in enumerate(steps) if schedule.preempted)
    assert list(ranges(steps[first])) == ["a"] and list(ranges(steps[first + 1])) == ["a", "urgent"]


def test_slots_are_the_rows_of_a_batch():
    served = scheduler(ContinuousBatching(), max_running=2)
    for name, length in (("a", 1), ("b", 3), ("c", 1)):
        served.add(Request(name, [1], max_tokens=length))
    runner, slots = PagedRunner(served.pool), []
    while served.has_work:
        schedule = served.schedule()
        slots.append({chunk.state.id: chunk.state.slot for chunk in schedule.chunks})
        served.postprocess(schedule, runner.run(schedule))
    assert slots == [{"a": 0, "b": 1}, {"b": 1, "c": 0}, {"b": 1}]


def test_a_request_that_can_never_fit_is_refused_with_what_it_needs_and_what_there_is():
    served = scheduler(ContinuousBatching(), num_blocks=4, block_size=4)
    served.add(Request("fits", range(1, 11), max_tokens=7))  # 10 + 7 − 1 = 16 tokens
    with pytest.raises(
        NeverFits, match=r"'long' needs 5 blocks .* max_tokens 8, the pool has 4 of 4 tokens; "
    ):
        served.add(Request("long", range(1, 11), max_tokens=8))
    assert served.num_waiting == 1
    drain(served)


def test_two_unfinished_requests_never_share_an_id():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1]))
    with pytest.raises(DuplicateId, match="got 'a'; choose another"):
        served.add(Request("a", [2]))
    drain(served)
    served.add(Request("a", [2]))


def test_waiting_and_running_requests_are_cancelled():
    served = scheduler(ContinuousBatching(), max_running=1)
    running, waiting = served.add(Request("a", [1, 2, 3])), served.add(Request("b", [1, 2, 3]))
    step(served, PagedRunner(served.pool))
    for state in (waiting, running):
        assert served.abort(state.id) is state
        assert (state.status, state.finish_reason, state.blocks) == ("finished", "abort", [])
    assert not served.has_work and served.pool.num_free == served.pool.num_blocks
    with pytest.raises(UnknownRequest, match="got 'a'; it may be finished"):
        served.abort("a")


def test_what_a_step_samples_for_a_cancelled_request_is_dropped():
    served = scheduler(ContinuousBatching())
    gone, stays = served.add(Request("a", [1] * 4)), served.add(Request("b", [2]))
    schedule = served.schedule()
    served.abort("a")
    outputs = served.postprocess(schedule, {"a": 5, "b": 6})
    assert [output.state for output in outputs] == [stays] and gone.generated == []
    assert served.pool.match([1] * 4) == []  # and its blocks are not taken for computed


def test_an_id_may_be_used_again_while_a_step_with_the_cancelled_one_runs():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1]))
    schedule = served.schedule()
    served.abort("a")
    again = served.add(Request("a", [2]))
    assert served.postprocess(schedule, {"a": 5}) == [] and again.generated == []


def test_a_request_that_fails_ends_alone():
    served = scheduler(ContinuousBatching())
    bad, good = served.add(Request("bad", [1])), served.add(Request("good", [2]))
    error = ArithmeticError("logits hold NaN")
    outputs = served.postprocess(served.schedule(), {"bad": error, "good": 3})
    assert [(output.token, output.finish_reason) for output in outputs] == [(None, "error"), (3, None)]
    assert bad.error is error and bad.finish_reason == "error" and bad.blocks == []
    assert good.generated == [3] and served.num_running == 1


@policies
def test_a_step_that_could_not_be_run_is_scheduled_again(policy):
    served = scheduler(policy)
    states = [served.add(request) for request in many(6)]
    runner = PagedRunner(served.pool)
    while served.has_work:
        lost = served.schedule()
        served.abandon(lost)
        assert ranges(step(served, runner)[0]).keys() >= ranges(lost).keys()
    assert [state.generated for state in states] == [answer(state.request) for state in states]


def test_steps_are_taken_in_turn():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1]))
    first = served.schedule()
    with pytest.raises(StepOrder, match="step 0 must be postprocessed before the next"):
        served.schedule()
    served.postprocess(first, {"a": 1})
    with pytest.raises(StepOrder, match="got step 0; pass each step once"):
        served.postprocess(first, {"a": 1})
    with pytest.raises(StepOrder):
        served.abandon(first)


def test_a_missing_token_is_noticed_and_the_step_may_be_given_again():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1]))
    schedule = served.schedule()
    with pytest.raises(ValueError, match=r"a token for each chunk that samples, got none for \['a'\]"):
        served.postprocess(schedule, {})
    served.postprocess(schedule, {"a": 1})
    assert state.generated == [1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_running": 0}, "max_running must be an integer of at least 1, got 0"),
        ({"ageing": -1}, "ageing must be an integer of at least 0"),
        ({"max_running": 9}, "max_running must be at most 8, the token budget, got 9; every running request"),
    ],
)
def test_a_scheduler_that_cannot_serve_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Scheduler(BlockPool(4), ChunkedPrefill(token_budget=8), **({"max_running": 4} | wrong))


@pytest.mark.parametrize("policy", [ContinuousBatching, ChunkedPrefill])
def test_a_budget_is_at_least_one_token(policy):
    with pytest.raises(ValueError, match="token_budget must be an integer of at least 1, got 0"):
        policy(token_budget=0)


class Planning(ContinuousBatching):
    """A policy that asks for more than there is, or twice."""

    def __init__(self, *sizes: int):
        super().__init__()
        object.__setattr__(self, "sizes", sizes)

    def plan(self, step):
        state = step.admit()
        for size in self.sizes:
            step.compute(state, size)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([0], r"num_tokens must be in \[1, 3\], the pending tokens of 'a', got 0"),
        ([4], r"num_tokens must be in \[1, 3\]"),
        ([1, 1], "state must be one that runs and is not planned yet, got 'a', which is planned; leave"),
    ],
)
def test_a_policy_that_plans_the_impossible_is_told(sizes, message):
    served = scheduler(Planning(*sizes))
    served.add(Request("a", [1, 2, 3]))
    with pytest.raises(ValueError, match=message):
        served.schedule()


class Backwards(ContinuousBatching):
    """Plans the least urgent first, who may then have to give up its blocks to the others."""

    def plan(self, step):
        for state in reversed(list(step.running())):
            step.compute(state, state.num_pending)
        while state := step.admit():
            step.compute(state, state.num_pending)


def test_what_was_planned_for_a_preempted_request_is_not_computed():
    served = scheduler(Backwards(), num_blocks=6, block_size=2, max_running=2)
    prompts = {"a": [1, 2, 3, 4], "b": [5, 6, 7]}  # a needs a block when b has been planned
    states = [served.add(Request(name, prompt, max_tokens=8)) for name, prompt in prompts.items()]
    schedules = drain(served)
    assert any(schedule.preempted for schedule in schedules)
    for schedule in schedules:
        assert not {chunk.state for chunk in schedule.chunks} & set(schedule.preempted)
    assert [state.generated for state in states] == [answer(state.request) for state in states]


class OutOfDate(ContinuousBatching):
    """Does not look whether a request still runs."""

    def plan(self, step):
        for state in list(step.running()):
            step.compute(state, state.num_pending)
        while state := step.admit():
            step.compute(state, state.num_pending)


def test_a_policy_that_plans_a_preempted_request_is_told():
    served = scheduler(OutOfDate(), num_blocks=6, block_size=2, max_running=2)
    for name in "ab":
        served.add(Request(name, [ord(name), 2, 3], max_tokens=8))
    with pytest.raises(ValueError, match="got 'b', which is waiting; leave it out"):
        drain(served)


@pytest.mark.parametrize("policy", [None, "chunked", ChunkedPrefill])
def test_what_is_no_policy_is_refused(policy):
    unchecked = inspect.unwrap(Scheduler.__init__)  # as it is outside of tests, where types are not enforced
    with pytest.raises(ValueError, match=r"policy must be a Policy, got .*; use ChunkedPrefill\(\)"):
        unchecked(object.__new__(Scheduler), BlockPool(8), policy)


def test_slots_that_no_block_could_fill_are_not_made():
    served = Scheduler(BlockPool(3, 4), ContinuousBatching(), max_running=2**62)
    states = [served.add(Request(name, [1, 2], max_tokens=1)) for name in "abcd"]
    served.schedule()
    assert served.max_running == 3 and [state.status for state in states] == ["running"] * 3 + ["waiting"]
