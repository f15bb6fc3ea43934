"""Steps taken apart: known fates, known numbers, known phases."""

from dataclasses import replace

import pytest
import torch

from llmcourse.figures.speculation_trace import speculation_trace
from llmcourse.speculative.measured import tally, tokens_per_step
from tests.figures.hand_made_steps import END, decode, label, some_steps, step

CERTAIN = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def trace_of(steps, **settings):
    return speculation_trace("P:", steps, decode, label, **settings)


def test_each_draft_has_its_fate_and_chance():
    first, second, third = trace_of(some_steps()).steps
    assert first.drafts == () and first.own.label == "<b>"
    assert [draft.fate for draft in second.drafts] == ["accepted", "accepted", "rejected", "dropped"]
    assert [draft.chance for draft in second.drafts] == pytest.approx([1, 0.5, 0.2, 1])
    assert second.fallen.word.label == "<b>" and second.own.label == "<c>"
    assert [word.text for word in second.gained] == ["a", "a", "c"]
    assert third.fallen is None and [word.text for word in third.gained] == ["d", " ", "a"]


def test_the_text_grows_by_what_each_step_gained():
    trace = trace_of(some_steps())
    assert [trace.text(number) for number in range(4)] == ["P:", "P:b", "P:baac", "P:baacd a"]
    assert trace.text() == trace.text(3)


def test_a_correction_is_drawn_from_what_the_drafter_left_out():
    second = trace_of(some_steps()).steps[1]
    after = {one.label: one.p_after for one in second.candidates}
    assert after == pytest.approx({"<a>": 0, "<b>": 0, "<c>": 0.75, "<d>": 0.25}, abs=1e-6)
    b = next(one for one in second.candidates if one.label == "<b>")
    assert (b.p, b.q) == pytest.approx((0.1, 0.5))
    assert [one.label for one in second.candidates] == ["<b>", "<c>", "<a>", "<d>"]  # by max(p, q)


def test_a_bonus_is_drawn_from_p():
    third = trace_of(some_steps()).steps[2]
    assert [(one.label, one.p_after) for one in third.candidates] == [
        ("<a>", pytest.approx(0.5)),
        ("<b>", pytest.approx(0.3)),
        ("<c>", pytest.approx(0.2)),
    ]


def test_the_fallen_and_its_correction_are_listed_however_improbable():
    p, q = [0.5, 0.3, 0.1, 0.08, 0.02, 0.0, 0.0], [0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.1]
    second = trace_of([step(1, [6], 0, 4, p, q)], rows=3).steps[0]
    assert [one.token for one in second.candidates] == [0, 6, 4]
    others = second.others
    assert (others.token, others.label) == (None, "4 others")
    assert (others.p, others.q, others.p_after) == pytest.approx((0.48, 0.4, 0.8), abs=1e-6)


def test_phases_go_through_drafts_verdict_and_the_targets_own_token():
    phases = trace_of(some_steps()).phases
    kinds = [(phase.kind, phase.step, phase.drafted) for phase in phases]
    drafts = [("draft", 1, count) for count in (1, 2, 3, 4)]
    last = [("draft", 2, 1), ("draft", 2, 2), ("verdict", 2, 2), ("target", 2, 2)]
    assert kinds == [("target", 0, 0), *drafts, ("verdict", 1, 4), ("target", 1, 4), *last]


def test_counts_are_those_of_the_steps_so_far():
    steps = some_steps()
    phases = trace_of(steps).phases
    counts = [
        (c.tokens, c.steps, c.accepted, c.judged, c.tokens_per_step) for c in (p.counts for p in phases)
    ]
    assert counts[0] == counts[4] == (1, 0, 0, 0, None)
    assert counts[5] == (3, 0, 2, 3, None)  # the verdict: two stand, the correction is yet to come
    assert counts[6] == (4, 1, 2, 3, 3.0)
    assert counts[-2:] == [(6, 1, 4, 5, 3.0), (7, 2, 4, 5, 3.0)]
    assert phases[0].counts.acceptance is None
    assert phases[-1].counts.acceptance == tally(steps).rate == 0.8
    assert phases[-1].counts.tokens_per_step == tokens_per_step(steps)


def test_a_text_that_ends_among_its_drafts_gets_no_token_of_the_targets():
    trace = trace_of([step(1, [0, END, 1, 2], 3, 2, CERTAIN, CERTAIN, tokens=[0, END])])
    only = trace.steps[0]
    assert [draft.fate for draft in only.drafts] == ["accepted", "accepted", "dropped", "dropped"]
    assert only.own is None and only.fallen is None
    assert only.drafts[1].word.special and trace.text() == "P:a"
    assert [phase.kind for phase in trace.phases][-2:] == ["draft", "verdict"]
    assert trace.phases[-1].counts.tokens == 2


def test_a_character_comes_with_the_token_that_completes_it():
    halves = {1: b"\xe9", 2: b"\x9c\x9c", 3: b"a"}  # 霜, cut in two
    text = lambda tokens: b"".join(halves[t] for t in tokens).decode(errors="replace")  # noqa: E731
    steps = [step(1, [1, 2], 2, 3, CERTAIN), step(2, [1], 0, 3, CERTAIN, CERTAIN)]
    trace = speculation_trace("", steps, text, str)
    assert [word.text for word in trace.steps[0].gained] == ["", "霜", "a"]
    assert trace.steps[1].drafts[0].word.text == "" and not trace.steps[1].drafts[0].word.special


def test_one_row_of_a_batch_is_traced_while_it_takes_part():
    pair = [
        replace(
            one,
            **{
                name: [[] if isinstance(getattr(one, name)[0], list) else 0, *getattr(one, name)]
                for name in ("drafts", "p_drafts", "q_drafts", "num_accepted", "next_tokens", "tokens")
            },
            texts=["", ""],
            active=[False, True],
            p=torch.cat((torch.zeros_like(one.p), one.p)),
            q=torch.cat((torch.zeros_like(one.q), one.q)),
        )
        for one in some_steps()
    ]
    assert trace_of(pair, row=1) == trace_of(some_steps())
    with pytest.raises(ValueError, match="steps must hold one in which row 0 took part, got none"):
        trace_of(pair)
    with pytest.raises(ValueError, match=r"row must be in \[0, 1\], got 2; rows count from 0"):
        trace_of(pair, row=2)


def test_what_is_not_there_is_refused():
    trace = trace_of(some_steps())
    with pytest.raises(ValueError, match=r"at must be in \[0, 10\], got 11; 10 is the last phase"):
        trace.check(11)
    with pytest.raises(ValueError, match="rows must be at least 2, got 1"):
        trace_of(some_steps(), rows=1)
