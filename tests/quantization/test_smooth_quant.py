"""SmoothQuant: the same function, activations and weights of equal size, and less to lose at 8 bits."""

import re

import pytest
import torch

from llmcourse.quantization.calibration import calibrate, linear_layers
from llmcourse.quantization.channel_scales import sites
from llmcourse.quantization.outliers import errors_by_scale, scaled_channels
from llmcourse.quantization.smooth_quant import smooth, smoothing_scale
from tests.quantization.real_text import NAMES, calibration_tokens, held_out_tokens, model_of

QUIET = {"progress": False}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_function_stays_and_statistics_follow(name, everywhere):
    model, tokens = model_of(name).double(), held_out_tokens(name)[:2, :64]
    before = model(tokens)
    found = calibrate(model, calibration_tokens(name, 4), **QUIET)
    scales = smooth(model, found, everywhere=everywhere)
    assert torch.allclose(model(tokens), before, rtol=1e-11, atol=1e-11)
    smoothed = {
        key for key in linear_layers(model) if everywhere or not key.endswith(("o_proj", "down_proj"))
    }
    assert set(scales) == smoothed and all((scale != 1).any() for scale in scales.values())
    for inputs, again in zip(found, calibrate(model, calibration_tokens(name, 4), **QUIET), strict=True):
        assert torch.allclose(inputs.abs_max, again.abs_max) and torch.allclose(inputs.hessian, again.hessian)


def test_with_a_half_each_channel_is_as_large_in_activations_as_in_weights():
    model = model_of("draft").double()
    found = calibrate(model, calibration_tokens("draft", 4), hessians=False, **QUIET)
    smooth(model, found)
    for site in sites(model):
        if site.of_norm:
            (inputs,) = (one for one in found if one.names[0] in site.readers)
            weights = torch.stack([reader.weight.abs().amax(0) for reader in site.readers.values()])
            assert torch.allclose(inputs.abs_max, weights.amax(0))


def test_alpha_says_who_bears_it():
    model = model_of("draft").double()
    (inputs, *_) = calibrate(model, calibration_tokens("draft", 4), hessians=False, **QUIET)
    site = sites(model)[0]
    assert torch.allclose(smoothing_scale(site, inputs.abs_max, 1.0), inputs.abs_max)
    weights = torch.stack([reader.weight.abs().amax(0) for reader in site.readers.values()]).amax(0)
    assert torch.allclose(smoothing_scale(site, inputs.abs_max, 0.0), 1 / weights)
    silent = inputs.abs_max.clone()
    silent[7] = 0
    assert smoothing_scale(site, silent, 0.5)[7] == 1
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=re.escape("alpha must be in [0, 1], got")):
            smooth(model, [inputs], alpha=alpha)


def test_outliers_cost_less_once_they_are_smoothed():
    model, tokens = scaled_channels(model_of("small"), 30.0, (3, 17)), calibration_tokens("small", 4)
    (before,) = errors_by_scale(model, tokens, (1.0,), ())
    smooth(model, calibrate(model, tokens, hessians=False, **QUIET))
    (after,) = errors_by_scale(model, tokens, (1.0,), ())
    assert after.token < 0.2 * before.token and after.tensor < 0.2 * before.tensor
