"""AWQ: the function before rounding, the loss after, and what is chosen."""

import re

import pytest
import torch

from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.awq import AWQSettings, awq_model, channel_scale
from llmcourse.quantization.calibration import layer_by_layer, linear_layers, place_values
from llmcourse.quantization.channel_scales import site_of, sites
from llmcourse.quantization.gptq import GPTQSettings, gptq_model
from llmcourse.quantization.hessian import output_error
from tests.quantization.real_text import NAMES, calibration_tokens, held_out_tokens, model_of, perplexity

QUIET = {"progress": False}


def leave(*_) -> None:
    """Places nothing."""


@pytest.mark.parametrize("name", NAMES)
def test_scaled_channels_leave_the_function_as_it_is(name):
    model, tokens = model_of(name).double(), held_out_tokens(name)[:2, :64]
    before, old = model(tokens), {k: v.weight.clone() for k, v in linear_layers(model).items()}
    results = awq_model(model, calibration_tokens(name, 4), AWQSettings(3, 32), place=leave, **QUIET)
    assert torch.allclose(model(tokens), before, rtol=1e-11, atol=1e-11)
    moved = [key for key, linear in linear_layers(model).items() if not torch.equal(linear.weight, old[key])]
    assert len(moved) > len(old) / 2
    for key, linear in linear_layers(model).items():
        expected = quantize_weight(linear.weight, 3, 32)
        assert torch.equal(results[key].quantized.codes, expected.codes)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_an_input_is_never_above_that_of_rounding(name, bits):
    """All layers that read it together. These small models gain 3 to 5 per cent by it."""
    model, settings = model_of(name), AWQSettings(bits, 32)
    results = awq_model(model, calibration_tokens(name), settings, **QUIET)
    assert set(results) == set(linear_layers(model))
    for number in range(model.config.num_layers):
        for part in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
            block = "self_attn" if len(part[0]) == 1 else "mlp"
            of_input = [results[f"model.layers.{number}.{block}.{kind}_proj"] for kind in part]
            assert len({result.alpha for result in of_input}) == 1
            loss, plain = (sum(getattr(r, field) for r in of_input) for field in ("loss", "rounding_loss"))
            assert loss <= plain * (1 + 1e-6)
    assert sum(result.loss for result in results.values()) < 0.98 * sum(
        result.rounding_loss for result in results.values()
    )


def test_reported_losses_are_those_of_the_layers_outputs():
    """Of the first input, before anything is quantized, by the outputs themselves."""
    name, settings = "draft", AWQSettings(3, 32)
    model, plain = model_of(name).double(), model_of(name).double()
    results = awq_model(model, calibration_tokens(name, 4), settings, **QUIET)
    (first, *_) = next(layer_by_layer(plain, calibration_tokens(name, 4), **QUIET))
    rows = []
    plain.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, x: rows.append(x[0]))
    plain(calibration_tokens(name, 4))
    x = torch.cat(rows).flatten(0, 1)
    scale = channel_scale(first.abs_mean, results[first.names[0]].alpha)
    for key in first.names:
        y = x @ linear_layers(plain)[key].weight.T
        found = (x / scale) @ results[key].quantized.dequantized().T
        # What writes the values is divided once more, for the output projection; so q and k alone.
        if not key.endswith("v_proj"):
            assert (found - y).square().sum().item() == pytest.approx(results[key].loss, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_losses_are_those_of_the_codes_and_scales_that_are_kept(dtype):
    """Of layers of one reader, whose outputs nothing divides afterwards."""
    tokens, settings = calibration_tokens("draft", 4), AWQSettings(4, 32)
    results = awq_model(model_of("draft").to(dtype), tokens, settings, place=leave, **QUIET)
    plain = model_of("draft").to(dtype)
    found, places = sites(plain), linear_layers(plain)
    for inputs in next(layer_by_layer(plain, tokens, **QUIET)):
        (name, *others), site = inputs.names, site_of(found, inputs)
        if others:
            continue
        result, weight = results[name], places[name].weight
        read = site.spread(channel_scale(site.mean(inputs.abs_mean), result.alpha))
        ways = (
            result.quantized.dequantized(torch.float32) / read,
            quantize_weight(weight, 4, 32).dequantized(torch.float32),
        )
        lost, by_rounding = (
            output_error(way - weight.float(), inputs.hessian).double().sum().item() for way in ways
        )
        assert result.alpha > 0 and result.loss == pytest.approx(lost, rel=1e-4)
        assert result.rounding_loss == pytest.approx(by_rounding, rel=1e-4)
        assert lost <= by_rounding


def test_a_channel_of_outliers_is_protected():
    """With one channel of input a hundred times as large as others, its weights become the exact ones."""
    torch.manual_seed(0)
    model, tokens = model_of("draft").double(), calibration_tokens("draft", 4)
    model.model.layers[0].input_layernorm.weight[5] *= 100
    results = awq_model(model, tokens, AWQSettings(3, 32), place=leave, layers=("*.0.self_attn.*",), **QUIET)
    of_input = [results[f"model.layers.0.self_attn.{kind}_proj"] for kind in "qkv"]
    assert of_input[0].alpha > 0.2
    assert sum(r.loss for r in of_input) < 0.6 * sum(r.rounding_loss for r in of_input)


def test_scales_are_around_one_and_those_of_alpha_0_are_it():
    mean = torch.tensor([0.0, 0.01, 1.0, 4.0])
    assert torch.equal(channel_scale(mean, 0.0), torch.ones(4))
    scale = channel_scale(mean, 0.5)
    assert scale.min() * scale.max() == pytest.approx(1) and (scale.diff() > 0).all()
    assert scale[3] / scale[2] == pytest.approx(2)


@pytest.mark.parametrize("name", NAMES)
def test_at_three_bits_perplexity_lies_between_gptq_and_collapse(name):
    """GPTQ, which makes up for errors, is better than AWQ, which only makes some smaller."""
    by_gptq, by_awq, rounded = model_of(name), model_of(name), model_of(name)
    gptq_model(by_gptq, calibration_tokens(name), GPTQSettings(3, 32), **QUIET)
    awq_model(by_awq, calibration_tokens(name), AWQSettings(3, 32), **QUIET)
    for layer, linear in linear_layers(rounded).items():
        place_values(layer, linear, quantize_weight(linear.weight, 3, 32))
    whole, best, awq, worst = (perplexity(m, name) for m in (model_of(name), by_gptq, by_awq, rounded))
    assert whole < best < awq < 1.05 * worst


def test_the_output_matrix_is_rounded_as_it_is_and_layers_left_out_stay_whole():
    model = model_of("draft").double()
    tokens, layers = held_out_tokens("draft")[:2, :64], ("*.1.self_attn.k_proj", "lm_head")
    before, head = model(tokens), model.lm_head.weight.clone()
    results = awq_model(
        model, calibration_tokens("draft", 4), AWQSettings(8), layers=layers, place=leave, **QUIET
    )
    assert list(results) == ["model.layers.1.self_attn.k_proj", "lm_head"]
    assert results["lm_head"].alpha == 0 and torch.equal(model.lm_head.weight, head)
    assert torch.allclose(model(tokens), before, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 16}, "bits must be one of 2, 3"),
        ({"grid": 0}, "grid must be an integer of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AWQSettings(**settings)


def test_a_weight_that_is_not_finite_is_refused_by_name():
    model = model_of("draft")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the weight of model\.layers\.1\.mlp\.down_proj must be finite"):
        awq_model(model, calibration_tokens("draft", 4), AWQSettings(), layers=("*.down_proj",), **QUIET)
