"""Policies on ledgers by hand, and what both refuse."""

from __future__ import annotations

import pytest
import torch

from llmcourse.speculative.ledger import Ledger, Policy, apply_policy

QUALITY = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
COST = torch.tensor([[1.0, 2.0, 8.0]]).expand(4, 3)
SCORES = torch.tensor(
    [[0.9, 0.2, 0.0], [0.3, 0.8, 0.0], [0.2, 0.1, 0.0], [0.7, 0.9, 0.0]], dtype=torch.float64
)


def ledger(**changes: torch.Tensor) -> Ledger:
    return Ledger(**{"quality": QUALITY, "cost": COST, "scores": SCORES} | changes)


@pytest.mark.parametrize(
    ("models", "thresholds", "kept", "costs"),
    [
        ((0,), (), [0, 0, 0, 0], [1, 1, 1, 1]),
        ((2,), (), [2, 2, 2, 2], [8, 8, 8, 8]),
        ((0, 1, 2), (0.7, 0.8), [0, 1, 2, 0], [1, 3, 11, 1]),  # a score equal to the threshold is enough
        ((0, 1, 2), (0.71, 0.81), [0, 2, 2, 1], [1, 11, 11, 3]),
        ((0, 2), (0.3,), [0, 0, 2, 0], [1, 1, 9, 1]),  # the second is neither asked nor paid
        ((0, 1), (0,), [0, 0, 0, 0], [1, 1, 1, 1]),
        ((0, 1), (1,), [1, 1, 1, 1], [3, 3, 3, 3]),
    ],
)
def test_policies(models, thresholds, kept, costs):
    outcome = apply_policy(ledger(), Policy(models, thresholds))
    assert outcome.kept.tolist() == kept
    assert outcome.cost == pytest.approx(sum(costs) / 4)
    assert outcome.quality == pytest.approx(sum(QUALITY[i, k].item() for i, k in enumerate(kept)) / 4)
    assert outcome.shares(3) == [kept.count(m) / 4 for m in range(3)]


@pytest.mark.parametrize(
    ("models", "thresholds", "message"),
    [
        ((), (), r"models must be at least one, got \(\)"),
        ((1, 0), (0.5,), r"models must be increasing integers of at least 0, got \(1, 0\)"),
        ((0, 0), (0.5,), "models must be increasing"),
        ((-1,), (), "models must be increasing"),
        ((0, 1), (), r"thresholds must be 1 for 2 models, got \(\); give one for each model but the last"),
        ((0,), (0.5,), r"thresholds must be 0 for 1 models, got \(0\.5,\)"),
        ((0, 1), (1.5,), r"thresholds\[0\] must be in \[0, 1\], got 1\.5; compare with a judge's prob"),
        ((0, 1, 2), (0.5, -0.1), r"thresholds\[1\] must be in \[0, 1\], got -0\.1"),
        ((0, 1), (float("nan"),), r"thresholds\[0\] must be in \[0, 1\], got nan"),
    ],
)
def test_bad_policies_are_refused(models, thresholds, message):
    with pytest.raises(ValueError, match=message):
        Policy(models, thresholds)


def test_a_policy_of_another_ledger_is_refused():
    with pytest.raises(ValueError, match=r"models must be in \[0, 2\], got \(0, 3\); use a policy made for"):
        apply_policy(ledger(), Policy((0, 3), (0.5,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": COST.flip(1)}, "cost must be in order, the cheapest model first, got 8, 2, 1; sort"),
        ({"cost": -COST}, r"cost\[0, 0\] must be at least 0 and finite, got -1\.0"),
        ({"cost": COST / 0}, r"cost\[0, 0\] must be at least 0 and finite, got inf"),
        ({"scores": SCORES + 0.5}, r"scores\[0, 0\] must be in \[0, 1\], got 1\.4"),
        ({"scores": SCORES * torch.nan}, r"scores\[0, 0\] must be in \[0, 1\], got nan"),
        ({"quality": QUALITY * 2}, r"quality\[0, 0\] must be in \[0, 1\], got 2\.0"),
        (dict.fromkeys(("quality", "cost", "scores"), COST[:0]), r"quality must be of shape \(N, M\), none"),
    ],
)
def test_bad_ledgers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ledger(**changes)
