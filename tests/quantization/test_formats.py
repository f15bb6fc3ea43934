"""Formats: PyTorch's own casts, all code points, published levels, and scales of blocks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.quantization.affine import quantization_error, quantize
from llmcourse.quantization.formats import FORMATS, FP8_E4M3, FP8_E5M2, MXFP4, NF4, number_format

CASTS = [(FP8_E4M3, torch.float8_e4m3fn), (FP8_E5M2, torch.float8_e5m2)]
CAST_NAMES = ["e4m3", "e5m2"]
# Dettmers et al. 2023, appendix E: as computed there in single precision.
PUBLISHED_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


@pytest.mark.parametrize(("known", "dtype"), CASTS, ids=CAST_NAMES)
def test_all_code_points_are_those_of_pytorch(known, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    points, expected = known.values(codes), codes.view(dtype).float()
    assert points.nan_to_num(nan=1e9).equal(expected.nan_to_num(nan=1e9))
    assert points.signbit().equal(expected.signbit()) | points.isnan().any()
    assert known.largest == torch.finfo(dtype).max and known.bits == 8


@pytest.mark.parametrize(("known", "dtype"), CASTS, ids=CAST_NAMES)
@pytest.mark.parametrize("given_dtype", [torch.float16, torch.bfloat16])
def test_all_numbers_of_16_bits_are_cast_as_by_pytorch(known, dtype, given_dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(given_dtype)
    x = x[x.isfinite()]
    expected = x.float().to(dtype)
    inside = expected.float().isfinite()
    found = known.nearest(x)
    assert found[inside].equal(expected.view(torch.uint8)[inside])
    assert (known.values(found[~inside]) == known.largest * x[~inside].float().sign()).all()
    assert inside.sum() > len(x) / 4


@pytest.mark.parametrize("known", FORMATS.values(), ids=FORMATS)
def test_points_and_ties(known):
    """Every point is its own code, a number just off the middle goes to the nearer one, a tie to the even."""
    codes = torch.arange(len(known.points), dtype=torch.uint8)
    points = known.values(codes, torch.float64)
    real = points.isfinite()
    codes, points = codes[real], points[real]
    assert known.nearest(points).equal(codes)
    order = points[points != 0].sort().values
    order = torch.cat((order[order < 0], torch.zeros(1, dtype=torch.float64), order[order > 0]))
    below, above = order[:-1], order[1:]
    middle, off = (below + above) / 2, (above - below) * 1e-6
    assert known.values(known.nearest(middle - off), torch.float64).equal(below)
    assert known.values(known.nearest(middle + off), torch.float64).equal(above)
    assert (known.nearest(middle) % 2 == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(FORMATS.values())), st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9)
)
def test_nothing_is_nearer_than_the_nearest(known, numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    points = torch.tensor([p for p in known.points if math.isfinite(p)], dtype=torch.float64)
    found = known.values(known.nearest(x), torch.float64)
    assert (found - x).abs().equal((points - x[:, None]).abs().amin(1))


def test_the_levels_of_nf4_are_the_published_ones():
    torch.testing.assert_close(torch.tensor(NF4.points), torch.tensor(PUBLISHED_NF4), rtol=0, atol=2e-7)
    assert NF4.points[7] == 0 and list(NF4.points) == sorted(NF4.points)


def test_the_points_of_e2m1():
    assert MXFP4.points[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert MXFP4.points[8:] == tuple(-point for point in MXFP4.points[:8]) and MXFP4.largest == 6


def test_mxfp4_scales_are_powers_of_2_in_a_byte():
    largest = torch.tensor([1.0, 1.99, 4.0, 5.99, 6.0, 7.99, 8.0, 2.0**-100, 3e38, 1e-45, 0.0])
    x = torch.zeros(len(largest), 32)
    x[:, 3] = -largest
    found = MXFP4.encode(x)
    assert found.scale.shape == (11, 1) and found.scale.element_size() == 1
    powers = [-2, -2, 0, 0, 0, 0, 1, -102, 125, -127, 0]
    assert found.scale.view(torch.uint8).flatten().tolist() == [power + 127 for power in powers]
    restored = found.decoded()[:, 3]
    assert restored[:7].tolist() == [-1, -1.5, -4, -6, -6, -6, -8]  # 7.96 · 2^-2 and 7.99 are beyond 6
    assert found.bits_per_number == 4.25


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(FORMATS.values())),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([0.0, 1e-40, 1e-5, 1.0, 1e4, 1e37]),
    st.integers(0, 1000),
)
def test_errors_are_at_most_half_a_gap(known, dtype, magnitude, seed):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * magnitude
    x[1] = magnitude
    x = x.to(dtype).nan_to_num(posinf=torch.finfo(dtype).max, neginf=torch.finfo(dtype).min)
    found = known.encode(x)
    assert found.codes.shape == x.shape and found.scale.shape == (3, 64 // (known.block_size or 64))
    scale = found.scale.double().repeat_interleave(64 // found.scale.shape[1], 1)
    assert (scale > 0).all() and scale.isfinite().all()
    points = known.values(found.codes, torch.float64)
    assert points.isfinite().all()
    ordered = torch.tensor(sorted({p for p in known.points if math.isfinite(p)}), dtype=torch.float64)
    gap = torch.maximum(ordered[1:] - ordered[:-1], torch.zeros(1)).amax()
    largest = 8 if known is MXFP4 else known.largest
    assert (x.double().abs() <= scale * largest * (1 + 1e-6)).all()
    bound = torch.where(x.double().abs() > scale * known.largest, largest - known.largest, gap / 2)
    assert ((points * scale - x.double()).abs() <= scale * bound * (1 + 1e-6)).all()
    assert found.decoded(torch.float64).equal(points * scale)


@pytest.mark.parametrize("known", FORMATS.values(), ids=FORMATS)
def test_points_of_a_scaled_block_come_back_exactly(known):
    points = torch.tensor([p for p in known.points if math.isfinite(p)])
    points = torch.cat((points, points.new_zeros(-len(points) % 64))) * 0.25
    restored = known.encode(points[None], block_size=len(points)).decoded()
    assert restored.equal(points[None])


def test_what_formats_of_4_bits_lose():
    """On normal weights: NF4 less than a grid of 4 bits; FP8 keeps its relative error as x becomes small."""
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    by_grid = quantize(w, bits=4, granularity="group", group_size=64).dequantized()
    errors = [quantization_error(w, restored) for restored in (NF4.encode(w).decoded(), by_grid)]
    assert errors[0] < errors[1]
    x = torch.cat((w[:1], w[:1] * 1e-2), 1)
    restored = FP8_E4M3.encode(x).decoded(), quantize(x, bits=8).dequantized()
    small = [quantization_error(x[:, 512:], back[:, 512:]) for back in restored]
    assert small[0] < small[1] / 10


def test_decoding_saturates_and_keeps_the_dtype():
    x = torch.tensor([[65504.0, -65504.0]], dtype=torch.float16)
    for known in FORMATS.values():
        back = known.encode(x, block_size=2).decoded(torch.float16)
        assert back.dtype == torch.float16 and back.isfinite().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("known", FORMATS.values(), ids=FORMATS)
def test_what_is_not_finite_is_refused(known, broken):
    x = torch.ones(2, 64)
    x[1, 5] = broken
    with pytest.raises(ValueError, match=rf"the tensor of lm_head must be finite, got {broken} at \[1, 5\]"):
        known.encode(x, name="lm_head")


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="group_size must divide the 48 columns, got 32; these do: 1, 2, 3"):
        MXFP4.encode(torch.ones(2, 48))
    with pytest.raises(ValueError, match=r"x must be at least one number, got shape \(0, 32\)"):
        MXFP4.encode(torch.ones(0, 32))
    names = "'fp8_e4m3', 'fp8_e5m2', 'nf4', 'mxfp4'"
    with pytest.raises(
        ValueError, match=f"format must be one of {names}, got 'fp5'; integers of 2 to 8 bits"
    ):
        number_format("fp5")
    assert number_format("nf4") is NF4
