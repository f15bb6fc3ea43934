"""Layers in few bits within a model, and models that share weights."""

import torch

from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.quantization.layers import quantized_layers, replace_layer, twin
from tests.blockwise.tiny import tiny_decoder


def test_a_layer_is_put_in_and_found():
    model = tiny_decoder()
    assert not quantized_layers(model)
    layer = QuantizedLinear(32, 48)
    replace_layer(model, "model.layers.1.mlp.up_proj", layer)
    assert quantized_layers(model) == {"model.layers.1.mlp.up_proj": layer}
    assert model.model.layers[1].mlp.up_proj is layer
    head = QuantizedLinear(32, 40)
    replace_layer(model, "lm_head", head)
    assert model.lm_head is head


def test_a_twin_shares_memory_and_ties_but_no_parameters():
    model = tiny_decoder()
    other = twin(model)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert other.lm_head.weight is other.model.embed_tokens.weight is not model.lm_head.weight
    other.float()
    replace_layer(other, "model.layers.0.mlp.up_proj", QuantizedLinear(32, 48))
    assert model.dtype == torch.float64 and not quantized_layers(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear)
