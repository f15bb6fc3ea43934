"""Fixed and adaptive draft lengths: what is asked for, and what is learnt from a step."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from llmcourse.speculative import (
    AdaptiveLength,
    DraftLength,
    FixedLength,
    LookupDrafter,
    Speculation,
    Tally,
    best_draft_length,
    generate,
)
from llmcourse.speculative.draft_length import as_policy, choose_gamma
from tests.serving.test_paged_runner import tiny


def after(policy: DraftLength, steps: list[tuple[int, int]]) -> Tally:
    tally = Tally()
    for num_drafts, num_accepted in steps:
        tally = policy.observe(tally, num_drafts, num_accepted)
    return tally


def test_a_tally_counts_what_was_judged():
    tally = Tally().after(4, 4).after(4, 1).after(0, 0)  # in the second step two were not judged
    assert tally == Tally(accepted=5, rejected=1)
    assert tally.rate == pytest.approx(5 / 6)
    assert Tally().rate is None
    assert Tally(4, 2).after(3, 1, keep=0.5) == Tally(3, 2)


def test_the_fixed_length_learns_nothing():
    policy = FixedLength(4)
    assert policy.gamma(Tally(), 100) == policy.gamma(Tally(0, 50), 100) == 4
    assert policy.observe(Tally(), 4, 1) == Tally(1, 1)


POLICIES = {"fixed": FixedLength(6), "adaptive": AdaptiveLength(0.01, longest=6, prior=0.9)}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(("room", "gamma"), [(1, 0), (2, 1), (6, 5), (7, 6), (100, 6)])
def test_the_room_left_is_kept_for_the_targets_own_token(policy, room, gamma):
    assert policy.gamma(Tally(), room) == gamma


def test_the_adaptive_length_is_the_best_for_the_acceptance_seen():
    policy = AdaptiveLength(0.1, longest=10, prior=0.7)
    assert policy.gamma(Tally(), 100) == best_draft_length(0.7, 0.1, 10)
    assert policy.gamma(Tally(19, 0), 100) == best_draft_length((0.7 + 19) / 20, 0.1, 10)
    assert policy.gamma(Tally(2, 7), 100) == best_draft_length((0.7 + 2) / 10, 0.1, 10)
    assert policy.gamma(Tally(1, 7), 100) < policy.gamma(Tally(), 100) < policy.gamma(Tally(30, 0), 100)


def test_it_follows_a_text_that_changes():
    policy = AdaptiveLength(0.1)
    code = after(policy, [(4, 4)] * 20)
    verse = policy.gamma(after(policy, [(4, 4)] * 20 + [(4, 0)] * 20), 100)
    assert verse < policy.gamma(code, 100)
    # With nothing forgotten, as many steps of the one as of the other would still weigh alike.
    assert after(policy, [(4, 4)] * 20 + [(4, 0)] * 20).rate < 0.4


def test_it_stops_where_drafts_do_not_pay_and_tries_again():
    policy = AdaptiveLength(0.3, prior=0.6)
    tally = after(policy, [(2, 0)] * 30)
    assert policy.gamma(tally, 100) == 0
    waited = 0
    while policy.gamma(tally, 100) == 0:
        tally, waited = policy.observe(tally, 0, 0), waited + 1
        assert waited < 50
    assert waited > 3


def test_an_expensive_pass_shortens_drafts():
    cheap = AdaptiveLength(0.05, prior=0.8)
    dear = AdaptiveLength(0.05, prior=0.8, verify_cost=lambda num_tokens: 0.8 + 0.2 * num_tokens)
    assert 0 < dear.gamma(Tally(), 100) < cheap.gamma(Tally(), 100)


def test_both_are_policies():
    assert isinstance(FixedLength(1), DraftLength) and isinstance(AdaptiveLength(0.1), DraftLength)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FixedLength(0), "length must be an integer of at least 1, got 0; decode without a drafter"),
        (lambda: FixedLength(-2), "length must be an integer of at least 1, got -2"),
        (
            lambda: FixedLength(2).gamma(Tally(), 0),
            "room must be an integer of at least 1, got 0; stop a text",
        ),
        (lambda: AdaptiveLength(-1), "c must be at least 0 and finite, got -1"),
        (lambda: AdaptiveLength(0.1, longest=0), "longest must be an integer of at least 1, got 0"),
        (lambda: AdaptiveLength(0.1, prior=1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (
            lambda: AdaptiveLength(0.5, prior=0.4),
            "prior must be large enough for drafts of cost 0.5 to pay, got 0.4",
        ),
        (
            lambda: AdaptiveLength(0.1, prior_weight=0.0),
            "prior_weight must be above 0 and finite, got 0.0; use 1.0",
        ),
        (
            lambda: AdaptiveLength(0.1, prior_weight=math.inf),
            "prior_weight must be above 0 and finite, got inf",
        ),
        (
            lambda: AdaptiveLength(0.1, prior_weight=math.nan),
            "prior_weight must be above 0 and finite, got nan",
        ),
        (lambda: AdaptiveLength(0.1, keep=1.0), r"keep must be in \(0, 1\), got 1.0; use 0.9"),
        (lambda: Tally().after(2, 3), r"num_accepted must be in \[0, 2\], got 3; do not count the target's"),
        (lambda: Tally().after(-1, 0), "num_drafts must be an integer of at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- policies that anybody may have written


class Asks:
    """Asks for what it is told to, whatever the room."""

    def __init__(self, gamma, longest=8):
        self.asked, self.longest = gamma, longest

    def gamma(self, tally, room):
        return self.asked

    def observe(self, tally, num_drafts, num_accepted):
        return tally


@pytest.mark.parametrize("gamma", ["2", 2.0, True, None, math.nan, -1, 6, 9, torch.tensor(2)])
def test_a_policy_that_asks_for_what_cannot_be_is_refused(gamma):
    message = rf"gamma must be an integer in \[0, 5\], got {re.escape(repr(gamma))}; clamp it to the room"
    with pytest.raises(ValueError, match=message):
        choose_gamma(Asks(gamma), Tally(), 6)
    with pytest.raises(ValueError, match=r"gamma must be an integer in \[0, \d\], got"):
        speculated(Asks(gamma))
    assert speculated(Asks(np.int64(0))) == speculated(FixedLength(2))


def speculated(policy: DraftLength) -> list[int]:
    model = tiny()
    return generate(model, [[1, 2]], drafter=LookupDrafter(100), draft_length=policy, max_new_tokens=6)[
        0
    ].tokens


@pytest.mark.parametrize("longest", ["8", 8.0, None, True, -1])
def test_a_policy_whose_longest_is_no_number_of_drafts_is_refused(longest):
    message = f"longest of draft_length must be an integer of at least 0, got {longest!r}; say how many"
    for use in (as_policy, speculated, lambda policy: Speculation(LookupDrafter(9), policy)):
        with pytest.raises(ValueError, match=message):
            use(Asks(1, longest))


def test_a_class_is_no_policy():
    with pytest.raises(ValueError, match=r"draft_length must be γ or a policy, got the class .*; call it"):
        as_policy(AdaptiveLength)
    assert as_policy(3) == FixedLength(3) and as_policy(policy := Asks(1)) is policy
