"""Figures over steps, on steps made up so that they can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmcourse.speculative import SpeculativeStep, Tally, speed_up
from llmcourse.speculative.measured import (
    acceptance_by_position,
    draft_cost,
    measured_speed_up,
    predicted_speed_up,
    tally,
    tokens_per_pass,
    tokens_per_step,
    verify_cost,
    written,
)


def step(index, *rows, draft_s=0.2, verify_s=1.0, time_s=1.5):
    """A step of rows as (drafts, accepted drafts); None has ended."""
    drafts = [[7] * (row[0] if row else 0) for row in rows]
    accepted = [row[1] if row else 0 for row in rows]
    rest = [[0.5] * len(own) for own in drafts]
    nothing = torch.zeros(len(rows), 3)
    return SpeculativeStep(
        index=index,
        drafts=drafts,
        p_drafts=rest,
        q_drafts=rest,
        num_accepted=accepted,
        next_tokens=[1] * len(rows),
        tokens=[[7] * count + [1] for count in accepted],
        texts=[""] * len(rows),
        active=[row is not None for row in rows],
        p=nothing,
        q=nothing,
        draft_s=draft_s,
        verify_s=verify_s,
        time_s=time_s,
    )


PROMPT = step(0, (0, 0), (0, 0), draft_s=50.0, verify_s=50.0, time_s=100.0)
STEPS = [PROMPT, step(1, (2, 2), (2, 0)), step(2, (2, 1), None), step(3, (2, 2), None, verify_s=1.6)]


def test_acceptance_counts_what_was_judged():
    assert tally(STEPS) == Tally(5, 2)
    assert acceptance_by_position(STEPS) == [3 / 4, 2 / 3]
    assert acceptance_by_position([PROMPT]) == []


def test_tokens_a_step_are_those_of_a_row_that_took_part():
    assert tokens_per_step(STEPS) == (3 + 1 + 2 + 3) / 4


def test_what_was_cut_off_behind_the_end_is_no_gain():
    cut = [replace(one, tokens=[one.tokens[0][:2], []]) if one.index == 3 else one for one in STEPS]
    assert tokens_per_pass(STEPS) == tokens_per_step(STEPS)
    assert tokens_per_pass(cut) == (3 + 1 + 2 + 2) / 4
    assert written(cut)[0] == [1, 7, 7, 1, 7, 1, 7, 7]
    with pytest.raises(ValueError, match="steps must be more than the first one of each text"):
        tokens_per_pass([PROMPT])


def test_costs_are_in_steps_of_decoding():
    assert draft_cost(STEPS, 0.5) == pytest.approx(0.6 / 6 / 0.5)
    assert verify_cost(STEPS, 0.5)(3) == pytest.approx(3.6 / 3 / 0.5)
    with pytest.raises(ValueError, match=r"num_tokens must be a width of the steps \(3\), got 2; measure it"):
        verify_cost(STEPS, 0.5)(2)


def test_speed_up_measured_and_predicted():
    assert measured_speed_up(STEPS, 0.8) == pytest.approx(9 / 4 * 0.8 / 1.5)
    c, alpha = draft_cost(STEPS, 0.8), 5 / 7
    assert predicted_speed_up(STEPS, 0.8) == pytest.approx(speed_up(alpha, 2, c))
    cost = verify_cost(STEPS, 0.8)
    assert predicted_speed_up(STEPS, 0.8, cost) == pytest.approx(speed_up(alpha, 2, c, cost))
    assert predicted_speed_up(STEPS, 0.8, alpha=0.5) == pytest.approx(speed_up(0.5, 2, c))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draft_cost(STEPS, 0.0), "token_s must be above 0, got 0.0; measure a step of decoding"),
        (lambda: draft_cost([PROMPT], 1.0), "steps must be such that something was drafted, got none"),
        (lambda: tokens_per_step([PROMPT]), "steps must be more than the first one of each text, got none"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
