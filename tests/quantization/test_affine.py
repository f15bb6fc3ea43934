"""Rounding to a grid: the bound of S / 2, codes in range, round trips, and what is refused."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.quantization.affine import (
    GRANULARITIES,
    dequantize,
    quantization_error,
    quantize,
    quantize_weight,
)
from llmcourse.quantization.grid import code_range, nearest_codes, scale_and_zero_point, values
from llmcourse.quantization.quantized_tensor import BITS
from llmcourse.quantization.ranges import RANGE_METHODS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SLACK = 1 + 2**-13  # x / S is rounded to 24 bits, and 8 of them may stand before the point


@st.composite
def groups(draw, max_rows=3, max_size=8):
    """A few rows of numbers of one dtype, of any magnitude it has: 0, −0, constants and subnormals too."""
    dtype = draw(st.sampled_from(FLOATS))
    width = {torch.float16: 16, torch.float64: 64}.get(dtype, 32)
    exponent = draw(st.sampled_from([0, 0, -3, 4, math.inf, -math.inf]))
    info = torch.finfo(dtype)
    top = {math.inf: info.max, -math.inf: info.tiny * 0.75}.get(exponent, min(10.0**exponent, info.max))
    top = float(torch.tensor(top, dtype=dtype))
    number = st.one_of(
        st.floats(-top, top, width=width, allow_subnormal=True), st.sampled_from([0.0, -0.0, top, -top])
    )
    rows, size = draw(st.integers(1, max_rows)), draw(st.integers(1, max_size))
    x = [draw(st.lists(number, min_size=size, max_size=size)) for _ in range(rows)]
    if draw(st.booleans()):
        x[0] = [x[0][0]] * size  # a constant group
    return torch.tensor(x, dtype=dtype)


@settings(max_examples=400, deadline=None)
@given(groups(), st.sampled_from(BITS), st.sampled_from(["symmetric", "narrow", "asymmetric"]))
def test_each_number_of_the_range_is_within_half_a_step(x, bits, kind):
    found = quantize(
        x,
        bits=bits,
        granularity="token",
        symmetric=kind != "asymmetric",
        narrow_range=kind == "narrow",
    )
    assert found.scale.dtype == torch.promote_types(x.dtype, torch.float32)
    assert (found.scale > 0).all() and found.scale.isfinite().all()
    restored = found.dequantized().double()
    step = found.scale.double()[:, None]
    rounding = (
        torch.finfo(found.scale.dtype).eps * restored.abs() + torch.finfo(found.scale.dtype).tiny * 1e-7
    )
    within = (x.double() - restored).abs() <= step / 2 * SLACK + rounding
    saturated = restored.abs() == torch.finfo(found.scale.dtype).max
    assert (within | saturated).all() and (saturated <= (x.double().abs() > restored.abs() * 0.6)).all()
    least, most = code_range(bits, kind == "narrow")
    assert found.codes.dtype == torch.int8
    assert found.codes.min() >= least and found.codes.max() <= most
    assert dequantize(found).equal(found.dequantized())


@settings(max_examples=200, deadline=None)
@given(groups(), st.sampled_from(BITS), st.booleans())
def test_a_weights_scales_in_its_own_dtype_cover_its_range(x, bits, symmetric):
    """Rounded down, they would leave the largest number more than half a step out."""
    weight = quantize_weight(x, bits, symmetric=symmetric)
    assert weight.scale.dtype == x.dtype and weight.group_size == x.shape[1] and weight.bits == bits
    exact = values(weight.codes, weight.scale.double(), weight.zero_point)
    error = (x.double() - exact).abs()
    assert (error <= weight.scale.double() / 2 * SLACK).all()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(BITS),
    st.sampled_from(FLOATS),
    st.floats(1e-3, 200),  # 255 such steps are a number of fp16
    st.integers(-(2**7), 2**7 - 1),
)
def test_points_of_the_grid_come_back_exactly(bits, dtype, step, zero_point):
    least, most = code_range(bits)
    scale = torch.tensor(step, dtype=dtype)
    zero_point = torch.tensor(max(least, min(most, zero_point)), dtype=torch.int8)
    codes = torch.arange(least, most + 1, dtype=torch.int8)
    for z in (None, zero_point):
        # Behind 7 bits and a sign, bf16 has no room for q − Z: it rounds 159 S to 160 S.
        wide = torch.float32 if dtype == torch.bfloat16 and bits == 8 else dtype
        x = values(codes, scale, z, wide)
        assert nearest_codes(x, scale, z, bits).equal(codes)
        assert values(nearest_codes(x, scale, z, bits), scale, z, wide).equal(x)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_quantizing_again_changes_nothing(bits, symmetric):
    """A grid whose ends are in use has the range that it was made for."""
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    settings = {"bits": bits, "symmetric": symmetric, "granularity": "token", "narrow_range": symmetric}
    once = quantize(x, **settings)
    again = quantize(once.dequantized(), **settings)
    assert again.codes.equal(once.codes)
    torch.testing.assert_close(again.dequantized(), once.dequantized(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(bits, symmetric, method):
    x = torch.tensor([[0.0, -0.0, 0.0, 0.0], [0.0, 1.0, -0.0, 3.0]])
    found = quantize(x, bits=bits, symmetric=symmetric, range_method=method, granularity="token")
    restored = found.dequantized()
    assert (restored[0] == 0).all() and (restored[1, [0, 2]] == 0).all() and restored[1, 3] > 1.5
    assert found.scale[0] == 1


@pytest.mark.parametrize("constant", [1e-42, 3.0, -3.0, 1e38])
def test_constant_and_one_element_groups(constant):
    for x in (torch.full((2, 4), constant), torch.tensor([[constant]])):
        exact = quantize(x, bits=4, narrow_range=True, granularity="token").dequantized()
        torch.testing.assert_close(exact, x, rtol=0 if abs(constant) < 1e-38 else 1e-6, atol=1e-44)
        asymmetric = quantize(x, bits=4, symmetric=False, granularity="token")
        torch.testing.assert_close(asymmetric.dequantized(), x, rtol=1e-6, atol=8e-45)
        wide = quantize(x, bits=4, granularity="token")
        assert ((wide.dequantized() - x).abs() <= wide.scale.max() / 2 * SLACK).all()


def test_what_shares_a_scale():
    x = torch.arange(1.0, 25).reshape(2, 3, 4)
    by = {
        kind: quantize(x, granularity=kind, group_size=2 if kind == "group" else None)
        for kind in GRANULARITIES
    }
    assert {kind: tuple(found.scale.shape) for kind, found in by.items()} == {
        "tensor": (),
        "channel": (2,),
        "token": (2, 3),
        "group": (2, 3, 2),
    }
    step = 127.5
    assert by["tensor"].scale.item() == pytest.approx(24 / step)
    assert by["channel"].scale.tolist() == pytest.approx([12 / step, 24 / step])
    assert by["token"].scale.flatten().tolist() == pytest.approx([n / step for n in range(4, 25, 4)])
    assert by["group"].scale.flatten().tolist() == pytest.approx([n / step for n in range(2, 25, 2)])
    assert by["tensor"].bits_per_number == 8 + 32 / 24 and by["group"].bits_per_number == 8 + 32 / 2


def test_groups_are_pieces_of_a_row_as_quantized_tensors_have_them():
    w = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight = quantize_weight(w, 4, 4, symmetric=False)
    for row in range(3):
        for group in range(2):
            piece = slice(4 * group, 4 * group + 4)
            alone = quantize(w[row, piece], bits=4, symmetric=False)
            assert alone.codes.equal(weight.codes[row, piece])
            assert (
                alone.scale == weight.scale[row, group] and alone.zero_point == weight.zero_point[row, group]
            )
            assert alone.dequantized().equal(weight.dequantized()[row, piece])


def test_by_hand():
    found = quantize(torch.tensor([-1.0, 0.0, 0.5, 2.0]), bits=2, symmetric=False)
    assert (found.scale, found.zero_point) == (1, -1) and found.codes.tolist() == [-2, -1, -1, 1]
    found = quantize(torch.tensor([-1.5, 0.0, 0.4, 0.6, 1.5]), bits=2)
    assert found.scale == 1 and found.codes.tolist() == [-2, 0, 0, 1, 1] and found.zero_point is None
    found = quantize(torch.tensor([-1.5, 0.0, 0.4, 0.8, 1.5]), bits=2, narrow_range=True)
    assert found.scale == 1.5 and found.codes.tolist() == [-1, 0, 0, 1, 1]
    assert quantization_error(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])) == 4.25


@settings(max_examples=100, deadline=None)
@given(groups(), st.sampled_from(BITS))
def test_a_sign_changes_signs_alone(x, bits):
    found, mirrored = (quantize(y, bits=bits, narrow_range=True) for y in (x, -x))
    assert mirrored.scale.equal(found.scale) and mirrored.codes.equal(-found.codes)


def test_inputs_stay_as_they_were():
    x = torch.randn(4, 4)
    before = x.clone()
    quantize_weight(x, 4, 2, False, "mse")
    assert x.equal(before)


def test_dequantizing_saturates():
    """At the very end of a dtype, the nearest point may lie beyond it."""
    codes, scale = torch.tensor([-2, -1, 0, 1], dtype=torch.int8), torch.tensor(43648.0, dtype=torch.float16)
    assert values(codes, scale, None).tolist() == [-65504, -43648, 0, 43648]
    assert values(codes, scale.float(), None).tolist() == [-87296, -43648, 0, 43648]
    assert values(codes, scale.float(), None, torch.float16).tolist() == [-65504, -43648, 0, 43648]


def test_finer_granularity_loses_less():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 64, generator=generator) * torch.rand(4, 16, 64, generator=generator).exp() ** 2
    x *= torch.tensor([0.1, 1, 3, 10])[:, None, None] * torch.rand(16, 1, generator=generator)
    sizes = [None, None, None, 16]
    for bits in BITS:
        found = [
            quantize(x, bits=bits, granularity=kind, group_size=size)
            for kind, size in zip(GRANULARITIES, sizes, strict=True)
        ]
        errors = [quantization_error(x, codes.dequantized()) for codes in found]
        assert all(finer < coarser for coarser, finer in itertools.pairwise(errors))
        held = [codes.bits_per_number for codes in found]
        assert held == sorted(held)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_refused_with_the_layers_name(broken, dtype):
    w = torch.ones(2, 4, dtype=dtype)
    w[1, 2] = broken
    layer = "model.layers.3.mlp.down_proj"
    message = (
        rf"the tensor of {layer} must be finite, got {broken} at \[1, 2\], one of 1 such numbers; no scale"
    )
    with pytest.raises(ValueError, match=message):
        quantize_weight(w, 4, name=layer)
    with pytest.raises(ValueError, match=r"^x must be finite, got .* at \[1, 2\]"):
        quantize(w)
    with pytest.raises(ValueError, match=r"^x must be finite, got nan at its only number"):
        quantize(torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1"),
        ({"bits": 9}, "bits must be one of .*, got 9"),
        ({"bits": True}, "bits must be one of .*, got True"),
        ({"granularity": "group"}, "group_size must be given for groups alone, got None"),
        ({"group_size": 2}, "group_size must be given for groups alone, got 2"),
        (
            {"granularity": "group", "group_size": 4},
            "group_size must divide the 6 columns, got 4; these do: 1, 2, 3",
        ),
        ({"symmetric": False, "narrow_range": True}, "narrow_range must be False for asymmetric codes"),
        ({"percentile": 0.0, "range_method": "percentile"}, r"percentile must be in \(0, 100\], got 0.0"),
        ({"percentile": 101.0, "range_method": "percentile"}, r"percentile must be in \(0, 100\], got 101.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize.__wrapped__(torch.ones(2, 6), **arguments)


@pytest.mark.parametrize("name", ["granularity", "range_method"])
def test_what_does_not_exist_is_refused_with_a_list(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of '.*', got 'magic'; choose one"):
        quantize.__wrapped__(torch.ones(2, 6), **{name: "magic"})


def test_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"x must be at least one number, got shape \(0, 3\)"):
        quantize(torch.ones(0, 3))
    with pytest.raises(ValueError, match="x must be a tensor of rows, got one number"):
        quantize(torch.tensor(1.0), granularity="token")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(5), r"be a matrix, \(N, K\), got shape \(5,\); pass that of an nn\.Linear"),
        (torch.ones(2, 3, 4), r"be a matrix, \(N, K\), got shape \(2, 3, 4\)"),
        ([[1.0, 2.0]], "be a tensor, got a list; pass that"),
        (torch.ones(2, 4, dtype=torch.int64), r"be in a floating-point dtype, got torch\.int64; convert it"),
    ],
)
def test_what_is_no_weight_is_refused_as_such(weight, message):
    with pytest.raises(ValueError, match=f"w, the weight, must {message}"):
        quantize_weight(weight, 4)
    with pytest.raises(ValueError, match=rf"the weight of a\.b must {message}"):
        quantize_weight(weight, 4, name="a.b")


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"x must be a tensor, got a list; pass torch\.tensor"):
        quantize([1.0, 2.0])


def test_a_scale_beyond_its_dtype_is_refused_with_the_layers_name():
    w = torch.full((1, 2), 1e38)
    message = r"the tensor of lm_head must have scales within torch.float16, got a magnitude of 1e\+38, whose"
    with pytest.raises(ValueError, match=message):
        quantize_weight(w, 8, name="lm_head", scale_dtype=torch.float16)
    assert quantize_weight(w, 8, scale_dtype=torch.bfloat16).scale.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_are_the_least_that_cover_the_range(dtype):
    high = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e-3
    scale, _ = scale_and_zero_point(-high, high, 4, dtype=dtype)
    below = scale.double() * (1 - torch.finfo(dtype).eps * 0.6)  # the number before, or halfway to it
    assert (scale.double() * 7.5 >= high * (1 - 1e-15)).all()
    assert (below.to(dtype).double() * 7.5 < high * (1 + 1e-15)).all()
