"""The contract of `gptq_block`: every code is the nearest to what the columns before it have left.

Run beside `contract.py`. A value half way between two codes may go to either, and what comes behind then
differs; so the columns are followed in fp64 with the codes that the kernel gave, and each is held to that.
"""

import re

import pytest
import torch

from llmcourse.kernels.gptq_block import gptq_block
from tests.kernels.contract import DEVICE, seeded  # noqa: F401

SHAPES = ((1, 1), (5, 3), (16, 16), (33, 100), (40, 128))
NEAR = 1e-3  # of a step: what fp32 may take for the other side of a half


def draw(rows: int, columns: int, bits: int, groups: int, zeros: bool):
    """A block of a wider matrix, its factor in a wider one, and groups that do not follow each other."""
    x = torch.randn(4 * columns, columns, device=DEVICE, dtype=torch.float64)
    x = x @ (torch.eye(columns, device=DEVICE) + 0.3 * torch.randn(columns, columns, device=DEVICE)).double()
    inverse = torch.linalg.inv(x.T @ x / len(x) + 0.01 * torch.eye(columns, device=DEVICE))
    factor = torch.zeros(columns, columns + 3, device=DEVICE)
    factor[:, 3:] = torch.linalg.cholesky(inverse, upper=True)
    weight = torch.randn(rows, columns + 5, device=DEVICE)[:, 2:-3]
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (0.5 + torch.rand(groups, rows, device=DEVICE)) * 2.0 / highest
    zero = torch.randint(lowest, highest + 1, (groups, rows), device=DEVICE, dtype=torch.int8)
    group = torch.randint(groups, (columns,), device=DEVICE, dtype=torch.int32)
    return weight, factor[:, 3:], scale, zero if zeros else torch.zeros_like(zero), group, bits


def check_block(codes, errors, weight, factor, scale, zero_point, group, bits) -> None:
    """Follows the columns in fp64 with the codes that were given."""
    left, factor, lowest = weight.double(), factor.double(), -(2 ** (bits - 1))
    assert torch.isfinite(errors).all()
    for j in range(left.shape[1]):
        s, z, code = scale[group[j]].double(), zero_point[group[j]].double(), codes[:, j].double()
        wanted = left[:, j] / s + z
        nearest = wanted.clamp(lowest, -lowest - 1)
        assert ((nearest - code).abs() <= 0.5 + NEAR).all()
        error = (left[:, j] - s * (code - z)) / factor[j, j]
        assert torch.allclose(errors[:, j].double(), error, rtol=1e-4, atol=1e-4 * error.abs().max().item())
        left[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize(("bits", "groups", "zeros"), [(2, 1, True), (3, 4, False), (8, 2, True)])
def test_every_code_is_the_nearest_to_what_is_left(backend, rows, columns, bits, groups, zeros):
    block = draw(rows, columns, bits, groups, zeros)
    codes, errors = gptq_block(*block, backend=backend)
    check_block(codes, errors, *block)


def test_halves_go_to_the_even_code_as_in_pytorch():
    weight = torch.tensor([[0.5, 1.5, -0.5, -1.5, 2.5]], device=DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    zero, group = torch.zeros(1, 1, dtype=torch.int8, device=DEVICE), torch.zeros(5, device=DEVICE).int()
    for backend in ("triton", "reference"):
        codes, _ = gptq_block(weight, torch.eye(5, device=DEVICE), one, zero, group, 4, backend=backend)
        assert codes.tolist() == [[0, 2, 0, -2, 2]]


@pytest.mark.parametrize("planted", ["no correction", "another group", "clamped too far"])
def test_a_wrong_block_is_seen(planted):
    weight, factor, scale, zero_point, group, bits = block = draw(16, 32, 3, 2, True)
    if planted == "no correction":
        found = gptq_block(weight, torch.diag(factor.diagonal()), scale, zero_point, group, bits)
    elif planted == "another group":
        found = gptq_block(weight, factor, scale, zero_point, 1 - group, bits)
    else:
        found = gptq_block(weight, factor, scale, zero_point.clamp(max=0), group, bits)
    with pytest.raises(AssertionError):
        check_block(*found, *block)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b[0].T, *b[1:]), "weight must have the numbers of a row side by side"),
        (lambda b: (b[0].half(), *b[1:]), "weight must be in one of float32, float64"),
        (lambda b: (b[0], b[1][:-1], *b[2:]), "factor must have shape (16, 16), got (15, 16)"),
        (lambda b: (*b[:2], b[2][:, 1:], *b[3:]), "scale must have shape (2, 16), got (2, 15)"),
        (lambda b: (*b[:3], b[3].int(), *b[4:]), "zero_point must be in torch.int8"),
        (lambda b: (*b[:4], b[4][1:], b[5]), "group must have shape (16,), got (15,)"),
        (lambda b: (*b[:5], 9), "bits must be in 2 to 8, got 9"),
        (lambda b: (b[0].repeat(1, 9), *b[1:]), "weight must have 1 to 128 columns, got 144"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gptq_block(*change(draw(16, 16, 3, 2, True)))
