"""Tile shapes of the linear kernels: what was measured to be best, and a rule for the rest."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """The part of a matrix that one program reads at a time.

    Attributes:
        rows: of the weights; of both halves each where gate and up are fused.
        columns: read in one step.
        warps: of 32 threads, for one program.
        stages: steps in flight; for one row of input this is always two.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 2


# For one row of input, (outputs, inputs, gated) to the tile that was fastest on an H200, weights in bfloat16
# and PDL on; the rows are in benchmarks/results/raw/decode_variants_nvidia_h200.jsonl. A whole step decides
# what stands here, not the matrix alone: with the fastest tiles of its matrices a step of Llama-3-8B is 4 %
# faster than by the rule below, one of Qwen3-0.6B 7 % slower and one of Llama-2-7B 4 % slower, so these two
# follow the rule. A matrix that models share stands here if the step of one is faster with it and no other's
# was measured to be slower for it alone. Llama-2-7B shares 4096 × 4096: alone it reads 20 % faster so, and
# what made that model's step slower changed three more matrices, of which none stands here.
MEASURED = {
    (6144, 4096, False): Tile(2, 4096, 4),
    (4096, 4096, False): Tile(8, 1024, 4),
    (14336, 4096, True): Tile(4, 1024, 4),
    (4096, 14336, False): Tile(2, 2048, 4),
    (128256, 4096, False): Tile(2, 4096, 4),
}


def gemv_tile(num_outputs: int, num_inputs: int, gated: bool) -> Tile:
    """For one row of input: what was measured for this matrix, otherwise what the rule gives."""
    return MEASURED.get((num_outputs, num_inputs, gated)) or gemv_rule(num_outputs, num_inputs, gated)


def gemv_rule(num_outputs: int, num_inputs: int, gated: bool) -> Tile:
    """For one row of input: up to 4096 numbers of a row at once, so that all loads fly together."""
    columns = min(num_inputs & -num_inputs, 4096)  # the largest power of two that divides them
    if columns < 512:
        columns = min(_power_of_2(num_inputs), 2048)
    rows = max(1, min(16, 16384 // columns // (2 if gated else 1)))
    while rows > 1 and rows * 256 > num_outputs:  # a program or two for every multiprocessor
        rows //= 2
    return Tile(rows, columns, 8 if columns >= 2048 else 4)


def matmul_tile(num_outputs: int, num_inputs: int, gated: bool, item_bytes: int) -> Tile:
    """For several rows of input on the tensor cores; small enough for 99 KiB of shared memory."""
    narrow = item_bytes <= 2
    rows = 64 if narrow and not gated and num_outputs >= 16384 else 32
    columns = min(max(_power_of_2(num_inputs), 16), 256 // item_bytes)
    return Tile(rows, columns, 4, 4) if narrow else Tile(rows, columns, 8, 3)


def matmul_rows(num_rows: int, item_bytes: int) -> int:
    """Rows of input that one program of `matmul_tile` takes."""
    return max(16, min(_power_of_2(num_rows), 128 // item_bytes))


def _power_of_2(number: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (number - 1).bit_length()
