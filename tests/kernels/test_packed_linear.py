"""Layers of packed codes keep what they are made of, and refuse what does not fit, by name."""

import copy
import itertools
import platform
import re

import pytest
import torch

from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.packed_tiles import (
    BY_TWOS,
    PACKED_RINGS,
    PackedRing,
    filled,
    packed_ring,
    packed_rule,
    ring_rule,
)
from llmcourse.kernels.packed_words import packed_words, unpacked_codes
from tests.kernels.test_kernels import MATRICES


def codes_of(rows: int, columns: int, bits: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), dtype=torch.int8)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 100, 128, 384])
def test_codes_come_back(width, columns):
    codes = codes_of(5, columns, width)
    words = packed_words(codes, width)
    assert words.shape == (5, -(-columns * width // 32))
    assert torch.equal(unpacked_codes(words, width, columns), codes)


def test_a_word_holds_neighbours_in_its_two_halves():
    """Codes 1 to 8, in two's complement: the even ones from bit 0 on, the odd ones from bit 16 on."""
    (word,) = packed_words(torch.tensor([[0, 1, 2, 3, 4, 5, 6, -8]], dtype=torch.int8), 4)[0].tolist()
    assert word & 0xFFFFFFFF == 0x85316420
    (word,) = packed_words(torch.tensor([[1, 2, 3, -1]], dtype=torch.int8), 8)[0].tolist()
    assert word & 0xFFFFFFFF == 0xFF020301


def test_of_128_columns_a_thread_has_its_codes_side_by_side():
    """Thread t of four multiplies columns 16 t to 16 t + 15 of both halves."""
    columns = torch.arange(256).view(1, -1)
    for width in (4, 8):
        low, high = columns % 16, columns // 16  # of which column a word holds codes, told by two matrices
        found = [packed_words((part - 8).to(torch.int8), width) for part in (low, high)]
        words = width // 2
        threads = unpacked_words(found[1], width).view(2, 4, 2, words, -1) + 8
        expected = torch.arange(16).view(2, 2, 4).transpose(1, 2)  # blocks, threads, halves
        assert torch.equal(threads, expected[..., None, None].expand_as(threads))
        inside = unpacked_words(found[0], width).view(2, 4, 2, -1) + 8
        assert torch.equal(inside, torch.arange(16).expand_as(inside))


def unpacked_words(words: torch.Tensor, width: int) -> torch.Tensor:
    """Word by word as they lie."""
    parts = [unpacked_codes(word.view(1, 1), width, 32 // width) for word in words[0]]
    return torch.cat(parts).long()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_layer_gives_back_its_fields(bits, zeros):
    codes, scale = codes_of(6, 96, bits), torch.rand(6, 3) + 0.5
    zero_point = codes_of(6, 3, bits) if zeros else None
    layer = PackedLinear.of(codes, scale, zero_point, bits=bits, group_size=32)
    assert torch.equal(layer.codes, codes) and torch.equal(layer.scale, scale)
    assert (layer.zero_point is None) if zero_point is None else torch.equal(layer.zero_point, zero_point)
    shifted = codes.view(6, 3, 32) - (0 if zero_point is None else zero_point[..., None].int())
    assert torch.equal(layer.dequantized(), (shifted * scale[..., None]).view(6, 96))
    assert layer.shape == (6, 96) and layer.nbytes == sum(b.nbytes for b in layer.buffers())
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.codes, codes)


def test_four_bits_in_groups_of_128_are_little_more_than_half_a_byte_each():
    layer = PackedLinear.of(
        codes_of(64, 256, 4), torch.rand(64, 2), bits=4, group_size=128, dtype=torch.bfloat16
    )
    assert layer.nbytes == 64 * 256 // 2 + 64 * 2 * 2
    assert layer.scales.dtype == torch.bfloat16


def test_scales_of_channels_stay_wide():
    layer = PackedLinear.of(codes_of(4, 32, 8), torch.rand(4, 1), bits=8, dtype=torch.bfloat16)
    assert layer.scales.dtype == torch.float32 and layer.group_size == 32


GOOD = {
    "codes": codes_of(4, 32, 4),
    "scale": torch.ones(4, 2),
    "zero_point": None,
    "bits": 4,
    "group_size": 16,
}
BAD = {
    "bits": ({"bits": 9}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9"),
    "group size": ({"group_size": 12}, "group_size must divide the 32 columns, got 12; these do: 1, 2, 4, 8"),
    "codes too large": ({"bits": 3}, "codes must be in [-4, 3] for 3 bits, got -8 to 7; quantize to as many"),
    "a scale of nothing": (
        {"scale": torch.zeros(4, 2)},
        "scale must be positive and finite in torch.float32",
    ),
    "scales beyond fp16": (
        {"scale": torch.full((4, 2), 1e6), "dtype": torch.float16},
        "scale must be positive and finite in torch.float16, got 1e+06 to 1e+06; take a wider dtype",
    ),
    "scales below fp16": (
        {"scale": torch.full((4, 2), 3e-9), "dtype": torch.float16},
        "scale must be positive and finite in torch.float16, got 3e-09 to 3e-09",
    ),
    "codes of another dtype": ({"codes": codes_of(4, 32, 4).int()}, "codes must be in torch.int8"),
    "scales of another shape": ({"scale": torch.ones(4, 3)}, "scale must have shape (4, 2), got (4, 3)"),
    "zero points that are wider": (
        {"zero_point": torch.ones(4, 2, dtype=torch.int32)},
        "zero_point must be in torch.int8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        PackedLinear.of(**(GOOD | changes))


def test_inputs_that_do_not_fit_are_refused():
    layer = PackedLinear.of(**(GOOD | {"bias": torch.ones(4)}))
    with pytest.raises(ValueError, match=r"x must have shape \(2, 32\), got \(2, 16\)"):
        layer.layer(torch.ones(2, 16))
    with pytest.raises(ValueError, match="a gated layer must have an even number of rows and no bias"):
        layer.layer(torch.ones(2, 32), gated=True)
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 4\)"):
        layer.layer(torch.ones(2, 32), residual=torch.ones(2, 3))
    with pytest.raises(ValueError, match="parts must agree in bits, group_size"):
        PackedLinear.stacked(
            [
                layer,
                PackedLinear.of(
                    **(GOOD | {"group_size": 32, "scale": torch.ones(4, 1), "bias": torch.ones(4)})
                ),
            ]
        )


def test_gradients_pass_through_to_x():
    layer = PackedLinear.of(**GOOD)
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantized().sum(0).expand(3, 32))
    assert not list(layer.parameters())


RINGS = {
    (rows, *shape, width): packed_ring(rows, *shape, width, False)
    for rows in (1, 8, 9, 16, 17, 32, 64)
    for shape in MATRICES
    for width in (4, 8)
}


def test_rings_leave_room_for_a_program_of_the_next_kernel():
    for (rows, _, _, gated, width), ring in RINGS.items():
        assert ring.held_bytes(rows, width, gated, False) <= 2 * BY_TWOS
    rules = [ring_rule(rows, *shape, width, False) for rows, *shape, width in RINGS]
    for (rows, _, _, gated, width), ring in zip(RINGS, rules, strict=True):
        assert ring.held_bytes(rows, width, gated, False) <= BY_TWOS, (rows, width, ring)


@pytest.fixture
def hopper(monkeypatch):
    """As on such a GPU, as long as nothing is launched."""
    monkeypatch.setattr("llmcourse.kernels.capabilities.runs_gluon", lambda least: True)
    monkeypatch.setattr("llmcourse.kernels.capabilities.shared_bytes", lambda: 227 * 1024)


def layer_of(group_size: int, columns: int = 256, zeros: bool = False) -> PackedLinear:
    groups = columns // group_size
    zero_point = codes_of(64, groups, 4) if zeros else None
    settings = {"bits": 4, "group_size": group_size, "dtype": torch.bfloat16}
    return PackedLinear.of(codes_of(64, columns, 4), torch.rand(64, groups), zero_point, **settings)


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (layer_of(64), torch.ones(1, 256).bfloat16(), "for groups of 64 with scales in torch.bfloat16"),
        (layer_of(256, zeros=True), torch.ones(1, 256).bfloat16(), "for zero points of whole channels"),
        (layer_of(96, 96), torch.ones(1, 96).bfloat16(), "it takes up to 64 rows, a multiple of 128 numbers"),
        (layer_of(128), torch.ones(65, 256).bfloat16(), "for (65, 256) numbers in torch.bfloat16"),
        (layer_of(128), torch.ones(1, 256), "for (1, 256) numbers in torch.float32"),
        (layer_of(128, zeros=True), torch.ones(1, 256).bfloat16(), "with 64 · 1 zero points in a copy"),
        (layer_of(128), torch.ones(258).bfloat16()[1:257].view(1, -1), "do not begin at multiples of 16"),
    ],
)
def test_a_layer_that_no_ring_takes_says_why(hopper, layer, x, message):
    found = layer._ring_obstacle(x, False, PackedRing(64, 1, 1, 2, 2))
    assert message in found
    assert not isinstance(layer.best_tile(x, False), PackedRing)


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_rings_are_taken_where_they_were_right_on_a_gpu(hopper):
    """In groups of 128 and by channels, for up to 64 rows; not with zero points."""
    for rows, layer in itertools.product((1, 16, 64), (layer_of(128), layer_of(256))):
        assert isinstance(layer.best_tile(torch.ones(rows, 256).bfloat16(), False), PackedRing)
    layer = layer_of(128, zeros=True)
    assert not isinstance(layer.best_tile(torch.ones(1, 256).bfloat16(), False), PackedRing)
    assert layer._ring_obstacle(torch.ones(1, 256).bfloat16(), False, PackedRing(64, 2, 1, 2, 2)) is None


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize(("outputs", "taken"), [(40, False), (48, True)])
def test_a_ring_copies_from_multiples_of_16_bytes_only(hopper, outputs, taken):
    """Scales of the upper half begin half of all outputs behind: an H200 stopped at 20 of them, 40 bytes."""
    given = {"bits": 4, "group_size": 128, "dtype": torch.bfloat16}
    layer = PackedLinear.of(codes_of(outputs, 256, 4), torch.rand(outputs, 2), None, **given)
    x = torch.ones(1, 256).bfloat16()
    assert isinstance(layer.best_tile(x, True), PackedRing) == taken
    assert isinstance(layer.best_tile(x, False), PackedRing)


def test_small_groups_and_odd_sizes_have_tiles():
    assert packed_rule(4096, 128, 2, False).columns == 128 and packed_rule(4096, 32, 2, False).columns == 32
    assert packed_rule(4096, 4096, 2, False).columns == 128 and packed_rule(40, 8, 4, False).columns == 64
    assert packed_rule(5, 5, 4, True).columns == 16


@pytest.mark.parametrize(
    ("ring", "message"),
    [
        ((24, 2, 1, 2, 2), "rows must be a power of 2 of at least 64, got 24"),
        ((64, 1, 2, 2, 2), "warps_k must be at most warps, which are 4 or 8, and at most blocks"),
        ((32, 1, 1, 2, 2, 1, 2), "warps_k must be at most warps, which are 4 or 8, and at most blocks"),
        ((64, 2, 1, 1, 2), "stages must be at least 2, got 1; 2 keep one step in flight"),
        ((64, 2, 1, 2, 2, 0), "splits must be an integer of at least 1, got 0; 1 is for none"),
        ((512, 2, 1, 2, 2), "rows must be at most 256, which is what one copy takes, got 512"),
    ],
)
def test_a_ring_that_no_kernel_can_have_is_refused(ring, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PackedRing(*ring)


def test_filling_a_ring_keeps_within_its_memory():
    ring = filled(PackedRing(64, 2, 1, 2, 2), 1, 4, False)
    assert ring.held_bytes(1, 4, False, False) <= BY_TWOS and ring.stages > 4 and ring.input_stages == 4
    assert set(PACKED_RINGS) == {8, 16, 32, 64}
