"""Adapters: they leave finished text alone to the bit, and are small."""

import pytest
import torch

from llmcourse.blockwise import AdapterConfig, BlockDecoder
from llmcourse.blockwise.masks import FINISHED, block_mask
from tests.blockwise.tiny import VOCAB, tiny_block_decoder, tiny_decoder

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10]])
ROLES = torch.tensor([[FINISHED] * 4 + [4, 4]])
PLACES = torch.arange(6)[None]
MASK = block_mask(PLACES, ROLES, PLACES, ROLES)


def test_fresh_adapters_change_nothing():
    backbone = tiny_decoder()
    fresh = BlockDecoder(backbone)
    hidden = fresh.hidden_states(TEXT, torch.ones_like(TEXT, dtype=torch.bool))
    assert torch.equal(hidden, backbone.hidden_states(TEXT))


def test_finished_tokens_are_the_backbones_to_the_bit():
    model = tiny_block_decoder()
    mixed = model.hidden_states(TEXT, ROLES != FINISHED, mask=MASK)
    alone = model.backbone.hidden_states(TEXT, mask=MASK)
    assert torch.equal(mixed[:, :4], alone[:, :4])
    assert not torch.isclose(mixed[:, 4:], alone[:, 4:]).any(-1).all(), "adapters do something in a block"


def test_the_gate_is_closed_again_after_a_pass_that_failed():
    model = tiny_block_decoder()
    with pytest.raises(ValueError, match="token ids must be in"):
        model.hidden_states(torch.tensor([[-1]]), torch.tensor([[True]]))
    assert torch.equal(model.adapted.hidden_states(TEXT), model.backbone.hidden_states(TEXT))


def test_a_change_is_the_product_of_two_thin_matrices():
    model = tiny_block_decoder()
    layer = model.adapted.model.layers[0].mlp.up_proj
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    layer.gate.in_block = torch.tensor([[True, False, True]])
    whole = layer.base.weight + 2 * layer.lora_B @ layer.lora_A  # alpha / rank = 2
    expected = x @ layer.base.weight.T
    expected[:, [0, 2]] = (x @ whole.T)[:, [0, 2]]
    torch.testing.assert_close(layer(x), expected)


def test_masks_are_ids_past_the_vocabulary_and_the_last_one_repeats():
    model = tiny_block_decoder()
    assert model.mask_ids(5).tolist() == [VOCAB, VOCAB + 1, VOCAB + 2, VOCAB + 2, VOCAB + 2]
    embedded = model.adapted.model.embed_tokens(torch.tensor([[3, VOCAB + 1]]))[0]
    assert torch.equal(embedded[0], model.backbone.model.embed_tokens.weight[3])
    assert torch.equal(embedded[1], model.adapters()["model.embed_tokens.masks"][1])


def test_only_adapters_are_trained():
    model = BlockDecoder(tiny_decoder())
    trained = {name for name, p in model.adapted.named_parameters() if p.requires_grad}
    assert trained == set(model.adapters()) and len(trained) == 2 * 7 * 2 + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("rank", 1.5), ("alpha", 0), ("alpha", float("inf")), ("alpha", 10**400), ("num_masks", 0)],
)
def test_sizes_that_are_none_are_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        AdapterConfig(**{name: value})


def test_adapters_of_the_embedded_model_are_small():
    """1.5 MB beside 21 MB: counted from shapes alone."""
    from llmcourse.pretrained import find_checkpoint, read_config

    c, r = read_config(find_checkpoint("base")), AdapterConfig()
    kv, q = c.num_kv_heads * c.head_dim, c.num_heads * c.head_dim
    attention = 2 * (c.hidden_size + q) + 2 * (c.hidden_size + kv)
    mlp = 3 * (c.hidden_size + c.intermediate_size)
    numbers = c.num_layers * r.rank * (attention + mlp) + r.num_masks * c.hidden_size
    assert 2 * numbers < 1.5e6
