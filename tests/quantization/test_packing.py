"""Packing: what was packed comes back, bit by bit where it should be, and in no more bytes than that."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.quantization.grid import code_range
from llmcourse.quantization.packing import bytes_of, pack_bytes, pack_words, unpack_bytes, unpack_words
from llmcourse.quantization.quantized_tensor import BITS


def bits_of(number: int, width: int) -> list[int]:
    """The lowest first."""
    return [number >> place & 1 for place in range(width)]


def packed_by_hand(row: list[int], bits: int, unit: int, a_unit: int) -> list[int]:
    """`a_unit` codes in each unit of so many bits; 0 stands for all codes in one stream."""
    stream = [bits_of(code + 2 ** (bits - 1), bits) for code in row]
    a_unit = a_unit or len(stream)
    found = []
    for start in range(0, len(stream), a_unit):
        piece = [bit for code in stream[start : start + a_unit] for bit in code]
        for at in range(0, len(piece), unit):
            found.append(sum(bit << place for place, bit in enumerate(piece[at : at + unit])))
    return found


@st.composite
def codes(draw):
    bits = draw(st.sampled_from(BITS))
    rows, size = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    code = st.integers(*code_range(bits))
    row = st.lists(code, min_size=size, max_size=size)
    return bits, torch.tensor([draw(row) for _ in range(rows)], dtype=torch.int8)


@settings(max_examples=300, deadline=None)
@given(codes())
def test_bytes_hold_one_stream_of_bits(drawn):
    bits, q = drawn
    packed = pack_bytes(q, bits)
    assert packed.tolist() == [packed_by_hand(row, bits, 8, 0) for row in q.tolist()]
    assert packed.shape == (len(q), bytes_of(q.shape[1], bits))
    assert unpack_bytes(packed, bits, q.shape[1]).equal(q)


@settings(max_examples=300, deadline=None)
@given(codes())
def test_words_hold_as_many_codes_as_fit(drawn):
    bits, q = drawn
    packed = pack_words(q, bits)
    unsigned = [[word % 2**32 for word in row] for row in packed.tolist()]
    assert unsigned == [packed_by_hand(row, bits, 32, 32 // bits) for row in q.tolist()]
    assert unpack_words(packed, bits, q.shape[1]).equal(q)


@pytest.mark.parametrize(("pack", "unpack"), [(pack_bytes, unpack_bytes), (pack_words, unpack_words)])
@pytest.mark.parametrize("bits", BITS)
def test_every_code_in_every_place(bits, pack, unpack):
    least, most = code_range(bits)
    every = torch.arange(least, most + 1, dtype=torch.int8)
    q = torch.stack([torch.full((33,), least, dtype=torch.int8).scatter(0, torch.tensor([place]), code)
                     for place in range(33) for code in every])  # fmt: skip
    assert unpack(pack(q, bits), bits, 33).equal(q)


def test_by_hand():
    """4 bits: 8 + q in each half of a byte, the first in the lower half; as compressed-tensors has it."""
    assert pack_bytes(torch.tensor([-8, 7, 0], dtype=torch.int8), 4).tolist() == [0xF0, 0x08]
    words = pack_words(torch.arange(-8, 8, dtype=torch.int8), 4)
    assert [word % 2**32 for word in words.tolist()] == [0x76543210, 0xFEDCBA98]
    assert pack_words(torch.tensor([-4, 3], dtype=torch.int8), 3).tolist() == [0b111_000]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("pack", [pack_bytes, pack_words, functools.partial(pack_bytes, checked=False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_what_is_no_integer_is_refused_and_not_cut_off(pack, dtype):
    with pytest.raises(ValueError, match=f"codes must be integers, got {dtype}; quantize first"):
        pack(torch.tensor([[1.7, -1.2]]).to(dtype), 4)


def test_leading_dimensions_stay():
    q = torch.randint(-4, 4, (2, 3, 5), dtype=torch.int8)
    assert pack_bytes(q, 3).shape == (2, 3, 2) and unpack_bytes(pack_bytes(q, 3), 3, 5).equal(q)
    assert pack_words(q, 3).shape == (2, 3, 1) and unpack_words(pack_words(q, 3), 3, 5).equal(q)
    assert unpack_bytes(pack_bytes(q[0, 0], 3), 3, 5).equal(q[0, 0])


@pytest.mark.parametrize("pack", [pack_bytes, pack_words])
def test_codes_that_do_not_fit_are_refused(pack):
    with pytest.raises(
        ValueError, match=r"codes must be in \[-4, 3\] for 3 bits, got -1 to 4; give the bits"
    ):
        pack(torch.tensor([[0, 4], [-1, 0]]), 3)
    with pytest.raises(ValueError, match=r"codes must be in \[-4, 3\] for 3 bits, got -5 to 0"):
        pack(torch.tensor([-5, 0]), 3)
    with pytest.raises(ValueError, match=r"codes must be rows of codes, got shape \(2, 0\)"):
        pack(torch.zeros(2, 0, dtype=torch.int8), 3)
    for bits in (0, 1, 9):
        with pytest.raises(ValueError, match=f"bits must be one of 2, 3, 4, 5, 6, 7, 8, got {bits}"):
            pack(torch.zeros(2, dtype=torch.int8), bits)


@pytest.mark.parametrize(
    ("unpack", "dtype", "message"),
    [
        (
            unpack_bytes,
            torch.uint8,
            "packed must be 3 bytes a row for 5 codes of 4 bits, got 2; give the bits",
        ),
        (
            unpack_words,
            torch.int32,
            "packed must be 1 words a row for 5 codes of 4 bits, got 2; give the bits",
        ),
    ],
)
def test_rows_of_another_length_are_refused(unpack, dtype, message):
    with pytest.raises(ValueError, match=message):
        unpack(torch.zeros(3, 2, dtype=dtype), 4, 5)
    with pytest.raises(ValueError, match="num_codes must be an integer of at least 1, got 0"):
        unpack(torch.zeros(3, 2, dtype=dtype), 4, 0)
