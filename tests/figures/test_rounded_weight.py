"""A rounded weight against what slow code finds: levels, clipping, error, usage of codes."""

import math

import pytest
import torch

from llmcourse.figures.rounded_weight import (
    GRANULARITIES,
    RoundedWeight,
    RoundingInputs,
    in_words,
    linear_weights,
    round_weight,
    some_rows,
    trade_offs,
)
from llmcourse.model import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def weight():
    w = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    w[3] *= 10
    return w


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_number_is_at_a_level_and_what_is_far_was_clipped(weight, granularity, symmetric, method):
    rounded = round_weight(weight, RoundingInputs(4, symmetric, granularity, method, 90.0))
    steps = rounded.codes.scale.float().reshape(-1, 1)
    off = ((weight - rounded.restored).abs().view(len(steps), -1) / steps).view_as(weight)
    assert off[~rounded.clipped].max() <= 0.53 and (off[rounded.clipped] > 0.5).all()
    assert method != "minmax" or rounded.share_clipped == 0
    if method == "percentile":
        assert 0.02 < rounded.share_clipped < 0.12
    assert rounded.error == pytest.approx(float((weight - rounded.restored).double().square().sum()))
    signal = float(weight.double().square().sum())
    assert rounded.snr_db == pytest.approx(10 * math.log10(signal / rounded.error))


@pytest.mark.parametrize("symmetric", [True, False])
def test_levels_are_those_of_the_group_with_the_median_scale(weight, symmetric):
    rounded = round_weight(weight, RoundingInputs(3, symmetric, "channel"))
    row = rounded.typical
    order = rounded.codes.scale.flatten().tolist()
    assert sorted(order)[len(order) // 2] == order[row] and row != 3
    assert len(rounded.levels) == 8 and rounded.levels == sorted(rounded.levels)
    levels = torch.tensor(rounded.levels)
    nearest = (rounded.restored[row, :, None] - levels).abs().amin(1)
    assert nearest.max() <= 1e-3 * rounded.step
    assert rounded.levels[1] - rounded.levels[0] == pytest.approx(rounded.step)


def test_usage_counts_every_code(weight):
    rounded = round_weight(weight, RoundingInputs(2))
    counted = [(rounded.codes.codes == q).double().mean().item() for q in range(-2, 2)]
    assert rounded.usage.tolist() == pytest.approx(counted)
    entropy = -sum(p * math.log2(p) for p in counted if p)
    assert rounded.entropy_bits == pytest.approx(entropy) and entropy < 2


def test_a_channel_that_is_wide_spoils_a_tensor(weight):
    whole, channel = (round_weight(weight, RoundingInputs(4, True, name)) for name in ("tensor", "channel"))
    assert whole.error > 2 * channel.error and whole.entropy_bits < channel.entropy_bits


def test_nothing_lost_is_endless():
    exact = torch.tensor([[-8.0, 7.0, 0.0, 1.0] * 8])
    rounded = round_weight(exact, RoundingInputs(8, False, "tensor"))
    whole = RoundedWeight(exact, exact.clone(), rounded.codes, rounded.clipped)
    assert whole.snr_db == math.inf and "SNR inf dB" in in_words(whole, RoundingInputs())


def test_curves_are_min_max_at_every_width(weight):
    curves = trade_offs(weight, True)
    assert list(curves) == list(GRANULARITIES)
    for name, points in curves.items():
        each = [round_weight(weight, RoundingInputs(bits, True, name)) for bits in range(2, 9)]
        assert points == [(one.bits_per_weight, one.snr_db) for one in each]
        assert [snr for _, snr in points] == sorted(snr for _, snr in points)
    assert curves["group of 32"][2][0] == 4.5 and trade_offs(weight, False)["group of 32"][2][0] == 4.75
    assert list(trade_offs(weight[:, :96], True)) == ["tensor", "channel", "group of 32"]


def test_some_rows_have_the_widest_among_them():
    weight = torch.randn(100, 10, generator=torch.Generator().manual_seed(1))
    weight[41, 2] = -50
    rows = some_rows(weight, 80)
    assert rows.shape == (8, 10) and rows[0].equal(weight[41]) and rows[4].equal(weight[50])
    assert some_rows(weight, 2000).equal(weight) and some_rows(weight, 3).equal(weight[41:42])


def test_layers_are_named_as_in_the_model():
    model = Decoder(DecoderConfig(12, 8, 8, 2, 1, 1, 8, 16))
    found = linear_weights(model)
    assert found["layers.1.mlp.down_proj"] is model.model.layers[1].mlp.down_proj.weight
    assert len(found) == 15 and "lm_head" in found
    matrix = torch.ones(2, 3)
    assert linear_weights({"a": matrix})["a"] is matrix


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: round_weight(w, RoundingInputs(granularity="row")), "granularity must be one of tensor"),
        (lambda w: round_weight(w, RoundingInputs(9)), "bits must be one of 2, 3"),
        (
            lambda w: round_weight(w[:, :40], RoundingInputs(granularity="group of 32")),
            "divide the 40 columns",
        ),
        (lambda w: linear_weights({}), "model must have at least 1 linear layer, got none"),
        (lambda w: linear_weights({"bias": w[0]}), r"bias must be a matrix, got shape \(128,\)"),
    ],
)
def test_what_cannot_be_rounded_is_refused(weight, call, message):
    with pytest.raises(ValueError, match=message):
        call(weight)
