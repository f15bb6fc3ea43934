"""The map of a text: its cells are the exits' own, and its line is where the rule leaves."""

import pytest
import torch

from llmcourse.early_exit import ConfidenceRule, EntropyRule, PatienceRule, heat, read_texts
from tests.early_exit.tiny import random_heads

TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture(scope="module")
def heads():
    return random_heads()


def test_cells_are_the_readings_of_the_text(heads):
    found, readings = heat(heads, TEXT, EntropyRule(2.2)), read_texts(heads, [[*TEXT, 0]])
    assert found.layers == readings.layers and found.tokens == tuple(TEXT)
    torch.testing.assert_close(found.entropy, readings.entropy)
    assert torch.equal(found.favourites, readings.favourites)


@pytest.mark.parametrize("exits", [None, [2], [1, 3]])
@pytest.mark.parametrize("rule", [EntropyRule(2.2), ConfidenceRule(0.35), PatienceRule(1)])
def test_the_line_is_where_the_rule_leaves(heads, rule, exits):
    found = heat(heads, TEXT, rule, exits)
    every = list(heads.logits(torch.tensor([TEXT])))
    agreed = []
    for position, layer in enumerate(found.exit_layers):
        history, expected = [], 4
        for number in exits or (1, 2, 3):
            history.append(every[number - 1][0, position : position + 1])
            if rule.exits(history).item():
                expected = number
                break
        assert layer == expected
        agreed.append(every[layer - 1][0, position].argmax() == every[3][0, position].argmax())
    assert found.mean_layers == sum(found.exit_layers) / 12
    assert found.agreement == pytest.approx(sum(map(bool, agreed)) / 12)


def test_never_and_always(heads):
    never, always = heat(heads, TEXT, ConfidenceRule(1)), heat(heads, TEXT, ConfidenceRule(0))
    assert set(never.exit_layers) == {4} and never.agreement == 1
    assert set(always.exit_layers) == {1} and always.mean_layers == 1


def test_texts_that_cannot_be_read_are_refused(heads):
    for text in ([], [1] * 33):
        with pytest.raises(ValueError, match=f"token_ids must be of 1 to 32 tokens, got {len(text)}"):
            heat(heads, text, EntropyRule(1))
    with pytest.raises(ValueError, match="an exit must be at most 3, got 4"):
        heat(heads, TEXT, EntropyRule(1), [4])
