"""Which exit a rule takes, and the rule for a budget."""

import pytest
import torch

from llmcourse.early_exit.classifier.methods.method import entropy_rules, patience_rules
from llmcourse.early_exit.classifier.thresholds import (
    MixedRule,
    choose_rule,
    exits_taken,
    mean_layers,
    mix_rules,
    rule_of,
)
from llmcourse.early_exit.rules import EntropyRule, PatienceRule

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


def test_layers_on_average():
    assert mean_layers(torch.tensor([0, 1, 1, 2]), (2, 4, 12)) == 5.5


@pytest.fixture
def many():
    return torch.randn(150, 12, 3, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("budget", [2, 6])
def test_entropy_meets_a_budget_closely(many, budget):
    exits = tuple(range(1, 13))
    rule = choose_rule(entropy_rules(many), many, exits, budget)
    assert abs(mean_layers(exits_taken(many, rule), exits) - budget) < 0.35


def test_no_other_patience_is_nearer(many):
    exits = tuple(range(1, 13))
    chosen = choose_rule(patience_rules(many), many, exits, 6)
    means = {p: mean_layers(exits_taken(many, PatienceRule(p)), exits) for p in range(1, 12)}
    assert abs(means[chosen.patience] - 6) == min(abs(mean - 6) for mean in means.values())


class TestMixture:
    @pytest.mark.parametrize("budget", [4.5, 5, 6, 8, 11.5])
    def test_patience_meets_a_budget_too(self, many, budget):
        exits = tuple(range(1, 13))
        rule = mix_rules(patience_rules(many), many, exits, budget)
        assert abs(mean_layers(exits_taken(many, rule), exits) - budget) <= 11 / 150  # one text
        assert rule.slow.patience == rule.quick.patience + 1

    def test_each_text_gets_one_of_both(self, many):
        rule = mix_rules(patience_rules(many), many, range(1, 13), 6)
        taken = exits_taken(many, rule)
        for number in range(150):
            alone = exits_taken(many[number : number + 1], rule_of(rule, number))
            assert alone[0] == taken[number]
        assert {rule_of(rule, number) for number in range(150)} == {rule.quick, rule.slow}

    def test_shares(self):
        """Of 2,000 texts 600 are expected to get the slow rule, deviation 20; five of these are far."""
        rule = MixedRule(PatienceRule(1), PatienceRule(2), 0.3)
        slow = [rule_of(rule, number) is rule.slow for number in range(2000)]
        assert abs(sum(slow) - 600) < 100
        other = MixedRule(PatienceRule(1), PatienceRule(2), 0.3, seed=1)
        assert slow != [rule_of(other, number) is other.slow for number in range(2000)]
        assert rule_of(None, 0) is None and rule_of(EntropyRule(0), 5) == EntropyRule(0)

    def test_a_rule_that_meets_it_or_a_budget_beyond_all_needs_no_mixture(self, many):
        exits = tuple(range(1, 13))
        mean = mean_layers(exits_taken(many, PatienceRule(2)), exits)
        assert mix_rules(patience_rules(many), many, exits, mean) == PatienceRule(2)
        assert mix_rules(patience_rules(many), many, exits, 1) == PatienceRule(1)
        assert mix_rules([PatienceRule(1)], many, exits, 9) == PatienceRule(1)

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_what_is_no_share(self, share):
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
            MixedRule(PatienceRule(1), PatienceRule(2), share)


def test_of_two_as_near_the_stricter():
    found = logits(*[[SURE, SURE, SURE]] * 2)
    assert choose_rule([EntropyRule(1), EntropyRule(0)], found, (1, 2, 3), 2) == EntropyRule(0)


def test_there_is_always_a_rule_that_runs_everything(many):
    for rules in (entropy_rules(many), patience_rules(many)):
        slowest = max(mean_layers(exits_taken(many, rule), range(1, 13)) for rule in rules)
        assert slowest > 11.9


def test_what_is_refused(many):
    exits = tuple(range(1, 13))
    with pytest.raises(ValueError, match="rules must be one or more, got 0"):
        choose_rule([], many, exits, 6)
    for budget in (0, 12.5, float("nan")):
        with pytest.raises(ValueError, match=r"layers must be in \[1, 12\]"):
            choose_rule(patience_rules(many), many, exits, budget)
    with pytest.raises(ValueError, match="exits must be two or more, got 1"):
        entropy_rules(many[:, :1])
