"""Where a rule leaves, from what was read: what the rules themselves say, exit by exit."""

import pytest
import torch

from llmcourse.early_exit import (
    ConfidenceRule,
    EntropyRule,
    PatienceRule,
    Readings,
    exit_layers,
    heat,
    heat_of,
    read_texts,
)
from tests.early_exit.tiny import random_heads

TEXT = [1, 2, 3, 4, 5, 6, 7, 3, 2, 1, 12, 11, 10, 4, 4, 4, 9]


@pytest.fixture(scope="module")
def read():
    heads = random_heads(noise=0.3)
    return heads, read_texts(heads, [TEXT])


def rules(readings):
    """Never, always, and at thresholds that split the exits."""
    yield from (EntropyRule(0), EntropyRule(100.0), ConfidenceRule(1), ConfidenceRule(0))
    for share in (0.02, 0.1, 0.2, 0.5):
        yield EntropyRule(readings.entropy.quantile(share).item())
        yield ConfidenceRule(readings.confidence.quantile(1 - share).item())
    yield from (PatienceRule(1), PatienceRule(2), PatienceRule(3))


def test_it_is_what_the_rules_say_themselves(read):
    heads, readings = read
    seen = set()
    for rule in rules(readings):
        slow, fast = heat(heads, TEXT[:-1], rule), heat_of(readings, TEXT[:-1], rule)
        assert fast.exit_layers == slow.exit_layers, rule
        assert (fast.mean_layers, fast.agreement) == (slow.mean_layers, slow.agreement)
        torch.testing.assert_close(fast.entropy, slow.entropy)
        seen.update(fast.exit_layers)
    assert seen == {1, 2, 3, 4}  # or nothing was compared


def test_exits_that_are_not_asked_are_left_out(read):
    heads, readings = read
    rule = EntropyRule(readings.entropy.median().item())
    some = exit_layers(readings.only([2]), rule)
    assert some.tolist() == list(heat(heads, TEXT[:-1], rule, exits=[2]).exit_layers)


def test_a_patient_rule_waits_for_exits_that_agree():
    favourites = torch.tensor([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
    zeros = torch.zeros(4, 3)
    readings = Readings((1, 2, 3, 4), zeros, zeros, favourites, torch.zeros(3).long())
    assert exit_layers(readings, PatienceRule(1)).tolist() == [2, 3, 3]
    assert exit_layers(readings, PatienceRule(2)).tolist() == [4, 4, 4]


def test_other_rules_and_other_texts_are_refused(read):
    _, readings = read

    class Always:
        def exits(self, history):
            return torch.ones(len(history[-1]), dtype=torch.bool)

    with pytest.raises(TypeError, match=r"rule must be an EntropyRule, .* got Always; use heat"):
        exit_layers(readings, Always())
    with pytest.raises(ValueError, match="token_ids must be of 16 tokens, got 17; give the tokens"):
        heat_of(readings, TEXT, EntropyRule(1.0))
