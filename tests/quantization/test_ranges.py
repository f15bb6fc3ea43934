"""Ranges: percentiles as NumPy has them, and the least squared error of all that were tried."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.quantization import ranges
from llmcourse.quantization.affine import quantization_error, quantize, quantize_weight
from llmcourse.quantization.quantized_tensor import BITS
from llmcourse.quantization.ranges import MSE_RATIOS, min_max, mse_range, percentile_range


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_min_max():
    x = torch.tensor([[3.0, -1.0, 2.0], [5.0, 5.0, 5.0]])
    assert [end.tolist() for end in min_max(x)] == [[-1, 5], [3, 5]]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.floats(0.5, 100), st.booleans(), st.integers(0, 1000))
def test_percentiles_are_those_of_numpy(rows, size, percentile, symmetric, seed):
    x = normal(rows, size, seed=seed, dtype=torch.float64)
    low, high = percentile_range(x, percentile, symmetric=symmetric)
    if symmetric:
        expected = np.percentile(x.abs().numpy(), percentile, axis=1)
        expected = -expected, expected
    else:
        tails = [(100 - percentile) / 2, (100 + percentile) / 2]
        expected = np.percentile(x.numpy(), tails, axis=1)
    np.testing.assert_allclose(low.numpy(), expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(high.numpy(), expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_per_cent_are_min_max(symmetric):
    x = normal(5, 33)
    low, high = percentile_range(x, 100.0, symmetric=symmetric)
    least, most = min_max(x)
    if symmetric:
        most = torch.maximum(-least, most)
        least = -most
    assert low.equal(least) and high.equal(most)


def test_a_group_that_is_nearly_empty_keeps_what_it_has():
    """Its percentile is 0; with a step of 1, all of it would be rounded away."""
    x = torch.zeros(2, 1000)
    x[0, 7] = 0.01
    for symmetric in (True, False):
        settings = {"granularity": "token", "range_method": "percentile", "symmetric": symmetric}
        restored = quantize(x, percentile=99.0, **settings).dequantized()
        assert restored[0, 7] == pytest.approx(0.01, rel=0.01) and restored.count_nonzero() == 1


def test_clipping_an_outlier_helps_all_others():
    x = normal(1, 4096)
    x[0, 5] = 100.0
    settings = {"bits": 8, "granularity": "token", "percentile": 99.9}
    wide, clipped = (quantize(x, range_method=m, **settings).dequantized() for m in ("minmax", "percentile"))
    others = torch.arange(4096) != 5
    error = [(x - restored)[0, others].square().mean().item() for restored in (wide, clipped)]
    assert error[1] < error[0] / 100 and abs(clipped[0, 5] - 100) > 90


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BITS),
    st.booleans(),
    st.sampled_from([1e-41, 1e-30, 1.0, 1e30]),
    st.integers(1, 20),
    st.integers(0, 1000),
)
def test_no_group_is_worse_than_by_min_max(bits, symmetric, magnitude, size, seed):
    x = normal(4, size, seed=seed) * magnitude
    x[0] = 0
    settings = {"bits": bits, "symmetric": symmetric, "granularity": "token"}
    found = [quantize(x, range_method=method, **settings).dequantized() for method in ("minmax", "mse")]
    errors = [((x - restored).double() / magnitude).square().sum(1) for restored in found]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_ratio_that_was_tried_is_better(bits, symmetric, dtype):
    """Group by group, ratio by ratio, with the scales as they are stored."""
    x = normal(3, 32, seed=bits)
    best = quantize_weight(x, bits, 16, symmetric, "mse", scale_dtype=dtype)
    for row in range(3):
        for piece in (slice(0, 16), slice(16, 32)):
            group = x[row, piece]
            errors = []
            for ratio in MSE_RATIOS:
                low, high = group.min() * ratio, group.max() * ratio
                grid = ranges.scale_and_zero_point(low, high, bits, symmetric=symmetric, dtype=dtype)
                codes = ranges.nearest_codes(group, *grid, bits)
                errors.append(quantization_error(group, ranges.values(codes, *grid, torch.float32)))
            stored = ranges.values(
                best.codes[row, piece],
                best.scale[row, piece.start // 16],
                None if symmetric else best.zero_point[row, piece.start // 16],
                torch.float32,
            )
            assert quantization_error(group, stored) == pytest.approx(min(errors), rel=1e-6)


def test_few_bits_want_shorter_ranges():
    """For a normal distribution the best range of 2, 3, 4 and 8 bits grows with the bits."""
    x = normal(1, 2**15)
    shares = [(mse_range(x, bits)[1] / x.amax()).item() for bits in (2, 3, 4, 8)]
    assert shares == sorted(shares) and shares[0] < 0.5 < 0.8 < shares[-1]


def test_pieces_of_the_search_are_joined_in_order(monkeypatch):
    x = normal(7, 12)
    whole = mse_range(x, 3)
    monkeypatch.setattr(ranges, "_CHUNK", 30)
    for end, expected in zip(mse_range(x, 3), whole, strict=True):
        assert end.equal(expected)


@pytest.mark.parametrize("kind", ["symmetric", "narrow", "asymmetric"])
@pytest.mark.parametrize("exponent", [-120, -60, 60, 120])
def test_the_search_knows_no_units(exponent, kind):
    """Squares of such numbers leave fp32, in either direction."""
    x, unit = normal(4, 32), 2.0**exponent
    settings = {"symmetric": kind != "asymmetric", "narrow_range": kind == "narrow"}
    for end, expected in zip(mse_range(x * unit, 3, **settings), mse_range(x, 3, **settings), strict=True):
        assert (end / unit).equal(expected) and not end.equal(min_max(x * unit)[0])


@pytest.mark.parametrize("method", ranges.RANGE_METHODS)
def test_narrow_ranges_by_every_method(method):
    x = normal(8, 64)
    found = quantize(x, bits=3, granularity="token", range_method=method, narrow_range=True, percentile=95.0)
    assert found.codes.min() == -3 and found.codes.max() == 3
