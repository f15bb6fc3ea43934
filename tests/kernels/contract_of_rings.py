"""The contract of `linear` for a few rows and long matrices: a ring goes round, for all tiles to pass.

`test_kernels` runs it on a GPU of Hopper; no other can, nor can the interpreter.
"""

import pytest
import torch

from llmcourse.kernels.linear import linear
from llmcourse.kernels.split_rings import SplitMemory, SplitRing
from llmcourse.kernels.tiles import Ring, Strip
from tests.kernels.contract import DEVICE, PARTS, PDL, check_linear, random, seeded  # noqa: F401

OUTPUTS = 77  # the last program's rows of weights are not all there
TILES = (
    Ring(8, 512, 2),
    Ring(32, 128, 3),
    Ring(64, 128, 2, 8),
    Strip(8, 4, True),
    Strip(16, 8, True),
)
SPLIT = (
    SplitRing(128, 64, 2, 2),
    SplitRing(128, 64, 5, 3, splits=3),
    SplitRing(64, 128, 2, 3, splits=2, warps=4),
    SplitRing(32, 64, 3, 5, warps=4),
    SplitRing(64, 64, 4, 3),
    SplitRing(256, 64, 2, 2, splits=2),
)
DOZENS = [  # of rows; outputs and inputs, which fill the last tiles or don't
    (17, 77, 1000),
    (24, 300, 2048),
    (32, 128, 264),
    (33, 77, 1000),
    (48, 300, 2048),
    (63, 128, 264),
    (64, 1000, 2048),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("rows", [2, 8, 16])
@pytest.mark.parametrize("inputs", [1000, 2048])
def test_a_ring_goes_round(parts, rows, inputs):
    check_linear(parts, rows, OUTPUTS, inputs, torch.bfloat16, PDL[-1], TILES)


@pytest.mark.parametrize("parts", ["norm", "bias and residual", "all that go together"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), DOZENS)
def test_programs_share_the_columns_of_dozens_of_rows(parts, rows, outputs, inputs):
    check_linear(parts, rows, outputs, inputs, torch.bfloat16, PDL[-1], SPLIT)


@pytest.mark.parametrize("rows", [17, 64])
def test_shared_sums_are_the_same_bit_by_bit_in_every_launch_and_leave_their_memory_ready(rows):
    """Fifty launches that follow each other at once, over the same memory, with NaN where sums are left."""
    ring, outputs, inputs = SplitRing(128, 64, 3, 2, splits=7), 2000, 4096
    x, weight = random(rows, inputs, dtype=torch.bfloat16), random(outputs, inputs, dtype=torch.bfloat16)
    norm = random(inputs, dtype=torch.bfloat16).abs()
    memory = SplitMemory.of([ring.needs(rows, outputs, False)], DEVICE)
    memory.parts.fill_(torch.nan)
    given = {"norm": norm, "backend": "triton", "pdl": PDL[-1], "tile": ring, "split_memory": memory}
    found = [linear(x, weight, **given) for _ in range(50)]
    assert torch.isfinite(found[0]).all()
    assert all(torch.equal(found[0], other) for other in found)
    assert not memory.arrivals.any()


def test_every_ring_goes_round_at_least_twice():
    assert all(2 * ring.columns * ring.stages <= 2048 for ring in TILES if isinstance(ring, Ring))
    assert all(2 * ring.stages <= ring.steps(2048) for ring in SPLIT)
