"""Judges: the optimum that is asked for, calibration, and one that has nothing to go by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from llmcourse.decoding.metrics import calibration, expected_calibration_error
from llmcourse.speculative.frontier import best_within, pareto_frontier
from llmcourse.speculative.judge import fit_judge
from llmcourse.speculative.ledger import Ledger, apply_policy


def examples(count: int, seed: int, weight: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Three features, the second of which decides (in its own unit), and whether each answer is right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([1, 100, 0.01])
    chance = torch.sigmoid(weight * x[:, 1] / 100 - 0.5)
    return x, torch.rand(count, generator=generator) < chance


@pytest.mark.parametrize("penalty", [0.1, 1, 30.0])
def test_the_weights_are_the_optimum(penalty):
    """Against a general optimiser, on the loss written out with the targets of Platt 1999."""
    x, right = examples(80, seed=0)
    judge = fit_judge(x, right, penalty=penalty)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    n = int(right.sum())
    target = np.where(right, (n + 1) / (n + 2), 1 / (80 - n + 2))

    def loss(w):
        logits = z @ w[:3] + w[3]
        fit = np.logaddexp(0, -logits) * target + np.logaddexp(0, logits) * (1 - target)
        return fit.sum() + penalty / 2 * (w[:3] ** 2).sum()

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    assert [*judge.weight.tolist(), judge.bias] == pytest.approx(best.tolist(), abs=1e-4)


def test_it_promises_what_comes_true():
    """ECE of 4,000 new answers: seed fixed; a judge of twice the weights is off by far more."""
    judge = fit_judge(*examples(3000, seed=1))
    x, right = examples(4000, seed=2)
    scores = judge.scores(x)
    assert expected_calibration_error(calibration(scores, right)) < 0.03
    overconfident = torch.sigmoid(3 * torch.logit(scores))
    assert expected_calibration_error(calibration(overconfident, right)) > 0.08


def test_the_baseline_sees_one_column_and_keeps_its_order():
    x, right = examples(500, seed=3)
    judge = fit_judge(x, right, columns=(1,))
    changed = x.clone()
    changed[:, [0, 2]] = 7.0
    assert torch.equal(judge.scores(x), judge.scores(changed))
    assert torch.equal(judge.scores(x).argsort(), x[:, 1].argsort())


def test_it_is_the_same_every_time_and_in_any_unit():
    x, right = examples(200, seed=4)
    judge, again = fit_judge(x, right), fit_judge(x, right)
    assert torch.equal(judge.weight, again.weight) and judge.bias == again.bias
    moved = fit_judge(x * 50 - 3, right)
    torch.testing.assert_close(moved.scores(x * 50 - 3), judge.scores(x))


@pytest.mark.parametrize("value", [True, False])
def test_examples_of_one_kind_leave_some_doubt(value):
    x, _ = examples(20, seed=5)
    scores = fit_judge(x, torch.full((20,), value)).scores(x)
    expected = 21 / 22 if value else 1 / 22
    assert scores.tolist() == pytest.approx([expected] * 20, abs=1e-3)


def test_constant_features_and_separable_examples_do_no_harm():
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    judge = fit_judge(x, torch.tensor([False, False, True, True]))
    scores = judge.scores(x)
    assert judge.weight[1] == 0 and scores.isfinite().all() and (scores.diff() > 0).all()


def gain_over_mixing(x: torch.Tensor, right: torch.Tensor) -> float:
    """Quality that a judge of the cheaper of two models adds to mixing them, at half way between their costs.

    Three parts: judge, thresholds, test. The dearer model is always right.
    """
    train, held_out, test = torch.arange(len(x)).chunk(3)
    judge = fit_judge(x[train], right[train])
    quality = torch.stack((right.double(), torch.ones(len(x))), 1)
    cost = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
    scores = torch.stack((judge.scores(x), torch.zeros(len(x))), 1)
    ledger = Ledger(quality, cost, scores)
    chosen = best_within(pareto_frontier(ledger.rows(held_out)), 0.5).policy
    outcome = apply_policy(ledger.rows(test), chosen)
    cheap = right[test].double().mean().item()
    return outcome.quality - (cheap + (1 - cheap) * outcome.cost)


def test_random_features_gain_nothing():
    """The gain's standard error is about 0.35/√n: at n = 600 test questions 0.014; four of them as bounds."""
    gains = []
    for seed in range(5):
        _, right = examples(1800, seed)
        noise = torch.randn(1800, 5, generator=torch.Generator().manual_seed(100 + seed))
        gains.append(gain_over_mixing(noise, right))
    assert max(map(abs, gains)) < 0.057 and abs(sum(gains) / 5) < 0.057 / 5**0.5
    assert gain_over_mixing(*examples(1800, 0)) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": torch.zeros(0, 3)},
            r"features must be of shape \(N, F\), none of them 0, got \(0, 3\)",
        ),
        ({"features": torch.tensor([[1.0], [torch.nan]])}, r"features\[1, 0\] must be finite, got nan"),
        ({"penalty": 0}, "penalty must be above 0 and finite, got 0; use 1.0"),
        ({"columns": ()}, "number of columns must be an integer of at least 1, got 0"),
        ({"columns": (1,)}, r"columns must be in \[0, 0\], got 1"),
    ],
)
def test_bad_examples_are_refused(change, message):
    arguments = {"features": torch.zeros(2, 1), "right": torch.tensor([True, False])} | change
    arguments["right"] = arguments["right"][: len(arguments["features"])]
    with pytest.raises(ValueError, match=message):
        fit_judge(**arguments)


def test_a_judge_of_other_features_is_refused():
    judge = fit_judge(*examples(20, seed=6))
    with pytest.raises(ValueError, match="features must be 3 numbers for each answer, got 2; use the judge"):
        judge.scores(torch.zeros(4, 2))


def test_scores_are_no_answers_to_whether_it_is_right():
    features = torch.tensor([[0.0], [1.0], [2.0]])
    with pytest.raises((ValueError, TypeError), match="right"):
        fit_judge(features, torch.tensor([0.5, 0.4, 1.0]))
    with pytest.raises(ValueError, match="columns must be in"):
        fit_judge(features, torch.tensor([True, False, True]), columns=(False,))
