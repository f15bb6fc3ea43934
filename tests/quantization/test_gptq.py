"""GPTQ against the algorithm column by column, against elimination, brute force and rounding."""

import itertools
import re

import pytest
import torch

from llmcourse.model import Decoder, DecoderConfig
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.calibration import calibrate, layer_by_layer, linear_layers, place_values
from llmcourse.quantization.gptq import (
    GPTQSettings,
    _Walk,
    gptq,
    gptq_codes,
    gptq_model,
    gptq_reference,
)
from llmcourse.quantization.hessian import damped, inverse_factor, output_error
from tests.quantization.real_text import NAMES, calibration_tokens, model_of, perplexity

QUIET = {"progress": False}


def problem(rows: int, columns: int, *, tokens: int = 200, mix: float = 0.5, seed: int = 0):
    """A weight and a Hessian of channels that are mixed, so that errors can make up for each other."""
    torch.manual_seed(seed)
    mixed = torch.eye(columns) + mix * torch.randn(columns, columns)
    x = (torch.randn(tokens, columns) @ mixed).double()
    return torch.randn(rows, columns, dtype=torch.float64), 2 * x.T @ x


def loss_of(weight, quantized, hessian) -> float:
    return output_error(quantized.dequantized() - weight, hessian).sum().item()


def by_elimination(weight, hessian, settings) -> torch.Tensor:
    """Codes by the update of the inverse itself, as Optimal Brain Surgeon has it (equations 2 and 3)."""
    inverse = torch.linalg.inv(damped(hessian, settings.damping))
    left, free = weight.clone(), list(range(weight.shape[1]))
    grid = quantize_weight(weight, settings.bits, None, settings.symmetric)
    codes = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        scale = grid.scale[:, 0]
        zero = 0 if grid.zero_point is None else grid.zero_point[:, 0].double()
        codes[:, j] = ((left[:, j] / scale).round() + zero).clamp(
            -(2 ** (settings.bits - 1)), 2 ** (settings.bits - 1) - 1
        )
        error = (left[:, j] - scale * (codes[:, j] - zero)) / inverse[j, j]
        free.remove(j)
        left[:, free] -= error[:, None] * inverse[j, free]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_columns_are_eliminated_as_by_the_surgeon(bits, symmetric):
    weight, hessian = problem(7, 20)
    settings = GPTQSettings(bits, symmetric=symmetric)
    found = gptq_reference(weight, hessian, settings)
    assert torch.equal(found.codes.double(), by_elimination(weight, hessian, settings))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("columns", "group_size"),
    [(300, None), (256, 64), (256, 128), (300, 150), (130, 13), (7, None), (1, 1), (60, 4)],
)
def test_blocks_give_the_codes_of_single_columns(columns, group_size, symmetric, act_order):
    """Symmetric ranges end a little below the largest number: by min–max that would be half way between two
    codes, where the last bit decides."""
    weight, hessian = problem(9, columns, tokens=2 * columns + 8)
    ranges = "percentile" if symmetric else "minmax"
    settings = GPTQSettings(3, group_size, symmetric, ranges, act_order)
    found, truth = (way(weight, hessian, settings) for way in (gptq_codes, gptq_reference))
    assert torch.equal(found.codes, truth.codes)
    assert torch.allclose(found.scale, truth.scale)
    assert symmetric == (found.zero_point is None) == (truth.zero_point is None)
    assert symmetric or torch.equal(found.zero_point, truth.zero_point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_narrow_dtypes_the_loss_is_that_of_single_columns_within_a_thousandth(dtype):
    weight, hessian = problem(64, 256, tokens=600)
    weight = weight.to(dtype)
    settings = GPTQSettings(4, 64)
    found, truth = (way(weight, hessian.float(), settings) for way in (gptq_codes, gptq_reference))
    assert found.scale.dtype == dtype
    assert (found.codes != truth.codes).float().mean() < 0.01
    loss, expected = (loss_of(weight.double(), q, hessian) for q in (found, truth))
    assert loss < 1.001 * expected


def test_act_order_begins_with_the_largest_diagonal_and_keeps_groups_of_neighbours():
    """As if the columns had been ordered before, but for the groups, whose scales are of the plain weight."""
    weight, hessian = problem(6, 24)
    order = hessian.diagonal().argsort(descending=True)
    found = gptq_codes(weight, hessian, GPTQSettings(3, act_order=True))
    ordered = gptq_codes(weight[:, order], hessian[order][:, order], GPTQSettings(3))
    assert torch.equal(found.codes[:, order], ordered.codes)
    grouped = gptq_codes(weight, hessian, GPTQSettings(3, 8, act_order=True))
    assert torch.equal(grouped.scale, quantize_weight(weight, 3, 8).scale)


def test_scales_of_later_groups_are_of_what_is_left_of_the_weight():
    weight, hessian = problem(6, 24)
    found, plain = gptq_codes(weight, hessian, GPTQSettings(2, 8)), quantize_weight(weight, 2, 8)
    assert torch.equal(found.scale[:, 0], plain.scale[:, 0])
    assert not torch.isclose(found.scale[:, 1:], plain.scale[:, 1:]).any()


@pytest.mark.parametrize("act_order", [False, True])
def test_without_correlation_it_is_rounding(act_order):
    weight, _ = problem(5, 40)
    hessian = torch.diag(torch.rand(40, dtype=torch.float64) + 0.1)
    found = gptq_codes(weight, hessian, GPTQSettings(3, act_order=act_order))
    assert torch.equal(found.codes, quantize_weight(weight, 3).codes)


def test_a_loss_is_that_of_all_errors_and_bounded_where_nothing_is_clipped():
    """½ Σ e² ≤ Σ s² / (8 U_jj²), damping included; wide ranges clip nothing."""
    for seed in range(20):
        weight, hessian = problem(4, 16, seed=seed)
        weight[:, 0] = 20 * weight[:, 0].sign()  # what sets the range
        settings = GPTQSettings(6)
        whole = damped(hessian, settings.damping)
        found = gptq_codes(weight, hessian, settings)
        assert found.codes[:, 1:].abs().max() < 31, "nothing is clipped"
        loss = output_error(found.dequantized() - weight, whole)
        bound = (found.scale[:, 0].square()[:, None] / (8 * inverse_factor(whole).diagonal().square())).sum(1)
        clipped = (found.dequantized() - weight)[:, 0].abs() > found.scale[:, 0] / 2 * (1 + 1e-9)
        assert (loss[~clipped] <= bound[~clipped]).all()
        assert not clipped.any()


def brute_force(weight, hessian, scale: float, bits: int) -> float:
    """The least loss of all codes of one row."""
    levels = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    codes = torch.tensor(list(itertools.product(levels, repeat=weight.shape[1])), dtype=weight.dtype)
    return output_error(scale * codes - weight, hessian).min().item()


def ratios_to_optimum(find, bits: int) -> torch.Tensor:
    """Loss over the optimum's, of 100 rows of four weights."""
    found = []
    for seed in range(100):
        weight, hessian = problem(1, 4, tokens=64, mix=0.2, seed=seed)
        quantized = find(weight, hessian)
        optimum = brute_force(weight, hessian, quantized.scale.item(), bits)
        found.append(loss_of(weight, quantized, hessian) / optimum)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("bits", [2, 3])
def test_tiny_problems_are_solved_as_by_trying_all_codes_or_nearly(bits):
    """Greedy is not optimal. With act-order, of rows of four weights with channels mixed by a fifth: the
    optimum itself in at least 70 per cent, its loss within 10 per cent on average, and never below."""
    settings = GPTQSettings(bits, act_order=True, damping=1e-4)
    ratios = ratios_to_optimum(lambda w, h: gptq(w, h, settings).quantized, bits)
    assert ratios.min() > 1 - 1e-9
    assert (ratios < 1 + 1e-9).double().mean() >= 0.7 and ratios.mean() <= 1.10
    rounding = ratios_to_optimum(lambda w, h: quantize_weight(w, bits), bits)
    assert (rounding < 1 + 1e-9).double().mean() < 0.6 and rounding.mean() > 1.2, "the test can fail"


def test_each_row_keeps_the_better_of_gptq_and_rounding():
    better = 0
    for seed in range(30):
        weight, hessian = problem(8, 6, seed=seed)
        settings = GPTQSettings(2, 3, symmetric=False)
        plain, greedy = quantize_weight(weight, 2, 3, symmetric=False), gptq_codes(weight, hessian, settings)
        found = gptq(weight, hessian, settings)
        of_plain, of_greedy, of_found = (
            output_error(q.dequantized() - weight, hessian) for q in (plain, greedy, found.quantized)
        )
        assert torch.allclose(of_found, torch.minimum(of_plain, of_greedy))
        assert found.loss == pytest.approx(of_found.sum().item())
        assert found.rounding_loss == pytest.approx(of_plain.sum().item())
        assert found.rounded_rows == (of_greedy > of_plain).sum()
        better += found.rounded_rows
    assert better > 0, "the case arises"


def test_zeros_are_rounded_to_zero_and_an_input_of_zeros_leaves_rounding():
    weight, hessian = problem(4, 12)
    weight[1], weight[:, 4:8] = 0, 0
    for settings in (GPTQSettings(3, 4), GPTQSettings(3, 4, symmetric=False, act_order=True)):
        found = gptq(weight, hessian, settings).quantized
        assert (found.scale > 0).all() and torch.isfinite(found.dequantized()).all()
        assert not found.dequantized()[1].any()
    found = gptq(weight, torch.zeros(12, 12, dtype=torch.float64), GPTQSettings(3, 4))
    assert torch.equal(found.quantized.codes, quantize_weight(weight, 3, 4).codes) and found.loss == 0


def test_a_channel_that_the_text_never_used_is_rounded():
    weight, hessian = problem(4, 12)
    hessian[5], hessian[:, 5] = 0, 0
    found, plain = gptq_codes(weight, hessian, GPTQSettings(4)), quantize_weight(weight, 4)
    assert torch.equal(found.codes[:, 5], plain.codes[:, 5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 9}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9"),
        ({"bits": 1}, "bits must be one of"),
        ({"damping": 0.0}, "damping must be in (0, 1], got 0.0; use 0.01"),
        ({"damping": 2.0}, "damping must be in (0, 1], got 2.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GPTQSettings(**settings)


def test_what_does_not_fit_is_refused_by_name():
    weight, hessian = problem(4, 12)
    with pytest.raises(
        ValueError, match=r"group_size must divide the 12 columns, got 5; these do: 1, 2, 3, 4"
    ):
        gptq(weight, hessian, GPTQSettings(4, 5))
    with pytest.raises(
        ValueError, match=re.escape("hessian must have shape (12, 12) for 12 columns, got (11, 11)")
    ):
        _Walk.begin(weight, hessian[1:, 1:], GPTQSettings(), None)
    for value in (torch.nan, torch.inf):
        broken = weight.clone()
        broken[2, 3] = value
        with pytest.raises(ValueError, match=r"the weight of a\.b must be finite, got (nan|inf) at \[2, 3\]"):
            gptq(broken, hessian, GPTQSettings(), "a.b")
        with pytest.raises(ValueError, match=r"the Hessian of a\.b must be finite"):
            gptq(weight, hessian * value, GPTQSettings(), "a.b")


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", NAMES)
def test_on_real_layers_the_loss_is_below_that_of_rounding(name, bits):
    """Of every layer, in every row; the greedy codes alone are so for every layer too."""
    model, settings = model_of(name), GPTQSettings(bits, 32 if bits < 8 else None)
    results = gptq_model(model, calibration_tokens(name), settings, **QUIET)
    assert set(results) == set(linear_layers(model_of(name)))
    assert [n for n, result in results.items() if result.loss >= 0.8 * result.rounding_loss] == []
    linears = linear_layers(model_of(name))
    for inputs in calibrate(model_of(name), calibration_tokens(name), **QUIET):
        for layer in inputs.names:
            weight = linears[layer].weight
            ways = (
                gptq_codes(weight, inputs.hessian, settings),
                quantize_weight(weight, bits, settings.group_size),
            )
            greedy, plain = (output_error(q.dequantized() - weight, inputs.hessian).sum() for q in ways)
            assert greedy < plain


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_with_its_codes_and_layers_saw_those_before_them(name):
    model, settings = model_of(name), GPTQSettings(3, 32)
    results = gptq_model(model, calibration_tokens(name), settings, **QUIET)
    for layer, linear in linear_layers(model).items():
        assert torch.equal(linear.weight, results[layer].quantized.dequantized())
    steps = layer_by_layer(model_of(name), calibration_tokens(name), **QUIET)
    first, second = next(steps), next(steps)
    assert results["model.layers.0.self_attn.o_proj"].rounding_loss == pytest.approx(
        rounding_loss(model_of(name), first[1]), rel=1e-4
    )
    again = calibrate(model, calibration_tokens(name), **QUIET)
    later = next(inputs for inputs in again if inputs.names[0] == "model.layers.1.self_attn.q_proj")
    found = sum(results[layer].rounding_loss for layer in later.names)
    assert found == pytest.approx(rounding_loss(model_of(name), later), rel=1e-5)
    assert found != pytest.approx(rounding_loss(model_of(name), second[0]), rel=1e-4), "of the plain model"


def rounding_loss(model: Decoder, inputs) -> float:
    weights = [linear_layers(model)[name].weight for name in inputs.names]
    rounded = [quantize_weight(weight, 3, 32).dequantized() - weight for weight in weights]
    return sum(output_error(difference, inputs.hessian).sum().item() for difference in rounded)


@pytest.mark.parametrize("name", NAMES)
def test_at_three_bits_perplexity_is_between_that_of_16_bits_and_of_rounding(name):
    whole, rounded, model = model_of(name), model_of(name), model_of(name)
    for layer, linear in linear_layers(rounded).items():
        place_values(layer, linear, quantize_weight(linear.weight, 3, 32))
    gptq_model(model, calibration_tokens(name), GPTQSettings(3, 32), **QUIET)
    ours = perplexity(model, name)
    assert 1.05 * perplexity(whole, name) < ours < 0.8 * perplexity(rounded, name)


def test_a_layer_that_is_not_finite_is_refused_by_its_own_name():
    shape = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 4}
    model = Decoder(DecoderConfig(**shape, num_kv_heads=2, head_dim=4, max_position_embeddings=64))
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the weight of model\.layers\.0\.self_attn\.o_proj must be finite"):
        gptq_model(model, torch.zeros(4, 16, dtype=torch.long), GPTQSettings(), layers=("*.o_proj",), **QUIET)


def test_a_caller_may_place_the_codes_itself():
    model, placed = model_of("draft"), {}
    before = {name: linear.weight.clone() for name, linear in linear_layers(model).items()}
    layers = ("model.layers.1.*", "lm_head")
    results = gptq_model(
        model,
        calibration_tokens("draft"),
        GPTQSettings(8),
        layers=layers,
        place=lambda name, linear, quantized: placed.update({name: (linear, quantized)}),
        **QUIET,
    )
    assert list(placed) == list(results) and len(placed) == 8
    assert all(quantized is results[name].quantized for name, (_, quantized) in placed.items())
    assert all(torch.equal(linear.weight, before[name]) for name, linear in linear_layers(model).items())
