"""The rule for a budget of layers, alone or of two."""

import pytest
import torch

from llmcourse.early_exit.classifier.equal_speed import choose_rule, mix_rules
from llmcourse.early_exit.classifier.methods.method import entropy_rules, patience_rules
from llmcourse.early_exit.classifier.taken import exits_taken, mean_layers, rule_of
from llmcourse.early_exit.rules import EntropyRule, PatienceRule

SURE = [9.0, 0.0]


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
        other = mix_rules(patience_rules(many), many, exits, budget, seed=1)  # other texts, as many
        assert abs(mean_layers(exits_taken(many, other), exits) - budget) <= 11 / 150
        assert not torch.equal(exits_taken(many, other), exits_taken(many, rule))

    def test_each_text_gets_one_of_both(self, many):
        rule = mix_rules(patience_rules(many), many, range(1, 13), 6)
        taken = exits_taken(many, rule)
        for number in range(150):
            alone = exits_taken(many[number : number + 1], rule_of(rule, number))
            assert alone[0] == taken[number]
        assert {rule_of(rule, number) for number in range(150)} == {rule.quick, rule.slow}

    def test_a_rule_that_meets_it_or_a_budget_beyond_all_needs_no_mixture(self, many):
        exits = tuple(range(1, 13))
        mean = mean_layers(exits_taken(many, PatienceRule(2)), exits)
        assert mix_rules(patience_rules(many), many, exits, mean) == PatienceRule(2)
        assert mix_rules(patience_rules(many), many, exits, 1) == PatienceRule(1)
        assert mix_rules([PatienceRule(1)], many, exits, 9) == PatienceRule(1)


def test_of_two_as_near_the_stricter():
    found = torch.tensor([[SURE, SURE, SURE]] * 2)
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
