"""The first layers of a model as its drafter: its own weights, and nothing of the other layers."""

from __future__ import annotations

import pytest
import torch

from llmcourse.decoding import History, generate
from llmcourse.speculative import EarlyLayersDrafter
from llmcourse.speculative.early_layers import first_layers
from tests.speculative.tiny import PROMPTS, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(num_layers=3)


def test_weights_are_shared_and_the_cache_is_of_the_first_layers(model):
    drafter = EarlyLayersDrafter(model, 2)
    own = {weight.data_ptr() for weight in drafter.model.parameters()}
    assert own < {weight.data_ptr() for weight in model.parameters()}
    drafter.start(PROMPTS, 20)
    assert drafter.cache.num_layers == 2 and not drafter.model.training
    assert model.config.num_layers == len(model.model.layers) == 3


def test_other_layers_do_not_matter_to_drafts(model):
    changed = tiny_decoder(num_layers=3)
    for weight in changed.model.layers[2].parameters():
        weight.zero_()
    drafts = []
    for target in (model, changed):
        drafter = EarlyLayersDrafter(target, 2)
        drafter.start(PROMPTS, 20)
        drafts.append(drafter.draft(History.from_prompts(PROMPTS), [4] * 4).tokens)
    assert torch.equal(*drafts)
    # Without what layer 2 adds, the whole model is its first two layers.
    assert drafts[0].tolist() == [g.tokens for g in generate(changed, PROMPTS, max_new_tokens=4)]


@pytest.mark.parametrize(
    ("num_layers", "message"),
    [
        (0, "num_layers must be an integer of at least 1, got 0; draft with one layer or more"),
        (3, "num_layers must be at most 2, got 3; leave layers to verify with"),
    ],
)
def test_numbers_of_layers_out_of_range_are_refused(model, num_layers, message):
    with pytest.raises(ValueError, match=message):
        first_layers(model, num_layers)
