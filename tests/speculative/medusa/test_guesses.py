"""The heads side by side say what they say one by one."""

import copy

import pytest
import torch

from llmcourse.speculative.medusa.guesses import Guesses
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from tests.speculative.tiny import tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def heads_of(model, num_heads: int, num_blocks: int) -> MedusaHeads:
    """That say all kinds of things."""
    torch.manual_seed(0)
    made = MedusaHeads(HeadsConfig.for_model(model, num_heads, num_blocks)).requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_guesses_are_those_of_the_heads(model, batch_size, num_heads, num_blocks):
    heads = heads_of(model, 3, num_blocks)
    hidden = torch.randn(batch_size, model.config.hidden_size)
    expected = heads.logits(model, hidden, num_heads)
    torch.testing.assert_close(Guesses(model, heads, num_heads).logits(hidden), expected)


def test_what_heads_learn_afterwards_does_not_reach_it(model):
    heads, hidden = heads_of(model, 2, 2), torch.randn(1, model.config.hidden_size)
    guesses, expected = Guesses(model, heads, 2), copy.deepcopy(heads).logits(model, hidden)
    for parameter in heads.parameters():
        parameter += 1
    torch.testing.assert_close(guesses.logits(hidden), expected)
