"""A matrix in codes: what it stands for, and what does not fit together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.quantization.quantized_tensor import BITS, QuantizedTensor, check_group_size

CODES = torch.tensor([[-2, -1, 0, 1], [1, 1, -2, 0]], dtype=torch.int8)
SCALE = torch.tensor([[0.5, 2.0], [1.0, 4.0]])
ZERO_POINT = torch.tensor([[0, -1], [1, -2]], dtype=torch.int8)


def test_by_hand():
    weight = QuantizedTensor(CODES, SCALE, ZERO_POINT, 2, 2)
    assert weight.shape == (2, 4)
    assert weight.dequantized().tolist() == [[-1, -0.5, 2, 4], [0, 0, 0, 8]]
    symmetric = QuantizedTensor(CODES, SCALE, None, 2, 2)
    assert symmetric.dequantized().tolist() == [[-1, -0.5, 0, 2], [1, 1, -8, 0]]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_each_number_by_its_own_group(data):
    bits, size = data.draw(st.sampled_from(BITS)), data.draw(st.integers(1, 4))
    rows, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    q = torch.randint(low, high, (rows, groups * size), generator=generator).to(torch.int8)
    z = torch.randint(low, high, (rows, groups), generator=generator).to(torch.int8)
    s = (torch.rand(rows, groups, generator=generator) + 0.01).to(dtype)
    found = QuantizedTensor(q, s, z, bits, size).dequantized()
    assert found.dtype == dtype and found.shape == q.shape
    for row in range(rows):
        for column in range(groups * size):
            group = column // size
            exact = s[row, group].double() * (int(q[row, column]) - int(z[row, group]))
            assert found[row, column] == exact.to(dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1"),
        ({"bits": 2.0}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 2.0"),
        ({"bits": 16}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 16"),
        ({"group_size": 3}, "group_size must divide the 4 columns, got 3; these do: 1, 2, 4"),
        (
            {"group_size": 4},
            r"scale must have shape \(2, 1\), one for each row's groups of 4 columns, got \(2, 2",
        ),
        ({"scale": SCALE[:1]}, r"scale must have shape \(2, 2\), .* got \(1, 2\)"),
        ({"zero_point": ZERO_POINT.T[:1]}, r"zero_point must have shape \(2, 2\), .* got \(1, 2\)"),
        ({"scale": SCALE.int()}, "scale must be in a floating-point dtype, got torch.int32"),
        ({"codes": CODES.int()}, "codes must be in int8, got torch.int32; codes of 8 bits fit"),
        ({"codes": CODES.view(torch.uint8)}, "codes must be in int8, got torch.uint8"),
        ({"zero_point": ZERO_POINT.int()}, "zero_point must be in int8, got torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    parts = {"codes": CODES, "scale": SCALE, "zero_point": ZERO_POINT, "bits": 2, "group_size": 2} | changes
    made = object.__new__(QuantizedTensor)
    for name, value in parts.items():  # past the annotations, which tests check too
        object.__setattr__(made, name, value)
    with pytest.raises(ValueError, match=message):
        made.__post_init__()


@pytest.mark.parametrize("size", [0, -1, 5, 12, True])
def test_group_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(
        ValueError, match=f"group_size must divide the 6 columns, got {size}; these do: 1, 2, 3, 6"
    ):
        check_group_size(size, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_group_sizes_that_divide(size):
    check_group_size(size, 6)
