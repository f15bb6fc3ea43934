"""Outliers: which columns are, that they can be made, and what they do to rounding."""

import itertools
import re

import pytest
import torch

from llmcourse.kernels.outlier_columns import find_outliers_reference
from llmcourse.quantization.calibration import calibrate
from llmcourse.quantization.outliers import (
    errors_by_scale,
    find_outliers,
    outlier_columns,
    rounded,
    rounded_mixed,
    scaled_channels,
)
from tests.quantization.real_text import NAMES, calibration_tokens, held_out_tokens, model_of

CHANNELS = (3, 17)


def found_in(model, name, **how):
    return find_outliers(calibrate(model, calibration_tokens(name, 4), hessians=False, progress=False), **how)


def test_columns_are_those_with_one_magnitude_at_the_threshold():
    x = torch.zeros(2, 3, 5)
    x[0, 1, 4], x[1, 2, 1], x[1, 1, 0] = -6.0, 7.0, 5.9
    assert outlier_columns(x).tolist() == [1, 4]
    assert outlier_columns(x, 5.9).tolist() == [0, 1, 4]
    assert outlier_columns(x, 8.0).tolist() == []


def test_a_threshold_between_two_numbers_of_a_narrow_dtype_is_not_rounded():
    x = torch.tensor([[6.0, 6.03125]], dtype=torch.bfloat16)
    assert outlier_columns(x, 6.01).tolist() == [1]
    assert find_outliers_reference(x, 6.01).listed().tolist() == [1]


@pytest.mark.parametrize("name", NAMES)
def test_embedded_models_have_few_behind_norms_and_made_ones_are_found(name):
    of_norm = [o for o in found_in(model_of(name), name) if o.names[0].endswith(("q_proj", "gate_proj"))]
    assert len(of_norm) == 2 * model_of(name).config.num_layers
    assert max(one.share for one in of_norm) < 0.25 and max(one.ratio for one in of_norm) < 4
    changed = found_in(scaled_channels(model_of(name), 100.0, CHANNELS), name, threshold=50.0)
    for one in changed:
        behind_norm = one.names[0].endswith(("q_proj", "gate_proj"))
        assert one.columns.tolist() == (list(CHANNELS) if behind_norm else [])
        assert not behind_norm or one.ratio > 20


@pytest.mark.parametrize("name", NAMES)
def test_made_outliers_leave_the_function_and_the_model_they_are_made_of(name):
    model, tokens = model_of(name).double(), held_out_tokens(name)[:2, :64]
    before, gain = model(tokens), model.model.layers[0].input_layernorm.weight.clone()
    changed = scaled_channels(model, 37.0, CHANNELS)
    assert torch.allclose(changed(tokens), before, rtol=1e-11, atol=1e-11)
    assert torch.equal(model.model.layers[0].input_layernorm.weight, gain)
    assert torch.allclose(changed.model.layers[0].input_layernorm.weight[3], 37 * gain[3])
    assert changed.lm_head.weight is changed.model.embed_tokens.weight


@pytest.mark.parametrize("name", NAMES)
def test_errors_grow_with_outliers_but_not_where_those_are_kept(name):
    """A channel as large as all others together costs a token's scale its digits: LLM.int8() keeps them."""
    found = errors_by_scale(model_of(name), calibration_tokens(name, 4), (1.0, 16.0, 64.0, 256.0), CHANNELS)
    for smaller, larger in itertools.pairwise(found):
        assert larger.token > 4 * smaller.token and larger.tensor > 2 * smaller.tensor
    assert all(one.token < one.tensor for one in found)
    assert all(one.mixed < 1.02 * found[0].mixed and one.mixed < one.token for one in found)
    assert found[0].outlier_share < found[-1].outlier_share < 0.05
    assert found[-1].token > 0.05, "nothing much is left"


def test_what_is_kept_is_kept_exactly_and_sets_no_scale():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 32)
    x[..., 5] *= 1000
    columns = torch.tensor([5])
    mixed = rounded_mixed(x, 8, columns)
    assert torch.equal(mixed[..., 5], x[..., 5])
    others = [column for column in range(32) if column != 5]
    assert torch.equal(mixed[..., others], rounded(x[..., others], 8, "token"))
    assert (mixed - x).abs().max() < 0.02 < 1 < (rounded(x, 8, "token") - x).abs().max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: scaled_channels(m, 0.0, (1,)), "factor must be positive and finite, got 0.0"),
        (lambda m: scaled_channels(m, float("inf"), (1,)), "factor must be positive and finite, got inf"),
        (lambda m: scaled_channels(m, 2.0, (1, 128)), "channels must be in [0, 128), got [128]"),
        (lambda m: outlier_columns(torch.ones(2, 2), 0.0), "threshold must be positive, got 0.0; use 6.0"),
        (lambda m: find_outliers([], -1.0), "threshold must be positive, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(model_of("draft"))
