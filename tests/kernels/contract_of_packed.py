"""The contract of layers in packed codes: the product with S (q − Z), and what surrounds it.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import itertools
import random as drawing

import pytest
import torch
import torch.nn.functional as F

from llmcourse.kernels.linear import linear_reference
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.packed_tiles import PackedTile
from tests.kernels.contract import DEVICE, DTYPES, PARTS, PDL, check, doubled, random, seeded  # noqa: F401

DRAWN, DRAWN_BY_KERNEL = (
    1000,
    1000 if DEVICE.type == "cuda" else 60,
)  # configurations; interpreted, they take time
SHAPES = ((8, 32, 32), (50, 96, 8), (33, 128, 128), (1, 40, 40), (17, 100, 5), (80, 64, 32), (24, 256, 64))
TILES = (None, PackedTile(16, 16, 4, 2), PackedTile(64, 32, 4, 2))


def layer_of(
    outputs: int, inputs: int, group: int, bits: int, zeros: bool, dtype: torch.dtype, bias: bool = False
) -> PackedLinear:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (outputs, inputs), dtype=torch.int8, device=DEVICE)
    groups = (outputs, inputs // group)
    scale = (0.5 + torch.rand(groups, device=DEVICE)) * 2 / (2**bits * inputs**0.5)
    zero_point = torch.randint(low, high, groups, dtype=torch.int8, device=DEVICE) if zeros else None
    given = random(outputs, dtype=dtype) if bias else None
    return PackedLinear.of(codes, scale, zero_point, bits=bits, group_size=group, bias=given, dtype=dtype)


def truth_of(layer: PackedLinear) -> torch.Tensor:
    """W in float64, from codes, scales and zero points."""
    q = layer.codes.double()
    if layer.zero_point is not None:
        q = q - layer.zero_point.double().repeat_interleave(layer.group_size, dim=1)
    return q * layer.scale.double().repeat_interleave(layer.group_size, dim=1)


def check_layer(
    layer: PackedLinear, parts: str, rows: int, dtype: torch.dtype, pdl: bool, tiles: tuple
) -> None:
    has_norm, gated, _, has_residual = PARTS[parts]
    outputs, inputs = layer.out_features // (1 + gated), layer.in_features
    x = random(rows, inputs, dtype=dtype)
    given = {
        "norm": random(inputs, dtype=dtype).abs() if has_norm else None,
        "residual": random(rows, outputs, dtype=dtype) if has_residual else None,
        "gated": gated,
    }
    weight = truth_of(layer)
    bias = layer.bias
    truth = linear_reference(
        x.double(), weight, bias=None if bias is None else bias.double(), **doubled(given)
    )
    theirs = linear_reference(x, weight.to(dtype), bias=bias, **given)
    for tile in tiles:
        out = torch.full((rows, outputs), torch.nan, dtype=dtype, device=DEVICE)
        layer.layer(x, out=out, backend="triton", pdl=pdl, tile=tile, **given)
        check(out, truth, theirs)
    check(layer.layer(x, backend="reference", **given), truth, theirs)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("rows", "dtype", "pdl"), [*itertools.product((1, 3), DTYPES, PDL)])
def test_a_layer(parts, rows, dtype, pdl):
    for number, (outputs, inputs, group) in enumerate(SHAPES[:: 1 if rows == 1 else 2]):
        bits, zeros = (4, 8)[number % 2], number % 3 == 0
        layer = layer_of(outputs * (1 + PARTS[parts][1]), inputs, group, bits, zeros, dtype, PARTS[parts][2])
        check_layer(layer, parts, rows, dtype, pdl, TILES)


def drawn(number: int, most: int) -> tuple:
    """A layer, the parts around it, rows of input, their dtype; of few columns and groups, all else free."""
    draw = drawing.Random(number)
    inputs, group = draw.choice([(32, 32), (48, 16), (100, 20), (128, 128), (128, 32), (40, 8), (256, 128)])
    parts, bits = draw.choice([*PARTS]), draw.randint(2, 8)
    _, gated, bias, _ = PARTS[parts]
    outputs, dtype = draw.randint(1, most) * (1 + gated), draw.choice(DTYPES)
    layer = layer_of(outputs, inputs, group, bits, draw.random() < 0.5, dtype, bias)
    return layer, parts, draw.choice([1, 1, 2, 5, 16, 17]), dtype


@pytest.mark.parametrize("tenth", range(10))
def test_drawn_configurations_by_operations(tenth):
    for number in range(DRAWN * tenth // 10, DRAWN * (tenth + 1) // 10):
        layer, parts, rows, dtype = drawn(number, 200)
        check_layer(layer, parts, rows, dtype, False, ())


@pytest.mark.parametrize("tenth", range(10))
def test_drawn_configurations_by_the_kernel(tenth):
    for number in range(DRAWN_BY_KERNEL * tenth // 10, DRAWN_BY_KERNEL * (tenth + 1) // 10):
        layer, parts, rows, dtype = drawn(DRAWN + number, 60)
        check_layer(layer, parts, rows, dtype, PDL[-1], (None,))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_numbers_of_bits_with_and_without_zero_points(bits, zeros, dtype):
    check_layer(layer_of(20, 64, 16, bits, zeros, dtype), "plain", 2, dtype, False, TILES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_than_a_program_takes(dtype):
    check_layer(layer_of(20, 48, 16, 4, True, dtype), "norm", 100, dtype, True, TILES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_for_many_rows_the_matrix_is_written_out(dtype):
    layer = layer_of(50, 300, 20, 4, True, dtype)
    from llmcourse.kernels.packed_triton import dequantize

    for begin, end in ((0, 50), (13, 30)):
        found = dequantize(layer, begin, end, torch.float32)
        assert torch.equal(found, truth_of(layer)[begin:end].float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_stacked_layer_are_views_that_multiply_alike(dtype, bits):
    parts = [layer_of(outputs, 64, 32, bits, True, dtype) for outputs in (24, 8, 8)]
    x = random(2, 64, dtype=dtype)
    apart = torch.cat([part.product(x, "triton") for part in parts], dim=1)
    whole, begin = PackedLinear.stacked(parts), 0
    for part in parts:
        part.become_rows(whole, begin)
        begin += part.out_features
        assert part.words.untyped_storage().data_ptr() == whole.words.untyped_storage().data_ptr()
    assert torch.equal(whole.product(x, "triton"), apart)
    assert torch.equal(torch.cat([part.product(x, "triton") for part in parts], dim=1), apart)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_of_large_numbers_and_gains_stays_finite(dtype):
    x, layer = 3000 * random(3, 64, dtype=dtype), layer_of(20, 64, 32, 4, False, dtype)
    x[1:] /= 2**20
    norm = 60 * random(64, dtype=dtype).abs()
    truth = linear_reference(x.double(), truth_of(layer), norm=norm.double())
    theirs = linear_reference(x, truth_of(layer).to(dtype), norm=norm)
    check(layer.layer(x, norm=norm, backend="triton"), truth, theirs)


def test_the_check_sees_a_zero_point_that_is_forgotten():
    layer = layer_of(20, 64, 32, 4, True, torch.float32)
    x = random(2, 64, dtype=torch.float32)
    truth = F.linear(x.double(), truth_of(layer))
    layer.zeros = None
    with pytest.raises(AssertionError):
        check(layer.product(x, "triton"), truth, truth.float())
