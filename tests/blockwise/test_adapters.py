"""Adapters: they leave finished text alone to the bit, and a file knows its backbone."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcourse.blockwise import AdapterConfig, BlockDecoder, load_adapters, save_adapters
from llmcourse.blockwise.adapters import CONFIG, WEIGHTS
from llmcourse.blockwise.masks import FINISHED, block_mask
from llmcourse.pretrained import CheckpointError
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


class TestFiles:
    @pytest.fixture
    def saved(self, tmp_path):
        save_adapters(tiny_block_decoder(), tmp_path)
        return tmp_path

    def test_what_was_saved_is_loaded_in_bfloat16(self, saved):
        loaded, first = load_adapters(tiny_decoder(), saved), tiny_block_decoder()
        assert loaded.adapter_config == first.adapter_config
        for name, parameter in first.adapters().items():
            assert torch.equal(loaded.adapters()[name], parameter.to(torch.bfloat16).double())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_those_of_another_backbone_are_refused(self, saved):
        with pytest.raises(CheckpointError, match=r"backbone must have the fingerprint .* got "):
            load_adapters(tiny_decoder(seed=1), saved)

    @pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
    def test_a_missing_file_is_named(self, saved, name):
        (saved / name).unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(name)):
            load_adapters(tiny_decoder(), saved)

    @pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
    def test_a_damaged_file_is_refused(self, saved, name):
        (saved / name).write_bytes((saved / name).read_bytes()[:50])
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_adapters(tiny_decoder(), saved)

    @pytest.mark.parametrize("change", [{"rank": 0}, {"kind": "heads"}, {"alpha": None}])
    def test_a_config_of_something_else_is_refused(self, saved, change):
        content = json.loads((saved / CONFIG).read_text()) | change
        (saved / CONFIG).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="does not describe blockwise adapters"):
            load_adapters(tiny_decoder(), saved)

    @pytest.mark.parametrize("name", ["rank", "num_masks"])
    def test_a_damaged_number_takes_no_memory(self, saved, name):
        config = json.loads((saved / CONFIG).read_text())
        (saved / CONFIG).write_text(json.dumps(config | {name: 10**12}))
        with pytest.raises(CheckpointError, match=f"{name} in .* must be at most"):
            load_adapters(tiny_decoder(), saved)

    def test_weights_that_are_no_numbers_are_refused(self, saved):
        tensors = load_file(saved / WEIGHTS)
        tensors["model.embed_tokens.masks"][0, 0] = torch.nan
        save_file(tensors, saved / WEIGHTS)
        with pytest.raises(CheckpointError, match=r"masks in .* holds NaN"):
            load_adapters(tiny_decoder(), saved)

    @pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
    def test_tensors_that_do_not_fit_are_named(self, saved, change):
        tensors, name = load_file(saved / WEIGHTS), "model.embed_tokens.masks"
        if change == "missing":
            del tensors[name]
        elif change == "unknown":
            name = "model.extra"
            tensors[name] = torch.zeros(1)
        else:
            tensors[name] = tensors[name][:1].clone()
        save_file(tensors, saved / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"tensor {name} in"):
            load_adapters(tiny_decoder(), saved)


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 0), ("rank", 1.5), ("alpha", 0), ("alpha", float("inf")), ("num_masks", 0)]
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
