"""Scaling channels leaves the function as it is, for every family of models and every site alone."""

import re

import pytest
import torch
from torch import nn

from llmcourse.model import Decoder, DecoderConfig
from llmcourse.quantization.channel_scales import Site, sites

SHAPE = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_layers": 2, "head_dim": 4}
FAMILIES = {
    "llama": {"num_heads": 6, "num_kv_heads": 2},
    "llama, all heads": {"num_heads": 6, "num_kv_heads": 6},
    "qwen2": {"num_heads": 6, "num_kv_heads": 3, "attention_bias": True, "output_bias": True},
    "qwen3": {"num_heads": 8, "num_kv_heads": 2, "qk_norm": True, "tie_word_embeddings": False},
}


def decoder(family: str) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**SHAPE, **FAMILIES[family], max_position_embeddings=64)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model.eval().requires_grad_(False)


TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


def channels_of(site: Site) -> int:
    return len(site.source.weight)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(8))
def test_one_site_changes_its_weights_and_nothing_else(family, number):
    model = decoder(family)
    before = model(TOKENS)
    site = sites(model)[number]
    old = {name: reader.weight.clone() for name, reader in site.readers.items()}
    scale = torch.rand(channels_of(site), dtype=torch.float64) * 5 + 0.1
    site.divide(scale)
    assert torch.allclose(model(TOKENS), before, rtol=1e-11, atol=1e-11)
    for name, reader in site.readers.items():
        assert torch.allclose(reader.weight, old[name] * site.spread(scale))


def test_a_wrong_order_of_heads_is_seen():
    model = decoder("llama")
    before = model(TOKENS)
    right = sites(model)[1]
    scale = torch.rand(channels_of(right), dtype=torch.float64) + 0.5
    Site(right.source, right.readers, right.repeats, run=channels_of(right)).divide(scale)
    assert not torch.allclose(model(TOKENS), before, rtol=1e-3)


def test_means_and_maxima_are_over_the_heads_that_share_values():
    site = sites(decoder("llama"))[1]
    read = torch.arange(24.0).double()
    expected = read.view(2, 3, 4)
    assert torch.equal(site.mean(read), expected.mean(1).flatten())
    assert torch.equal(site.largest(read), expected.amax(1).flatten())
    assert torch.equal(site.spread(site.mean(read)).view(2, 3, 4)[:, 1], expected.mean(1))


def test_sites_are_named_by_what_reads_them():
    found = sites(decoder("qwen3"))
    assert [site.of_norm for site in found] == 2 * [True, False, True, False]
    ends = [[name.split(".")[-1] for name in site.readers] for site in found[:4]]
    assert ends == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert all(name.startswith("model.layers.1.") for site in found[4:] for name in site.readers)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_cannot_be_undone_is_refused(value):
    site = sites(decoder("llama"))[0]
    scale = torch.ones(24, dtype=torch.float64)
    scale[3] = value
    with pytest.raises(ValueError, match="scale must be positive and finite for every channel"):
        site.divide(scale)


def test_a_layer_that_is_quantized_already_is_refused_by_name():
    model = decoder("llama")
    model.model.layers[1].mlp.up_proj = nn.Identity()
    message = (
        "model.layers.1.mlp.up_proj must be a linear layer of 16 bits or more to be scaled, got Identity"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        sites(model)
