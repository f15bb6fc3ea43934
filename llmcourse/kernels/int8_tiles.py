"""How the kernels of `int8_matmul` cut a product."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmcourse.kernels.arguments import check_power_of_2, check_warps

LEAST_WIDE_TILES = 96  # of 128 rows by 256 outputs, which an H200 has 132 multiprocessors for
ROOMY = 160 * 1024  # bytes of shared memory, as data-centre GPUs have them


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
        outputs: 128 or 256.
        groups: of four warps, 2 or 3.
        turns: each group has tiles of its own, and they multiply in turns; otherwise they share a tile, one
            below the other.
        stages: tiles of 128 columns under way at once, at least 2.
        buffers: pieces of a group's result under way to memory, at least 1.
        band: tiles of rows that go together, so that what they read stays in the cache.
        outliers: columns in 16 bits that go with the codes, 64, 128 or 256.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    rows: int = 64
    outputs: int = 256
    groups: int = 2
    turns: bool = False
    stages: int = 4
    buffers: int = 2
    band: int = 16
    outliers: int = 64

    def __post_init__(self):
        for name, taken in (
            ("rows", (64, 128)),
            ("outputs", (128, 256)),
            ("groups", (2, 3)),
            ("outliers", (64, 128, 256)),
        ):
            if getattr(self, name) not in taken:
                raise ValueError(
                    f"{name} must be one of {taken}, got {getattr(self, name)}; take one of these"
                )
        for name, least in (("stages", 2), ("buffers", 1), ("band", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}; take {least}")
        if self.rows * self.outputs > 2**14:
            raise ValueError(
                f"rows · outputs must be at most {2**14}, which registers hold, got {self.rows} · "
                f"{self.outputs}; make one of them smaller"
            )

    @property
    def held_bytes(self) -> int:
        """Of shared memory, but for its barriers."""
        high = self.rows * (1 if self.turns else self.groups)
        return self.stages * (high + self.outputs) * 128 + self.groups * self.buffers * self.rows * 128


def best_int8_tile(num_rows: int, num_outputs: int, num_inputs: int, wide: bool) -> Int8Tile | WideTile:
    """What was measured to be fastest where Triton runs now, or a shape that fits.

    Args:
        wide: whether a `WideTile` can run.
    """
    from llmcourse.kernels.backend import interpreted
    from llmcourse.kernels.capabilities import shared_bytes

    if interpreted():
        return Int8Tile(16, 16, 64, 1, 1)
    tiles = -(-num_rows // 128) * -(-num_outputs // 256)
    if wide and tiles >= LEAST_WIDE_TILES:
        return replace(WideTile(), outliers=most_outliers(num_inputs))
    if num_rows <= 32:
        stages = 6 if num_inputs > 8192 and shared_bytes() >= ROOMY else 4
        return Int8Tile(16 if num_rows <= 16 else 32, 32, 256, 4, stages)
    if num_rows <= 64:
        return Int8Tile(64, 32, 256, 4, 4) if num_outputs <= 8192 else Int8Tile(64, 64, 128, 4, 5)
    if num_rows <= 512:
        return Int8Tile(64, 64, 128, 4, 5)
    return Int8Tile(128, 128, 128 if shared_bytes() >= ROOMY else 64, 8, 3)


def most_outliers(num_inputs: int) -> int:
    """Columns in 16 bits that go with the codes: at least 1.5 % of all, but not more than 256.

    Beyond that all is computed by a kernel that is slower, and takes any number of them. In the paper's
    models 0.1 % of the columns are outliers (section 4).
    """
    return min(256, max(64, 2 ** (num_inputs // 64 - 1).bit_length()))
