"""Which exit a rule takes, alone or as one of two."""

import pytest
import torch

from llmcourse.early_exit.classifier.taken import MixedRule, exits_taken, mean_layers, rule_of
from llmcourse.early_exit.leaving import exit_numbers
from llmcourse.early_exit.readings import Readings
from llmcourse.early_exit.rules import ConfidenceRule, EntropyRule, PatienceRule, confidence, entropy

SURE, UNSURE, OTHER = [9.0, 0.0], [0.1, 0.0], [0.0, 0.1]


def logits(*texts):
    return torch.tensor(texts)


def test_the_first_exit_that_is_sure():
    found = logits([SURE, SURE, SURE], [UNSURE, SURE, UNSURE], [UNSURE, OTHER, SURE], [OTHER] * 3)
    assert exits_taken(found, EntropyRule(0.1)).tolist() == [0, 1, 2, 2]
    assert exits_taken(found, EntropyRule(0)).tolist() == [2] * 4
    assert exits_taken(found, None).tolist() == [2] * 4


def test_the_first_exit_where_enough_agree():
    found = logits([SURE, SURE, OTHER], [UNSURE, OTHER, OTHER], [SURE, OTHER, UNSURE])
    assert exits_taken(found, PatienceRule(1)).tolist() == [1, 2, 2]
    assert exits_taken(found, PatienceRule(2)).tolist() == [2, 2, 2]


def test_it_is_what_is_told_of_readings():
    """`leaving` sees entropies, confidences and favourites alone."""
    found = torch.randn(60, 5, 3, generator=torch.Generator().manual_seed(0)) * 2
    by_exit = found.transpose(0, 1)
    signals = (entropy(by_exit), confidence(by_exit), by_exit.argmax(-1))
    readings = Readings((1, 2, 3, 4, 5), *signals, torch.zeros(60).long())
    for rule in (EntropyRule(0.5), ConfidenceRule(0.9), PatienceRule(1), PatienceRule(2)):
        taken = exits_taken(found, rule)
        assert taken.tolist() == exit_numbers(readings, rule).tolist()
        assert len(set(taken.tolist())) > 2, rule


def test_layers_on_average():
    assert mean_layers(torch.tensor([0, 1, 1, 2]), (2, 4, 12)) == 5.5


def test_shares_of_a_mixture():
    """Of 2,000 texts 600 are expected to get the slow rule, deviation 20; five of these are far."""
    rule = MixedRule(PatienceRule(1), PatienceRule(2), 0.3)
    slow = [rule_of(rule, number) is rule.slow for number in range(2000)]
    assert abs(sum(slow) - 600) < 100
    other = MixedRule(PatienceRule(1), PatienceRule(2), 0.3, seed=1)
    assert slow != [rule_of(other, number) is other.slow for number in range(2000)]
    assert rule_of(None, 0) is None and rule_of(EntropyRule(0), 5) == EntropyRule(0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
        MixedRule(PatienceRule(1), PatienceRule(2), share)
