"""Columns apart: which they are, what int8 loses without them, and what layers are given."""

import math

import pytest
import torch

from llmcourse.figures.outlier_split import THRESHOLDS, LayerInput, read_inputs, split, splits
from llmcourse.model import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(12, 40, generator=generator), torch.randn(24, 40, generator=generator)
    x[3, 7], x[5, 21] = -60.0, 9.0
    return LayerInput(x, w)


@pytest.mark.parametrize("threshold", [1.5, 6, 20, math.inf])
def test_the_product_is_that_of_a_slow_loop(layer, threshold):
    x, w = layer.x.double(), layer.weight.double()
    kept = [c for c in range(40) if max(abs(v) for v in x[:, c].tolist()) >= threshold]
    product = torch.zeros(12, 24, dtype=torch.float64)
    for t in range(12):
        others = [c for c in range(40) if c not in kept]
        step = max((abs(x[t, c].item()) for c in others), default=127.0) / 127
        for c in range(40):
            value = x[t, c].item() if c in kept else step * round(x[t, c].item() / step)
            product[t] += value * w[:, c]
    whole = x @ w.T
    found = split(layer, threshold)
    assert found.columns.nonzero().flatten().tolist() == kept and found.count == len(kept)
    assert found.share == len(kept) / 40
    assert found.error == pytest.approx(((product - whole).norm() / whole.norm()).item(), rel=1e-3)


def test_outliers_apart_leave_finer_steps_and_less_error(layer):
    whole, apart = split(layer, math.inf), split(layer, 6)
    assert apart.count == 2 and apart.error < whole.error / 3 and apart.step <= whole.step


def test_all_columns_in_16_bits_lose_nothing(layer):
    found = split(layer, 1e-6)
    assert found.share == 1 and found.error == 0 and found.step == 0
    assert split(LayerInput(torch.zeros(2, 3), torch.ones(1, 3)), 6).error == 0


def test_one_for_each_threshold(layer):
    every = splits(layer)
    assert [one.threshold for one in every] == list(THRESHOLDS) and every[-1].count == 0
    assert [one.count for one in every] == sorted((one.count for one in every), reverse=True)


@pytest.mark.parametrize("threshold", [0, -1.0, math.nan])
def test_a_threshold_that_is_none_is_refused(layer, threshold):
    with pytest.raises(ValueError, match="threshold must be positive"):
        split(layer, threshold)


def test_layers_are_given_what_the_model_computes():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(12, 8, 16, 2, 1, 1, 8, 16)).eval()
    found = read_inputs(model, [1, 2, 3])
    assert len(found) == 15 and found["layers.0.mlp.down_proj"].x.shape == (3, 16)
    norm, embedded = model.model.layers[0].input_layernorm, model.model.embed_tokens(torch.tensor([1, 2, 3]))
    assert found["layers.0.self_attn.q_proj"].x.allclose(norm(embedded))
    logits = model(torch.tensor([[1, 2, 3]]))[0]
    head = found["lm_head"]
    assert (head.x @ head.weight.T).allclose(logits, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())  # all hooks are gone
