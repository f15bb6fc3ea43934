"""How the kernels of `packed_linear` cut a matrix: what was measured to be best, and a rule for the rest."""

from __future__ import annotations

from typing import NamedTuple

MOST_KERNEL_ROWS = 64  # of input, up to which codes are multiplied by a kernel; for more, W is written out


class PackedTile(NamedTuple):
    """The part of a matrix that one program of `packed_triton` multiplies at a time.

    Attributes:
        rows: of the weights, a power of 2 of at least 16; of both halves each where gate and up are fused.
        columns: a power of 2 of at least 16.
        warps: of 32 threads, for one program.
        stages: tiles in flight.
    """

    rows: int
    columns: int
    warps: int
    stages: int


AnyPackedTile = PackedTile


def packed_rule(num_inputs: int, group_size: int, gated: bool, item_bytes: int) -> PackedTile:
    """For any GPU and shape: columns of one group if it is large enough; within 99 KiB of shared memory."""
    whole = group_size == num_inputs or group_size & -group_size >= 32
    most = 128 if item_bytes <= 2 else 64
    own = most if group_size == num_inputs or not whole else group_size & -group_size
    columns = max(16, min(most, own, 1 << (num_inputs - 1).bit_length()))
    return PackedTile(32, columns, 4 if item_bytes <= 2 else 8, 4 if item_bytes <= 2 else 3)
