"""The contract of layers in packed codes where a ring goes round in shared memory.

`test_kernels` runs it on a GPU of Hopper; no other can, nor can the interpreter.
"""

import pytest
import torch

from llmcourse.kernels.capabilities import shared_bytes
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.packed_tiles import ALIGNED_BYTES, MOST_FUSED_ROWS, PackedRing
from llmcourse.kernels.packed_words import code_width
from llmcourse.kernels.tiles import SPARE_BYTES
from tests.kernels.contract import PARTS, PDL, random, seeded  # noqa: F401
from tests.kernels.contract_of_packed import check_layer, layer_of

RINGS = (
    PackedRing(64, 2, 1, 2, 2),
    PackedRing(16, 4, 4, 3, 2),
    PackedRing(32, 4, 2, 2, 3),
    PackedRing(64, 4, 2, 2, 2, warps=8),
    PackedRing(128, 1, 1, 3, 2, warps=8),
    PackedRing(64, 2, 1, 2, 2, splits=3),
    PackedRing(64, 2, 2, 3, 3),  # 32 rows of weights a warp
    PackedRing(128, 1, 1, 4, 2, splits=2),
    PackedRing(64, 4, 4, 2, 2),  # 64 rows
)
INPUTS = 4224  # a number of blocks that fills no step
KINDS = {  # width, group, zero points
    "four bits": (4, 128, False),
    "four bits with zero points": (4, 128, True),
    "eight bits of channels": (8, None, False),
    "eight bits of groups": (8, 128, True),
}
BF16 = torch.bfloat16


@pytest.mark.parametrize("parts", ["plain", "bias and residual", "all that go together"])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_goes_round(kind, rows, parts):
    bits, group, zeros = KINDS[kind]
    gated, bias = PARTS[parts][1], PARTS[parts][2]
    fused = gated and rows <= MOST_FUSED_ROWS
    room = shared_bytes() - SPARE_BYTES
    rings = [
        ring
        for ring in RINGS
        if (not zeros or ring.rows * ring.blocks >= ALIGNED_BYTES)
        and ring.shared_bytes(rows, code_width(bits), fused, zeros) <= room
    ]
    assert len(rings) >= len(RINGS) // 2
    for outputs, inputs in ((80, INPUTS), (208, 1024)):
        layer = layer_of(outputs * (1 + gated), inputs, group or inputs, bits, zeros, BF16, bias)
        check_layer(layer, parts, rows, BF16, PDL[-1], (*rings, None))


def test_shared_sums_are_the_same_bit_by_bit_in_every_launch_and_leave_their_memory_ready():
    """Fifty launches that follow each other at once, over the same memory, with NaN where sums are left."""
    ring, rows = PackedRing(64, 1, 1, 3, 2, splits=7), 17
    layer, x = layer_of(2000, 4096, 128, 4, False, BF16), random(rows, 4096, dtype=BF16)
    memory = layer.memory_of(ring.needs(rows, 2000, False))
    memory.parts.fill_(torch.nan)
    found = [layer.layer(x, backend="triton", pdl=PDL[-1], tile=ring) for _ in range(50)]
    assert torch.isfinite(found[0]).all()
    assert all(torch.equal(found[0], other) for other in found)
    assert not memory.arrivals.any()


def test_parts_of_a_stack_take_rings_too():
    parts = [layer_of(outputs, 256, 128, 4, False, BF16) for outputs in (128, 64, 64)]
    whole, begin, x = PackedLinear.stacked(parts), 0, random(2, 256, dtype=BF16)
    for part in parts:
        part.become_rows(whole, begin)
        begin += part.out_features
        assert isinstance(part.best_tile(x, False), PackedRing)
    apart = torch.cat([part.product(x, "triton") for part in parts], dim=1)
    torch.testing.assert_close(whole.product(x, "triton"), apart)


def test_every_ring_goes_round_at_least_twice():
    assert all(2 * max(ring.stages, ring.input_stages) <= ring.steps(INPUTS) for ring in RINGS)
