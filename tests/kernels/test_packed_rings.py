"""Packed codes and x, taken apart in registers, give the product: `packed_gluon` where there is no GPU.

The kernel's own code runs over NumPy arrays here (`emulated`), which sees where each number goes, slots and
sums. `contract_of_packed_rings` runs the kernel itself, on a GPU of Hopper.
"""

import platform

import numpy as np
import pytest
import torch

if platform.system() != "Linux":
    pytest.skip("Triton is made for Linux only", allow_module_level=True)

from llmcourse.kernels import packed_codes_gluon
from llmcourse.kernels.packed_words import packed_words
from tests.kernels.emulated import Array, Shared, python_of, rounded
from tests.kernels.emulated_packed import names_of_packed


def random_codes(rows: int, blocks: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, (rows, blocks · 128), and their pieces of 16 bits as a tile holds them: (blocks, rows, pieces)."""
    half = 2 ** (width - 1)
    codes = np.random.default_rng(0).integers(-half, half, (rows, 128 * blocks), dtype=np.int8)
    pieces = packed_words(torch.from_numpy(codes), width).view(torch.int16).unflatten(1, (blocks, -1))
    return codes, pieces.transpose(0, 1).numpy()


def operands(width: int, **planted) -> tuple[np.ndarray, np.ndarray]:
    """The product of operands that the kernel's code makes of codes and of x by gains, and the true one."""
    names = names_of_packed((0, 0)) | planted
    left, right, by_gains, places = (
        python_of(getattr(packed_codes_gluon, name), names)
        for name in ("numbers_of_codes", "blocks_of_input", "weighted", "places_of_gains")
    )
    rows, blocks, batch = 32, 2, 8
    codes, pieces = random_codes(rows, blocks, width)
    draw = np.random.default_rng(1).standard_normal
    x, gains = rounded(draw((batch, 128 * blocks))), rounded(draw(128 * blocks))
    tile = x.reshape(batch, 2 * blocks, 64).transpose(1, 0, 2)
    of_x = right(Shared(tile[None]), 0, blocks, 1, None)
    of_x = by_gains(of_x, Array(gains[places(blocks, 1).numbers]))
    weights = left(Shared(pieces[None]), 0, blocks, 1, width, None)
    found = (weights.numbers @ of_x.numbers).sum(0)
    return found, codes.astype(np.float32) @ rounded(x * gains).T


@pytest.mark.parametrize("width", [4, 8])
def test_operands_agree_in_the_order_of_columns(width):
    np.testing.assert_allclose(*operands(width), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("width", [4, 8])
def test_operands_that_do_not_agree_show(width):
    language = names_of_packed((0, 0))["gl"]
    language.permute = lambda x, order: Array(x.numbers.transpose(sorted(order)))
    found, truth = operands(width, gl=language)
    assert np.linalg.norm(found - truth) > 0.5 * np.linalg.norm(truth)
