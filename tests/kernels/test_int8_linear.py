"""Layers that multiply in 8 bits: what they compute on a CPU, what they refuse, and how they are stacked."""

import re

import pytest
import torch
import torch.nn.functional as F

from llmcourse.kernels import scaled_linear
from llmcourse.kernels.fp8_linear import E4M3, Fp8Linear, fp8_matmul
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.outlier_columns import find_outliers
from llmcourse.kernels.quantize_rows import quantize_rows

N, K = 24, 40


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def coded(outputs: int = N, inputs: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, its codes and their scale."""
    weight = torch.randn(outputs, inputs) / inputs**0.5
    scale = weight.abs().amax(1) / 127
    return weight, (weight / scale[:, None]).round().to(torch.int8), scale


def layers(bias: bool = False) -> list:
    weight, codes, scale = coded()
    b = torch.randn(N) if bias else None
    fixed = {"columns": torch.tensor([3, 7]), "kept": weight[:, [3, 7]]}
    return [
        Int8Linear(codes, scale, b),
        Int8Linear(codes, scale[:, None], b, input_scale=0.03),
        MixedLinear(codes, scale, b),
        MixedLinear(codes, scale, b, **fixed),
        Fp8Linear.of(weight, b),
        Fp8Linear.of(weight, b, input_scale=0.01),
    ]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_near_the_one_it_stands_for(which, dtype):
    layer = layers(bias=True)[which]
    layer.bias = layer.bias.to(dtype)
    x = torch.randn(2, 5, K, dtype=dtype)
    y = layer(x)
    truth = F.linear(x.double(), layer.dequantized().double(), layer.bias.double())
    assert y.shape == (2, 5, N) and y.dtype == dtype
    error = (y.double() - truth).norm() / truth.norm()
    assert error < (0.05 if isinstance(layer, Fp8Linear) else 0.015)


@pytest.mark.parametrize("which", range(6))
def test_a_layer_with_norm_gate_and_residual_is_its_steps(which):
    layer = layers()[which]
    x, norm, residual = torch.randn(3, K), torch.rand(K) + 0.5, torch.randn(3, N // 2)
    gate, up = layer.product(F.rms_norm(x, norm.shape, norm, 1e-5)).chunk(2, dim=-1)
    found = layer.layer(x, norm=norm, eps=1e-5, gated=True, residual=residual)
    torch.testing.assert_close(found, F.silu(gate) * up + residual, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("which", range(6))
def test_what_follows_a_product_runs_by_the_backend_that_was_named(which, monkeypatch):
    asked = []
    ours = scaled_linear.swiglu
    monkeypatch.setattr(
        scaled_linear, "swiglu", lambda y, backend, pdl: asked.append(backend) or ours(y, backend="reference")
    )
    layers()[which].layer(torch.randn(3, K), gated=True, backend="reference")
    assert asked == ["reference"]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("bias", [False, True])
def test_stacked_layers_are_their_parts_side_by_side(which, bias):
    parts = [layers(bias)[which], layers(bias)[which]]
    if which == 3:
        parts[1].kept = torch.randn_like(parts[1].kept)
    x = torch.randn(4, K)
    whole = type(parts[0]).stacked(parts)
    torch.testing.assert_close(whole(x), torch.cat([part(x) for part in parts], dim=1))
    torch.testing.assert_close(whole.dequantized(), torch.cat([part.dequantized() for part in parts]))


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("bias", [False, True])
def test_parts_become_rows_of_the_stack_and_compute_what_they_did(which, bias):
    parts, x = [layers(bias)[which], layers(bias)[which]], torch.randn(4, K)
    before = [part(x) for part in parts]
    whole = type(parts[0]).stacked(parts)
    for number, part in enumerate(parts):
        part.become_rows(whole, number * N)
        assert torch.equal(part(x), before[number])
        assert part.codes.data_ptr() == whole.codes[number * N :].data_ptr()
        assert part.scale.data_ptr() == whole.scale[number * N :].data_ptr()


def test_parts_that_read_their_input_differently_are_not_stacked():
    _, codes, scale = coded()
    with pytest.raises(ValueError, match="parts must all have an input_scale or none, got one for 1 of 2"):
        Int8Linear.stacked([Int8Linear(codes, scale, input_scale=0.1), Int8Linear(codes, scale)])
    with pytest.raises(ValueError, match="parts must have one threshold"):
        MixedLinear.stacked([MixedLinear(codes, scale), MixedLinear(codes, scale, threshold=3.0)])
    columns = torch.tensor([1])
    with pytest.raises(ValueError, match="the same fixed columns"):
        MixedLinear.stacked([MixedLinear(codes, scale), MixedLinear(codes, scale, columns=columns)])
    with pytest.raises(ValueError, match="parts must be of one format"):
        Int8Linear.stacked([Int8Linear(codes, scale), MixedLinear(codes, scale)])
    both = Int8Linear.stacked([Int8Linear(codes, scale, input_scale=s) for s in (0.1, 0.3)])
    assert both.input_scale.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("which", range(6))
def test_a_layer_is_saved_and_loaded(which):
    layer, other = layers(True)[which], layers(True)[which]
    for buffer in other.buffers():
        buffer.view(torch.uint8).fill_(1)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, K)
    assert torch.equal(layer(x), other(x))


def test_what_a_product_reads_is_counted():
    layer = layers()[0]
    assert layer.shape == (N, K) and layer.nbytes == N * K + 4 * N


def test_a_single_outlier_makes_its_column_one_of_16_bits_for_all_rows():
    x = torch.randn(4, K)
    x[1, 9] = 50.0
    found = find_outliers(x)
    assert found.listed().tolist() == [9]
    codes, scale = quantize_rows(x, skipped=found.flags)
    assert not codes[:, 9].any()
    assert (scale < 6 / 127).all()


def of_int8(**given):
    _, codes, scale = coded()
    arguments = {"codes": codes, "scale": scale} | given
    return Int8Linear(arguments.pop("codes"), arguments.pop("scale"), **arguments)


def of_mixed(**given):
    _, codes, scale = coded()
    return MixedLinear(codes, scale, **given)


REFUSED = [
    (of_int8, {"scale": torch.ones(N, 2)}, "scale must have one number for each of the 24 outputs"),
    (of_int8, {"input_scale": 0.0}, "input_scale must be one positive number, got 0.0"),
    (of_int8, {"input_scale": float("nan")}, "input_scale must be one positive number, got nan"),
    (of_int8, {"input_scale": torch.ones(2)}, "input_scale must be one positive number"),
    (of_mixed, {"threshold": 0.0}, "threshold must be positive, got 0.0; 6.0 is the paper's"),
    (of_mixed, {"threshold": float("nan")}, "threshold must be positive, got nan"),
    (of_mixed, {"columns": torch.tensor([3, 1])}, "columns must ascend from 0 to at most 39, got [3, 1]"),
    (of_mixed, {"columns": torch.tensor([1, 1])}, "columns must ascend"),
    (of_mixed, {"columns": torch.tensor([40])}, "columns must ascend"),
    (of_mixed, {"kept": torch.ones(N, 1)}, "kept must come with columns"),
]


@pytest.mark.parametrize(("call", "given", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**given)


@pytest.mark.parametrize(
    ("kind", "numbers", "message"),
    [
        (Int8Tile, (8, 16, 32), "rows must be a power of 2 of at least 16, got 8"),
        (Int8Tile, (16, 16, 16), "columns must be a power of 2 of at least 32, got 16"),
        (Int8Tile, (16, 16, 32, 3), "warps must be one of"),
        (Int8Tile, (16, 16, 32, 4, 0), "stages must be at least 1, got 0"),
        (WideTile, (32,), "rows must be one of (64, 128), got 32"),
        (WideTile, (64, 100), "outputs must be one of"),
        (WideTile, (64, 256, 2, False, 1), "stages must be at least 2, got 1"),
        (WideTile, (64, 256, 2, False, 4, 2, 8, 20), "outliers must be one of (64, 128, 256), got 20"),
        (WideTile, (128, 256), "rows · outputs must be at most 16384, which registers hold, got 128 · 256"),
    ],
)
def test_a_tile_that_no_kernel_can_be_launched_with_is_refused(kind, numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(*numbers)


def test_e4m3_without_a_device_that_has_it_is_the_reference_or_an_error():
    weight = torch.randn(16, 32)
    layer = Fp8Linear.of(weight)
    codes, scale = quantize_rows(torch.randn(3, 32), codes=E4M3)
    arguments = (codes, scale, layer.codes, layer.scale, torch.float32)
    assert torch.equal(fp8_matmul(*arguments), fp8_matmul(*arguments, backend="reference"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="backend must be one that can run, got 'triton' on cpu"):
            fp8_matmul(*arguments, backend="triton")
    with pytest.raises(ValueError, match="codes must be in float8_e4m3fn"):
        Fp8Linear(torch.zeros(4, 4, dtype=torch.int8), torch.ones(4))


def test_a_row_that_is_not_finite_is_nan_in_e4m3_too():
    x = torch.randn(3, K)
    x[1, 2] = torch.inf
    y = Fp8Linear.of(torch.randn(16, K))(x)
    assert y.isnan().any(1).tolist() == [False, True, False]
