"""The heads: what they compute, and on which backbone they can stand."""

from __future__ import annotations

import json

import pytest
import torch

from llmcourse.pretrained import CheckpointError
from llmcourse.speculative.medusa import (
    HeadsConfig,
    MedusaHeads,
    load_heads,
    save_heads,
)
from llmcourse.speculative.medusa.heads import check_fits
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.tiny import tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def test_an_untrained_head_says_what_the_backbone_says(model):
    heads = MedusaHeads(HeadsConfig.for_model(model, 3, 2))
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits = heads.logits(model, model.hidden_states(tokens))
    assert logits.shape == (2, 3, 3, model.config.vocab_size)
    for head in range(3):
        torch.testing.assert_close(logits[:, :, head], model(tokens))


def test_a_head_is_its_blocks_one_after_the_other(model):
    heads, hidden = tiny_heads(model, 2, 2), torch.randn(5, 32)
    expected = hidden
    for block in heads.heads[1]:
        z = expected @ block.linear.weight.T + block.linear.bias
        expected = expected + z / (1 + torch.exp(-z))
    torch.testing.assert_close(heads(hidden)[:, 1], expected)
    assert heads(hidden, 1).shape == (5, 1, 32)


def test_heads_have_no_output_matrix(model):
    count = sum(weight.numel() for weight in tiny_heads(model, 3).parameters())
    assert count == 3 * (32 * 32 + 32)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_shapes_out_of_range(number):
    for place in range(4):
        sizes = [2, 1, 32, 40]
        sizes[place] = number
        with pytest.raises((ValueError, TypeError), match=r"must be an integer of at least 1|HeadsConfig"):
            HeadsConfig(*sizes)


def test_heads_of_another_size_do_not_fit(model):
    with pytest.raises(
        ValueError, match="vocab_size of the heads must be the backbone's 40, got 41; use heads"
    ):
        check_fits(MedusaHeads(HeadsConfig(1, 1, 32, 41)), model)
    with pytest.raises(ValueError, match="hidden_size of the heads must be the backbone's 32, got 16"):
        check_fits(MedusaHeads(HeadsConfig(1, 1, 16, 40)), model)
    with pytest.raises(TypeError, match="heads must be a MedusaHeads, got Decoder"):
        check_fits(model, model)
    with pytest.raises(ValueError, match="hidden must be of 32 features, got 16"):
        tiny_heads(model)(torch.zeros(1, 16))


def test_more_blocks_than_anyone_trains_are_refused_before_they_are_built(model, tmp_path):
    """What else is refused of files: tests/test_add_ons.py."""
    save_heads(tiny_heads(model), model, tmp_path)
    path = tmp_path / "add_on.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["settings"]["num_heads"] = 10**9
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"num_heads × num_blocks must be at most 2048, got 1000000000 × 1"
    ):
        load_heads(tmp_path, model)
    with pytest.raises(ValueError, match="vocab_size of the heads must be the backbone's 50, got 40"):
        save_heads(tiny_heads(model), tiny_decoder(vocab_size=50), tmp_path)
