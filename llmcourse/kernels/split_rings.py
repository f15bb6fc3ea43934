"""How `linear_split_gluon` cuts a matrix for 17 to 64 rows of input, and what its programs share.

By arithmetic, for an H200. Memory brings 4.8 TB/s, 36 kB a µs for each of 132 multiprocessors, and a copy is
under way for about 1 µs: 40 kB of weights for each must have been asked for at any time. Two programs on a
multiprocessor, one of them of the next kernel, have 112 KiB of shared memory each: five tiles of 128 · 64
weights and four of 64 · 64 of x, or three where a norm has its gains there. A program alone has 227 KiB. Of x
it reads 64 numbers for every 128 of weights, which come through the L2 cache beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from llmcourse.kernels.arguments import check_power_of_2, is_count

LEAST_SPLIT_ROWS, MOST_SPLIT_ROWS = 17, 64  # of input, that run
SHARED_BY_TWO = 112 * 1024  # bytes of shared memory, so that two programs fit on a multiprocessor of Hopper
REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 168  # of a thread at launch, with which consumers have as many as there can be


class Needs(NamedTuple):
    """What the programs of a matrix leave in memory: tiles that they share, and numbers in all."""

    tiles: int
    numbers: int


@dataclass(frozen=True)
class SplitRing:
    """Tiles of a program's rows, which come through shared memory, and how many programs share the columns.

    Attributes:
        rows: of the weights for one program, a power of two of at least 32; of both halves each where gate
            and up are fused.
        columns: of a tile, a power of two of at least 64.
        stages: tiles of weights under way at once.
        input_stages: tiles of x under way at once.
        splits: programs that share the columns of a tile's rows; 1 for none.
        warps: of 32 threads, for one program: four or eight.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    rows: int
    columns: int
    stages: int
    input_stages: int
    splits: int = 1
    warps: int = 8

    def __post_init__(self):
        check_power_of_2("columns", self.columns, 64)
        if self.warps not in (4, 8):
            raise ValueError(f"warps must be 4 or 8, which multiply together, got {self.warps}")
        check_power_of_2("rows", self.rows, 32)
        if self.rows > 256:
            raise ValueError(f"rows must be at most 256, which is what one copy takes, got {self.rows}")
        for name in ("stages", "input_stages"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} must be at least 2, got {getattr(self, name)}; 2 keep one tile in flight"
                )
        if not is_count(self.splits):
            raise ValueError(f"splits must be an integer of at least 1, got {self.splits!r}; 1 is for none")

    def held_bytes(self, num_rows: int, num_inputs: int, gated: bool, norm: bool = True) -> int:
        """Of shared memory, whatever `num_rows` is; with a norm that holds the gains of its columns too."""
        weights = self.stages * self.rows * (1 + gated)
        gains = self.gains(num_inputs) if norm else 0
        return (weights + self.input_stages * MOST_SPLIT_ROWS + gains) * self.columns * 2

    def gains(self, num_inputs: int) -> int:
        """Steps that there are gains for in shared memory: a power of two."""
        return 2 ** (self.steps(num_inputs) - 1).bit_length()

    def registers(self, num_inputs: int, gated: bool, norm: bool) -> int:
        """Of a thread at launch, so that two programs fit if their shared memory, sums and tiles of x do.

        The producer is one of four more warps, which leave theirs to the others.
        """
        few_sums = self.rows * (1 + gated) <= 128 and self.columns * self.warps <= 512
        by_twos = few_sums and self.held_bytes(MOST_SPLIT_ROWS, num_inputs, gated, norm) <= SHARED_BY_TWO
        return min(MOST_REGISTERS, REGISTERS // (1 + by_twos) // (32 * (self.warps + 4)) // 8 * 8)

    def steps(self, num_inputs: int) -> int:
        """Tiles that a program goes through, of a matrix of so many columns."""
        return _up(_up(num_inputs, self.columns), self.splits)

    def needs(self, num_rows: int, num_outputs: int, gated: bool) -> Needs:
        """Sums of a tile for each program, and the squares of each row of input beside them."""
        if self.splits == 1:
            return Needs(0, 0)
        tiles = _up(num_outputs, self.rows)
        return Needs(tiles, tiles * self.splits * (self.rows * (1 + gated) + 1) * MOST_SPLIT_ROWS)


class SplitMemory:
    """What the programs of a tile hand to the one that ends last; one serves every matrix of a step.

    Args:
        tiles, numbers: as in `Needs`, at most.

    Attributes:
        parts: `(numbers,)`, sums and squares in float32.
        arrivals: `(tiles,)`, how many programs have ended; zero between launches.
    """

    def __init__(self, tiles: int, numbers: int, device: torch.device | str):
        self.parts = torch.empty(numbers, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    @classmethod
    def of(cls, needs: Iterable[Needs], device: torch.device | str) -> SplitMemory:
        """Enough for the largest of them."""
        needs = [Needs(0, 0), *needs]
        return cls(max(one.tiles for one in needs), max(one.numbers for one in needs), device)

    def check(self, needs: Needs, device: torch.device) -> None:
        """Raises ValueError unless it holds as much, on this device."""
        held = Needs(len(self.arrivals), len(self.parts))
        if held.tiles < needs.tiles or held.numbers < needs.numbers or self.parts.device != device:
            raise ValueError(
                f"split_memory must be for at least {needs} on {device}, got {held} on {self.parts.device}; "
                "make one for these, or leave it at None"
            )


# Rows of input, at most, to (outputs, inputs, gated) to what was fastest for as many in Llama-3-8B's layers
# on an H200, each matrix on top of the others' best: the rows "chosen" in
# benchmarks/results/raw/few_rows_variants_nvidia_h200.jsonl. Where one is missing for 32 rows, no ring was
# faster than what `linear` takes without it; for gate and up the two are level.
SPLIT_RINGS: dict[int, dict[tuple[int, int, bool], SplitRing]] = {
    32: {
        (6144, 4096, False): SplitRing(128, 64, 8, 6, splits=2),
        (14336, 4096, True): SplitRing(128, 64, 5, 3),
        (4096, 14336, False): SplitRing(128, 64, 9, 8, splits=4),
    },
    64: {
        (6144, 4096, False): SplitRing(64, 64, 9, 4, splits=2, warps=4),
        (4096, 4096, False): SplitRing(64, 64, 8, 6, splits=4, warps=4),
        (14336, 4096, True): SplitRing(64, 128, 2, 2, warps=4),
        (4096, 14336, False): SplitRing(64, 64, 9, 5, splits=4, warps=4),
        (128256, 4096, False): SplitRing(128, 128, 2, 2, warps=4),
    },
}


def measured_ring(num_rows: int, num_outputs: int, num_inputs: int, gated: bool) -> SplitRing | None:
    """What was fastest for as many rows, or the next number that was measured; None where nothing was."""
    if num_rows < LEAST_SPLIT_ROWS:
        return None
    tables = (table for most, table in SPLIT_RINGS.items() if num_rows <= most)
    return next(tables, {}).get((num_outputs, num_inputs, gated))


def _up(number: int, parts: int) -> int:
    """The quotient, rounded up."""
    return -(-number // parts)
