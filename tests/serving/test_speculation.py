"""What is asked of a drafter, how drafts are planned, and what a step with drafts brings."""

import pytest
import torch

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import simulate
from llmcourse.serving.engine import Engine
from llmcourse.serving.metrics import measure
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import Request
from llmcourse.serving.runner import FunctionRunner
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.speculation import Speculation, check_emitted, propose, standing
from tests.serving.fakes import END, Guess, PagedRunner, answer, next_token, scheduler


class Script(Guess):
    """Proposes the same tokens whenever it is asked, as many as it may."""

    def __init__(self, *tokens, q=None):
        super().__init__(len(tokens))
        self.tokens, self.q, self.asked = tokens, q, []

    def draft(self, text, most):
        self.asked.append((len(text), most))
        return self.tokens[:most], self.q


def planned(served: Scheduler) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Of each request in the next step: where it starts and stops, and its drafts."""
    schedule = served.schedule()
    served.abandon(schedule)
    return {
        chunk.state.id: (chunk.start, chunk.stop, drafts.tokens if drafts else None)
        for chunk in schedule.chunks
        for drafts in [schedule.drafts.get(chunk.state.id)]
    }


# ---- what is asked of a drafter


def test_certain_drafts_stand_while_they_are_what_is_drawn():
    assert standing([5, 6, 7], [5, 6]) == [5, 6, 7]
    assert standing([5, 6, 7], [5, 0]) == [5, 6]
    assert standing([5, 6, 7], [0, 6]) == [5]
    assert standing([5], []) == [5]


@pytest.mark.parametrize(
    ("tokens", "q", "message"),
    [
        ([1, 2, 3], None, "drafts must be at most 2 tokens, got 3; propose no more than is asked for"),
        ([10], None, r"drafts must be token ids in \[0, 9\], got 10; use a drafter with the target's own"),
        ([-1], None, r"drafts must be token ids in \[0, 9\], got -1"),
        ([1.5], None, r"drafts must be token ids in \[0, 9\], got 1.5"),
        (
            [1, 2],
            torch.ones(1, 10),
            r"q must be of shape \(2, 10\), got \(1, 10\); give a row for each",
        ),
        ([1], torch.ones(1, 11), r"q must be of shape \(1, 10\), got \(1, 11\)"),
    ],
)
def test_what_cannot_be_verified_is_refused(tokens, q, message):
    class Drafter(Guess):
        def draft(self, text, most):
            return tokens, q

    with pytest.raises(ValueError, match=message):
        propose(Drafter(1), [1], 2, 10)


@pytest.mark.parametrize("emitted", [[], [2, 5], [1, 2, 3, 4], [1, 10], [1, -1]])
def test_a_verdict_that_cannot_be_is_refused(emitted):
    for good in ([7], [1, 7], [1, 2, 7]):
        check_emitted(good, [1, 2], 10)
    with pytest.raises(ValueError, match=r"what verify returns must be the first few drafts and one token"):
        check_emitted(emitted, [1, 2], 10)


def test_a_request_says_who_drafts_for_it():
    assert isinstance(Guess(1), Speculation) and Request("a", [1]).speculation is None
    for wrong in (4, "lookup", object()):
        with pytest.raises((ValueError, TypeError), match="speculation"):
            Request("a", [1], speculation=wrong)


# ---- what a step has room for


def test_drafts_follow_the_text_once_it_is_known():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1, 2, 3], max_tokens=9, speculation=Script(7, 8)))
    served.add(Request("b", [4, 5], max_tokens=9))
    assert planned(served) == {"a": (0, 5, (7, 8)), "b": (0, 2, None)}
    schedule = served.schedule()
    assert (schedule.num_tokens, schedule.num_drafts) == (7, 2)
    served.postprocess(schedule, {"a": [7, 1], "b": 3})
    assert planned(served) == {"a": (4, 7, (7, 8)), "b": (2, 3, None)}


@pytest.mark.parametrize(("max_tokens", "room"), [(1, 0), (2, 1), (4, 3), (9, 5)])
def test_a_draft_is_no_longer_than_what_an_answer_may_still_gain(max_tokens, room):
    """Less one, the token that the model adds."""
    served, drafter = scheduler(ContinuousBatching()), Script(1, 2, 3, 4, 5)
    served.add(Request("a", [1, 2, 3], max_tokens=max_tokens, speculation=drafter))
    assert planned(served) == {"a": (0, 3 + room, drafter.tokens[:room] or None)}
    assert drafter.asked == ([(3, max_tokens - 1)] if room else [])


def test_drafts_get_what_prompts_leave_of_the_budget():
    served = scheduler(ChunkedPrefill(token_budget=8))
    served.add(Request("a", [1, 2], max_tokens=9, speculation=Script(1, 2, 3)))
    served.add(Request("b", [3], max_tokens=9, speculation=Script(4, 5, 6)))
    assert planned(served) == {"a": (0, 5, (1, 2, 3)), "b": (0, 3, (4, 5))}
    served.add(Request("c", [1] * 4, max_tokens=9))
    assert planned(served) == {"a": (0, 3, (1,)), "b": (0, 1, None), "c": (0, 4, None)}
    served.add(Request("d", [1] * 40, max_tokens=9))
    assert planned(served)["d"] == (0, 1, None)


def test_traditional_batching_has_no_budget():
    served = scheduler(TraditionalBatching())
    served.add(Request("a", [1], max_tokens=99, speculation=Script(*[5] * 40)))
    assert planned(served) == {"a": (0, 41, (5,) * 40)}


def test_drafts_take_free_blocks_and_nobody_elses():
    served = scheduler(ContinuousBatching(), num_blocks=5, block_size=2)
    served.add(Request("a", [1, 2, 3], max_tokens=7))
    b = served.add(Request("b", [4, 5, 6], max_tokens=7, speculation=Script(*[5] * 6)))
    assert planned(served) == {"a": (0, 3, None), "b": (0, 6, (5, 5, 5))}
    assert len(b.blocks) == 3 and served.pool.num_free == 0  # kept for what comes in their place
    runner = PagedRunner(served.pool)
    for _ in range(3):
        schedule = served.schedule()
        served.postprocess(schedule, runner.run(schedule))
    assert b.num_preemptions == 1 and not schedule.drafts


def test_in_a_step_that_preempts_nobody_drafts():
    served = scheduler(ContinuousBatching(), num_blocks=7, block_size=2)
    served.add(Request("a", [1, 2, 3, 4], max_tokens=7, speculation=Script(5)))
    served.add(Request("b", [1, 1, 3, 4], max_tokens=7))
    served.add(Request("c", [1, 3, 3, 4, 5, 6], max_tokens=7))
    schedule = served.schedule()
    served.postprocess(schedule, {"a": 9, "b": 9, "c": 9})
    schedule = served.schedule()
    assert len(schedule.preempted) == 1 and served.pool.num_free == 1
    assert not schedule.drafts
    served.postprocess(schedule, {"a": 9, "b": 9})
    assert planned(served)["a"] == (5, 7, (5,))


def test_a_lost_step_is_drafted_for_again():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1, 2], max_tokens=9, speculation=Script(7)))
    for launched in (False, True):
        schedule = served.schedule()
        if launched:
            served.advance(schedule)
            assert state.status == "verifying" and state.num_computed == 2 and state.generated == []
        served.abandon(schedule)
        assert (state.status, state.tokens, state.num_computed) == ("running", [1, 2], 0)
    assert planned(served) == {"a": (0, 3, (7,))}


# ---- what a step brings


def test_a_step_brings_an_output_for_each_token_gained():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1, 2], max_tokens=9, speculation=Script(7, 8, 9)))
    schedule = served.schedule()
    outputs = served.postprocess(schedule, {"a": [7, 8, 0]})
    assert [(output.token, output.finish_reason) for output in outputs] == [(7, None), (8, None), (0, None)]
    assert state.tokens == [1, 2, 7, 8, 0] and state.num_computed == 4
    assert (state.num_drafted, state.num_accepted) == (3, 2)


def test_a_stop_token_among_the_drafts_ends_the_answer_there():
    served = scheduler(ContinuousBatching(), block_size=2)
    state = served.add(Request("a", [1, 2], max_tokens=9, stop_token_ids=[8], speculation=Script(7, 8, 9)))
    outputs = served.postprocess(served.schedule(), {"a": [7, 8, 9, 0]})
    assert [(output.token, output.finish_reason) for output in outputs] == [(7, None), (8, "stop")]
    assert state.generated == [7, 8] and (state.num_drafted, state.num_accepted) == (3, 2)
    assert served.pool.match([1, 2, 7, 8]) and not served.pool.match([1, 2, 7, 8, 9, 0])[2:]
    assert served.pool.num_free == served.pool.num_blocks and not served.has_work


def test_an_answer_is_as_long_as_it_may_be():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1, 2], max_tokens=3, speculation=Script(7, 8, 9)))
    outputs = served.postprocess(served.schedule(), {"a": [7, 8, 9]})
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert state.generated == [7, 8, 9]


def test_drafts_that_fell_are_never_found_as_a_prefix():
    served = scheduler(ContinuousBatching(), block_size=2)
    served.add(Request("a", [1, 2, 3], max_tokens=9, speculation=Script(7, 8, 9)))
    served.postprocess(served.schedule(), {"a": [7, 4]})
    assert len(served.pool.match([1, 2, 3, 7])) == 2
    served.abort("a")
    assert len(served.pool.match([1, 2, 3, 7, 8, 9])) == 2
    assert not served.pool.match([1, 2, 3, 4])[1:]


def test_cancelled_while_its_drafts_are_verified_a_request_keeps_what_it_had():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1, 2], max_tokens=9, speculation=Script(7)))
    schedule = served.schedule()
    served.advance(schedule)
    served.abort("a")
    assert served.resolve(schedule, {"a": [7, 3]}) == [] and state.tokens == [1, 2]
    assert served.pool.num_free == served.pool.num_blocks


def test_preempted_while_its_drafts_are_verified_a_request_keeps_what_it_gains():
    served = scheduler(ContinuousBatching(), num_blocks=4, block_size=2)
    served.add(Request("a", [1, 2, 3, 4], max_tokens=3))
    state = served.add(Request("b", [1, 3, 5], max_tokens=5, speculation=Script(7)))
    first = served.schedule()
    served.advance(first)
    second = served.schedule()
    assert second.preempted == (state,) and state.status == "waiting"
    served.advance(second)
    outputs = served.resolve(first, {"a": 5, "b": [7, 8]})
    assert [output.token for output in outputs] == [5, 7, 8]
    assert state.tokens == [1, 3, 5, 7, 8] and state.num_computed == 0 and not state.blocks


def test_a_missing_verdict_is_noticed():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1, 2], max_tokens=9, speculation=Script(7)))
    with pytest.raises(ValueError, match=r"got none for \['a'\]"):
        served.postprocess(served.schedule(), {})


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_drafter_that_fails_ends_its_request_alone(overlap):
    served = scheduler(ContinuousBatching())
    serving = Engine(served, PagedRunner(served.pool), overlap)
    bad = [
        serving.add(Request("outside", [1], speculation=Script(10))),
        serving.add(Request("raises", [2], speculation=Script(*"a"))),
    ]
    good = [serving.add(Request("no", [3])), serving.add(Request("yes", [4], speculation=Guess(3)))]
    outputs = list(serving.stream())
    for state in bad:
        assert state.finish_reason == "error" and isinstance(state.error, ValueError) and not state.generated
        assert [(o.token, o.finish_reason) for o in outputs if o.state is state] == [(None, "error")]
    assert [state.generated for state in good] == [answer(state.request) for state in good]


def test_a_drafter_that_cannot_begin_is_refused_before_its_request_is_in_line():
    class Broken(Guess):
        def begin(self, *request):
            raise ValueError("no memory for a cache")

    served = scheduler(ContinuousBatching())
    with pytest.raises(ValueError, match="no memory"):
        served.add(Request("a", [1], speculation=Broken(1)))
    assert not served.has_work
    served.add(Request("a", [1]))


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_finished_request_keeps_no_drafter(overlap):
    served = scheduler(ContinuousBatching(), max_running=3)
    serving = Engine(served, PagedRunner(served.pool), overlap)
    speculations = {"answered": Guess(3), "fails": Script(10), "cancelled": Guess(3), "in line": Guess(3)}
    states = {
        name: serving.add(Request(name, [1], max_tokens=9, speculation=drafter))
        for name, drafter in speculations.items()
    }
    serving.step()
    for name in ("cancelled", "in line"):
        assert states[name].speculator is speculations[name]
        serving.abort(name)
    list(serving.stream())
    assert [state.finish_reason for state in states.values()] == ["length", "error", "abort", "abort"]
    assert all(state.speculator is None for state in states.values())


# ---- in an overlapping engine


def took_part(served: Scheduler, num_steps: int) -> list[str]:
    """Whose tokens each step computes, where the next is launched before it is resolved; all sample a 5."""
    before, ids = None, []
    for _ in range(num_steps):
        schedule = served.schedule()
        ids.append("".join(sorted(chunk.state.id for chunk in schedule.chunks)))
        served.advance(schedule)
        if before:
            served.resolve(before, {name: [5] if name in before.drafts else 5 for name in "ab"})
        before = schedule
    return ids


def test_who_speculates_sits_out_and_the_others_do_not_wait():
    served = scheduler(ContinuousBatching())
    served.add(Request("a", [1], max_tokens=40, speculation=Guess(2)))
    served.add(Request("b", [2], max_tokens=40))
    assert took_part(served, 6) == ["ab", "b", "ab", "b", "ab", "b"]


@pytest.mark.parametrize(("drafter", "budget"), [(Script(), 3), (Script(7), 2)], ids=["silent", "no room"])
def test_without_drafts_a_request_sits_out_less_and_less(drafter, budget):
    served = scheduler(ChunkedPrefill(token_budget=budget), num_blocks=99, max_running=2)
    served.add(Request("a", [1], max_tokens=90, speculation=drafter))
    served.add(Request("b", [2], max_tokens=90))
    rounds = took_part(served, 3 + 5 + 9 + 17 + 17)
    waits = [0, 2, 4, 8, 16, 16]
    assert rounds == ["ab" if wait else "b" for count in waits[1:] for wait in [*[1] * count, 0]]
    lengths = [1 + sum(waits[: i + 1]) for i in range(5)]
    assert [length for length, _ in drafter.asked] == (lengths if budget == 3 else [])


def test_whoever_has_drafts_again_is_asked_at_once():
    class Late(Script):
        def draft(self, text, most):
            return super().draft(text, most) if len(text) == 7 else ((), None)

    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1], max_tokens=40, speculation=Late(5)))
    served.add(Request("b", [2], max_tokens=40))
    rounds = took_part(served, 14)
    assert rounds == ["ab" if wait else "b" for wait in [1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1]]
    assert state.num_drafted == 1


def test_before_its_last_token_nobody_waits_to_be_asked():
    served = scheduler(ContinuousBatching())
    state = served.add(Request("a", [1], max_tokens=3, speculation=Script()))
    assert took_part(served, 4) == ["a", "a", "a", ""] and state.generated == [5, 5, 5]


def test_where_all_speculate_steps_are_taken_in_turn():
    served = scheduler(ContinuousBatching())
    serving = Engine(served, PagedRunner(served.pool), overlap=True)
    states = [serving.add(Request(name, [ord(name)], max_tokens=9, speculation=Guess(3))) for name in "ab"]
    brought = []
    while serving.has_work:
        brought.append(len(serving.step()))
    assert not any(brought[::2]) and all(brought[1::2])
    assert [state.generated for state in states] == [answer(state.request) for state in states]


# ---- on the virtual clock


def test_on_the_clock_drafts_save_steps_and_are_counted():
    def run(speculation):
        pool = BlockPool(64, 4)
        served = Scheduler(pool, ChunkedPrefill(token_budget=16), max_running=4)
        requests = [
            Request(str(i), [i, 1], max_tokens=20, stop_token_ids=[END], speculation=speculation)
            for i in range(6)
        ]
        return simulate(requests, served, runner=FunctionRunner(lambda state: next_token(state.tokens)))

    plain, drafted = run(None), run(Guess(4))
    assert [len(t.token_s) for t in drafted.timelines] == [len(t.token_s) for t in plain.timelines]
    assert len(drafted.steps) < 0.7 * len(plain.steps)
    figures = measure(drafted)
    assert 0.4 < figures.num_accepted / figures.num_drafted < 0.9
    assert measure(plain).num_drafted == 0
    cells = [cell for step in drafted.steps for cell in step.cells]
    assert {cell.decodes for cell in cells if cell.num_tokens == 5} == {True}  # 6 and 7 are prompts of 2
