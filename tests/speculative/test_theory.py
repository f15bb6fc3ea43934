"""What speculation gains, against sums written out, simulated steps and the paper's own figures."""

from __future__ import annotations

import math
import re

import pytest
import torch

from llmcourse.speculative.theory import (
    acceptance,
    best_draft_length,
    expected_tokens,
    expected_tokens_by_position,
    speed_up,
)
from llmcourse.speculative.verify import verify_drafts


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("gamma", [0, 1, 4, 10])
def test_expected_tokens_is_the_geometric_sum(alpha, gamma):
    assert expected_tokens(alpha, gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


def test_a_perfect_drafter_brings_all_and_a_useless_one_nothing():
    assert expected_tokens(1, 7) == 8
    assert expected_tokens(0, 7) == 1
    assert speed_up(0, 7, 0.1) == pytest.approx(1 / 1.7)


def test_expected_tokens_is_what_verification_yields():
    """A mean of 100,000 steps; its standard error is below 0.007, so 5 of them are 0.035."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(2, 6, generator=generator) * 2).softmax(-1)
    gamma, steps = 5, 100_000
    drafts = q.multinomial(gamma * steps, replacement=True, generator=generator).reshape(steps, gamma)
    uniform = torch.rand(steps, gamma + 1, generator=generator)
    verdict = verify_drafts(p.expand(steps, gamma + 1, -1), q.expand(steps, gamma, -1), drafts, uniform)
    measured = verdict.num_accepted.double().mean().item() + 1
    alpha = acceptance(p, q).item()
    assert measured == pytest.approx(expected_tokens(alpha, gamma), abs=0.035)
    assert measured != pytest.approx(expected_tokens(alpha - 0.02, gamma), abs=0.035)  # negative control


def test_each_draft_may_have_a_chance_of_its_own():
    assert expected_tokens_by_position([0.9, 0.5, 0.2]) == pytest.approx(1 + 0.9 + 0.45 + 0.09)
    assert expected_tokens_by_position([]) == 1


def test_acceptance():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    assert acceptance(p, q).tolist() == pytest.approx([0.5, 0.0])
    assert acceptance(p, p).tolist() == [1.0, 1.0]
    torch.testing.assert_close(acceptance(p, q), 1 - (p - q).abs().sum(-1) / 2)


P = torch.tensor([[0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (P - 1, P, "p's probabilities at [0] must be at least 0, got -0.5; pass probabilities, not logits"),
        (P, P + 1, "q's sum at [0] must be 1 within 0.001, got 3; take the softmax"),
        (P, P * torch.tensor([[1.0], [math.nan]]), "q's probabilities at [1] must be at least 0, got nan"),
        (P[0] * 2, P[0], "p's sum must be 1 within 0.001, got 2"),
        (P[:, :0], P[:, :0], "p's sum at [0] must be 1 within 0.001, got 0"),
    ],
)
def test_acceptance_of_what_is_no_distribution_is_refused(p, q, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        acceptance(p, q)
    assert acceptance(P[:0], P[:0]).tolist() == []


def test_speed_up_by_hand():
    # 1 + 0.5 + 0.25 tokens for two drafts of a tenth and one pass
    assert speed_up(0.5, 2, 0.1) == pytest.approx(1.75 / 1.2)
    # a pass over three tokens that takes 1.3 times as long
    assert speed_up(0.5, 2, 0.1, lambda n: 1 + 0.1 * n) == pytest.approx(1.75 / 1.5)
    assert speed_up(0.5, 0, 0.1) == 1


def test_a_pass_bound_by_arithmetic_loses():
    assert speed_up(0.8, 4, 0.05, lambda num_tokens: num_tokens) < 1
    assert best_draft_length(0.8, 0.05, 16, lambda num_tokens: num_tokens) == 0


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("c", [0.0, 0.02, 0.1, 0.4, 0.8])
def test_the_best_length_is_none_worse_than_any_and_pays_as_the_corollary_says(alpha, c):
    best = best_draft_length(alpha, c, 40)
    assert speed_up(alpha, best, c) == max(speed_up(alpha, gamma, c) for gamma in range(41))
    assert (best > 0) == (alpha > c)
    if alpha > c:
        assert speed_up(alpha, best, c) >= (1 + alpha) / (1 + c) - 1e-12


def test_free_drafts_are_made_as_long_as_may_be():
    assert best_draft_length(0.5, 0, 12) == 12
    assert best_draft_length(0.0, 0, 12) == 0  # the smaller of equals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: expected_tokens(1.2, 3),
            r"alpha must be in \[0, 1\], got 1.2; divide the drafts that stood",
        ),
        (lambda: expected_tokens(math.nan, 3), r"alpha must be in \[0, 1\], got nan"),
        (
            lambda: expected_tokens(0.5, -1),
            "gamma must be an integer of at least 0, got -1; use 0 for decoding",
        ),
        (lambda: expected_tokens_by_position([0.5, -0.1]), r"alphas\[1\] must be in \[0, 1\], got -0.1"),
        (lambda: speed_up(0.5, 3, -0.1), "c must be at least 0 and finite, got -0.1; divide a draft's time"),
        (lambda: speed_up(0.5, 3, math.inf), "c must be at least 0 and finite, got inf"),
        (
            lambda: speed_up(0.5, 3, 0.1, lambda n: 0.0),
            r"verify_cost\(4\) must be positive and finite, got 0.0",
        ),
        (lambda: best_draft_length(0.5, 0.1, -1), "longest must be an integer of at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
