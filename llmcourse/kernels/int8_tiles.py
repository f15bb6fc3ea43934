"""How the kernels of `int8_matmul` cut a product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmcourse.kernels.arguments import check_power_of_2, check_warps


@dataclass(frozen=True)
class Int8Tile:
    """For one program of the kernel in Triton: so many rows of activations by so many outputs.

    Attributes:
        rows, outputs: powers of two of at least 16.
        columns: at a time, a power of two of at least 32.
        warps: of 32 threads.
        stages: tiles under way at once.
    """

    rows: int
    outputs: int
    columns: int
    warps: int = 4
    stages: int = 3

    def __post_init__(self):
        for name, least in (("rows", 16), ("outputs", 16), ("columns", 32)):
            check_power_of_2(name, getattr(self, name), least)
        check_warps(self.warps)
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}; 1 keeps one tile in flight")

    @property
    def held_bytes(self) -> int:
        """Of shared memory."""
        return (self.rows + self.outputs) * self.columns * self.stages


@dataclass(frozen=True)
class WideTile:
    """For one program of the kernel in Gluon, which Hopper runs: tiles one after the other.

    Attributes:
        rows: of activations for each group of four warps, 64 or 128.
        outputs: a multiple of 64, at most 256.
        groups: of four warps, one below the other, 2 or 3.
        stages: tiles of 128 columns under way at once, at least 2.
        band: tiles of rows that go together, so that what they read stays in the cache.
        outliers: columns in 16 bits that go with the codes, a multiple of 64.
    """

    rows: int = 64
    outputs: int = 256
    groups: int = 2
    stages: int = 4
    band: int = 8
    outliers: int = 64

    def __post_init__(self):
        for name, taken in (("rows", (64, 128)), ("outputs", (64, 128, 192, 256)), ("groups", (2, 3))):
            if getattr(self, name) not in taken:
                raise ValueError(
                    f"{name} must be one of {taken}, got {getattr(self, name)}; take one of these"
                )
        for name, least in (("stages", 2), ("band", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}; take {least}")
        if self.outliers < 64 or self.outliers % 64:
            raise ValueError(f"outliers must be a multiple of 64, got {self.outliers}; 64 is one step")


def best_int8_tile(
    num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> Int8Tile | WideTile:
    """What was measured to be fastest where Triton runs now, or a shape that fits."""
    from llmcourse.kernels.backend import interpreted
    from llmcourse.kernels.capabilities import compiles_for, shared_bytes

    if interpreted():
        return Int8Tile(16, 16, 64, 1, 1)
    if num_rows <= 64:
        height = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
        return Int8Tile(height, 32, 256, 4, 4)
    roomy = shared_bytes() >= 160 * 1024
    return Int8Tile(128, 256 if compiles_for(90) else 128, 128 if roomy else 64, 8, 3)
