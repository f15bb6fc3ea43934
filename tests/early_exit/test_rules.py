"""The three rules against their definitions, on distributions that can be checked by hand."""

import math

import pytest
import torch

from llmcourse.early_exit import ConfidenceRule, EntropyRule, ExitRule, PatienceRule, confidence, entropy

SURE, HALF, NONE = torch.tensor([[50.0, 0, 0, 0], [0, 0, -math.inf, -math.inf], [0, 0, 0, 0]])
ROWS = torch.stack([SURE, HALF, NONE])


def history(*favourites: list[int]) -> list[torch.Tensor]:
    """Logits of each exit, whose likeliest answers are given row by row."""
    return [3.0 * torch.nn.functional.one_hot(torch.tensor(row), 4).float() for row in favourites]


def test_entropy_is_in_nats_and_bears_zeros():
    torch.testing.assert_close(entropy(ROWS), torch.tensor([0.0, math.log(2), math.log(4)]))
    torch.testing.assert_close(entropy(ROWS[None])[0], entropy(ROWS))


def test_confidence_is_the_largest_probability():
    torch.testing.assert_close(confidence(ROWS), torch.tensor([1.0, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (EntropyRule(0), [False, False, False]),
        (EntropyRule(0.5), [True, False, False]),
        (EntropyRule(1.0), [True, True, False]),
        (EntropyRule(1.5), [True, True, True]),
        (ConfidenceRule(1), [False, False, False]),
        (ConfidenceRule(0.6), [True, False, False]),
        (ConfidenceRule(0.3), [True, True, False]),
        (ConfidenceRule(0), [True, True, True]),
    ],
)
def test_the_last_exit_alone_decides_by_entropy_and_by_confidence(rule, wanted):
    assert isinstance(rule, ExitRule)
    assert rule.exits([ROWS.flip(0), ROWS]).tolist() == wanted


def test_patience_counts_the_exits_that_agree():
    agreed = history([0, 1, 2], [0, 1, 3], [0, 0, 3])
    assert PatienceRule(1).exits(agreed[:1]).tolist() == [False, False, False]
    assert PatienceRule(1).exits(agreed[:2]).tolist() == [True, True, False]
    assert PatienceRule(1).exits(agreed).tolist() == [True, False, True]
    assert PatienceRule(2).exits(agreed).tolist() == [True, False, False]
    assert PatienceRule(3).exits(agreed).tolist() == [False, False, False]


@pytest.mark.parametrize("threshold", [-0.1, math.inf, math.nan, True, 10**400])
def test_an_entropy_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be at least 0 nats"):
        EntropyRule(threshold)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, True])
def test_a_confidence_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
        ConfidenceRule(threshold)


@pytest.mark.parametrize("patience", [0, -1, True])
def test_a_patience_that_waits_for_nothing_is_refused(patience):
    with pytest.raises(ValueError, match="patience must be an integer of at least 1"):
        PatienceRule(patience)


@pytest.mark.parametrize("rule", [EntropyRule(1), ConfidenceRule(0.5), PatienceRule(1)])
def test_no_history_is_refused(rule):
    with pytest.raises(ValueError, match="history must be the logits of at least one exit"):
        rule.exits([])


def test_rules_in_words():
    rules = EntropyRule(2.996), ConfidenceRule(0.5), PatienceRule(2)
    assert [str(rule) for rule in rules] == [
        "entropy below 3.00 nats",
        "confidence above 50%",
        "patience of 2",
    ]
