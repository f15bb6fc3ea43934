"""Linear layers by their names, and models that share weights."""

import pytest
import torch

from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.quantization.layers import linear_names, quantized_layers, replace_layer, twin
from tests.blockwise.tiny import tiny_decoder

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def test_the_layers_are_chosen_without_the_head():
    expected = [f"model.layers.{i}.{kind}" for i in range(2) for kind in (*PROJECTIONS, *MLP)]
    assert linear_names(tiny_decoder()) == expected


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(("*",), 15), (("lm_head",), 1), (("*.down_proj",), 2), (("*.0.*", "*.mlp.*"), 10), (["*.q_proj"], 2)],
)
def test_patterns_choose_and_overlap(patterns, count):
    assert len(linear_names(tiny_decoder(), patterns)) == count


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("*.mlp.*", "*.fc1"),
            r"match, got '\*.fc1', which does not; there are model.lay",
        ),
        (("q_proj",), "which does not"),
        (("*layernorm",), "which does not"),
        ((), r"layers must be a sequence of patterns, got \(\)"),
        ("*.mlp.*", "layers must be a sequence of patterns, got '"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_and_what_there_is_is_told(patterns, message):
    with pytest.raises(ValueError, match=message) as error:
        linear_names(tiny_decoder(), patterns)
    assert str(error.value).count("down_proj") <= 1  # of two layers, one star


def test_a_layer_is_not_quantized_twice():
    model = tiny_decoder()
    replace_layer(model, "model.layers.1.mlp.up_proj", QuantizedLinear(32, 48))
    assert list(quantized_layers(model)) == ["model.layers.1.mlp.up_proj"]
    with pytest.raises(ValueError, match=r"got model.layers.1.mlp.up_proj, quantized; load it anew"):
        linear_names(model)
    assert len(linear_names(model, ("*.0.*",))) == 7


def test_a_twin_shares_memory_and_ties_but_no_parameters():
    model = tiny_decoder()
    other = twin(model)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert other.lm_head.weight is other.model.embed_tokens.weight is not model.lm_head.weight
    assert other.config is not model.config or other.config == model.config
    other.float()
    replace_layer(other, "model.layers.0.mlp.up_proj", QuantizedLinear(32, 48))
    assert model.dtype == torch.float64 and not quantized_layers(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear)
