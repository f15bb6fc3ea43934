"""The contract of `linear` for a few rows and long matrices: a ring goes round, for all tiles to pass.

`test_kernels` runs it on a GPU of Hopper; no other can, nor can the interpreter.
"""

import pytest
import torch

from llmcourse.kernels.tiles import Ring, Strip
from tests.kernels.contract import PARTS, PDL, check_linear, seeded  # noqa: F401

OUTPUTS = 77  # the last program's rows of weights are not all there
TILES = (
    Ring(8, 512, 2),
    Ring(32, 128, 3),
    Ring(64, 128, 2, 8),
    Strip(8, 4, True),
    Strip(16, 8, True),
)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("rows", [2, 8, 16])
@pytest.mark.parametrize("inputs", [1000, 2048])
def test_a_ring_goes_round(parts, rows, inputs):
    check_linear(parts, rows, OUTPUTS, inputs, torch.bfloat16, PDL[-1], TILES)


def test_every_ring_goes_round_at_least_twice():
    assert all(2 * ring.columns * ring.stages <= 2048 for ring in TILES if isinstance(ring, Ring))
