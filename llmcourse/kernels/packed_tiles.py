"""How the kernels of `packed_linear` cut a matrix: what was measured to be best, and a rule for the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from llmcourse.kernels.arguments import check_power_of_2, is_count
from llmcourse.kernels.split_rings import REGISTERS, Needs
from llmcourse.kernels.tiles import ring_rows

MOST_KERNEL_ROWS = 64  # of input, up to which codes are multiplied by a kernel; for more, W is written out
MOST_FUSED_ROWS = 16  # of input, up to which the ring's kernel takes RMSNorm and SwiGLU in
ALIGNED_BYTES = 128  # of shared memory, at multiples of which a copy begins
BLOCK = 128  # columns of a group that a ring has scales for


SHARED_BYTES = 228 * 1024  # of a multiprocessor of Hopper
PRODUCER_REGISTERS = 32  # of a thread; the consumers have the others
LIVE_AT_ONCE = 0.7  # of a step's numbers in registers: by what compiled rings spill, few or none
OTHER_BYTES = 3 * 1024  # of shared memory that a program takes beside its rings
MOST_REGISTERS = {4: 136, 8: 168}  # of a thread at launch, with which consumers have as many as there can be


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


@dataclass(frozen=True)
class PackedRing:
    """How `packed_gluon` cuts a matrix: tiles that come through shared memory, and who shares its columns.

    Attributes:
        rows: of the weights for one program, a power of two of at least 16 for each warp that does not share
            them; of both halves each where gate and up are fused.
        blocks: of 128 columns in a step, a power of two, of which each warp that shares columns has one or
            more.
        warps_k: warps that share the columns of a step, a power of two.
        stages: steps of codes under way at once.
        input_stages: steps of x under way at once.
        splits: programs that share the columns of a tile's rows; 1 for none.
        warps: of 32 threads, that multiply for one program, 4 or 8; one more asks for tiles.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    rows: int
    blocks: int
    warps_k: int
    stages: int
    input_stages: int
    splits: int = 1
    warps: int = 4

    def __post_init__(self):
        for name in ("blocks", "warps_k", "warps"):
            check_power_of_2(name, getattr(self, name))
        if self.warps not in MOST_REGISTERS or self.warps_k > self.warps or self.warps_k > self.blocks:
            raise ValueError(
                f"warps_k must be at most warps, which are 4 or 8, and at most blocks, got {self}"
            )
        check_power_of_2("rows", self.rows, 16 * self.warps // self.warps_k)
        if self.rows > 256:
            raise ValueError(f"rows must be at most 256, which is what one copy takes, got {self.rows}")
        for name in ("stages", "input_stages"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} must be at least 2, got {getattr(self, name)}; 2 keep one step in flight"
                )
        if not is_count(self.splits):
            raise ValueError(f"splits must be an integer of at least 1, got {self.splits!r}; 1 is for none")

    def steps(self, num_inputs: int) -> int:
        """That a program goes through, of a matrix of so many columns."""
        return _up(_up(num_inputs, BLOCK * self.blocks), self.splits)

    def held_bytes(self, num_rows: int, width: int, gated: bool, zeros: bool) -> int:
        """Of shared memory, by the rings alone, with room for a norm's gains."""
        code = self.rows * (BLOCK * width // 8 + 2 + zeros) * (1 + gated) + BLOCK * 2
        return self.blocks * (self.stages * code + self.input_stages * ring_rows(num_rows) * BLOCK * 2)

    def shared_bytes(self, num_rows: int, width: int, gated: bool, zeros: bool) -> int:
        """That a program takes: its rings, and what warps that share columns add up through."""
        through = self.blocks * self.rows * ring_rows(num_rows) * 4 if self.warps_k > 1 else 0
        return self.held_bytes(num_rows, width, gated, zeros) + through

    def registers(self, num_rows: int, width: int, gated: bool, zeros: bool) -> int:
        """Of a thread at launch, so that as many programs fit as their shared memory and numbers let.

        The producer is one of four more warps, which leave theirs to the others.
        """
        fit = SHARED_BYTES // (self.held_bytes(num_rows, width, gated, zeros) + OTHER_BYTES)
        wanted = LIVE_AT_ONCE * self._numbers(ring_rows(num_rows), width, gated, zeros)
        for programs in range(max(1, fit), 0, -1):
            at_launch = REGISTERS // (programs * 32 * (self.warps + 4)) // 8 * 8
            of_consumer = (at_launch * (self.warps + 4) - 4 * PRODUCER_REGISTERS) / self.warps
            if programs == 1 or of_consumer >= wanted:
                return min(MOST_REGISTERS[self.warps], at_launch)
        raise AssertionError("one program always fits")

    def _numbers(self, batch: int, width: int, gated: bool, zeros: bool) -> int:
        """Registers of a consumer's thread, if all that a step needs were there at once."""
        blocks, rows = self.blocks // self.warps_k, self.rows * self.warps_k // self.warps
        halves, sums = 1 + gated, rows * blocks * batch // 32
        of_x = 2 * blocks * batch + (16 * blocks + 4 * self.blocks * batch // self.warps) * gated
        return of_x + sums * (halves + 1 + zeros) + halves * rows * blocks * width // 8 + 40

    def needs(self, num_rows: int, num_outputs: int, gated: bool) -> Needs:
        """Sums of a tile for each program, and the squares of each row of input beside them."""
        if self.splits == 1:
            return Needs(0, 0)
        tiles = _up(num_outputs, self.rows)
        return Needs(tiles, tiles * self.splits * (self.rows * (1 + gated) + 1) * ring_rows(num_rows))


AnyPackedTile = PackedTile | PackedRing

# Bytes of shared memory for a program, so that several fit on a multiprocessor of Hopper.
BY_FOURS, BY_THREES, BY_TWOS = 52 * 1024, 70 * 1024, 104 * 1024

# For up to so many rows of input, (outputs, inputs, gated, width of a code) to the ring that
# benchmarks/packed_variants.py finds fastest on an H200. Where nothing is entered, `ring_rule` decides. For
# more than `MOST_FUSED_ROWS` gate and up are one product of twice as many outputs. Rings that spill
# registers, some where a residual is added or a norm goes before, are left out, though a few are faster.
PACKED_RINGS: dict[int, dict[tuple[int, int, bool, int], PackedRing]] = {
    8: {
        (14336, 4096, False, 4): PackedRing(64, 4, 2, 2, 2, 1, 8),
        (4096, 14336, False, 4): PackedRing(64, 4, 4, 4, 4, 4, 4),
        (4096, 4096, False, 4): PackedRing(32, 4, 2, 7, 4, 1, 4),
        (6144, 4096, False, 4): PackedRing(32, 4, 2, 4, 4, 1, 4),
        (128256, 4096, False, 4): PackedRing(128, 2, 1, 5, 4, 1, 8),
        (14336, 4096, True, 4): PackedRing(64, 2, 2, 5, 4, 1, 4),
        (14336, 4096, False, 8): PackedRing(64, 2, 1, 5, 4, 1, 4),
        (4096, 14336, False, 8): PackedRing(64, 2, 2, 5, 4, 4, 8),
        (4096, 4096, False, 8): PackedRing(64, 2, 2, 2, 4, 4, 8),
        (6144, 4096, False, 8): PackedRing(32, 4, 4, 4, 4, 1, 4),
        (128256, 4096, False, 8): PackedRing(128, 2, 1, 2, 4, 1, 8),
        (14336, 4096, True, 8): PackedRing(64, 2, 1, 2, 4, 1, 4),
    },
    16: {
        (14336, 4096, False, 4): PackedRing(128, 2, 1, 4, 4, 1, 8),
        (4096, 14336, False, 4): PackedRing(64, 2, 2, 8, 4, 4, 4),
        (4096, 4096, False, 4): PackedRing(32, 4, 4, 4, 4, 1, 4),
        (6144, 4096, False, 4): PackedRing(32, 4, 4, 4, 4, 1, 4),
        (128256, 4096, False, 4): PackedRing(64, 2, 1, 3, 3, 1, 4),
        (14336, 4096, True, 4): PackedRing(64, 2, 1, 2, 2, 1, 4),
        (14336, 4096, False, 8): PackedRing(64, 2, 1, 4, 4, 1, 4),
        (4096, 14336, False, 8): PackedRing(64, 2, 2, 4, 4, 4, 4),
        (4096, 4096, False, 8): PackedRing(32, 4, 4, 3, 3, 1, 4),
        (6144, 4096, False, 8): PackedRing(32, 4, 4, 3, 3, 1, 4),
        (128256, 4096, False, 8): PackedRing(64, 2, 1, 4, 4, 1, 4),
        (14336, 4096, True, 8): PackedRing(64, 2, 1, 2, 4, 1, 4),
    },
    32: {
        (14336, 4096, False, 4): PackedRing(128, 1, 1, 8, 4, 2, 4),
        (4096, 14336, False, 4): PackedRing(64, 1, 1, 10, 4, 4, 4),
        (4096, 4096, False, 4): PackedRing(64, 1, 1, 10, 4, 4, 4),
        (6144, 4096, False, 4): PackedRing(64, 1, 1, 10, 4, 2, 4),
        (128256, 4096, False, 4): PackedRing(128, 1, 1, 8, 4, 1, 4),
        (28672, 4096, False, 4): PackedRing(128, 1, 1, 4, 4, 1, 8),
        (14336, 4096, False, 8): PackedRing(64, 1, 1, 8, 4, 1, 4),
        (4096, 14336, False, 8): PackedRing(128, 1, 1, 4, 4, 4, 8),
        (4096, 4096, False, 8): PackedRing(128, 1, 1, 4, 4, 4, 8),
        (6144, 4096, False, 8): PackedRing(128, 1, 1, 4, 4, 4, 4),
        (128256, 4096, False, 8): PackedRing(128, 1, 1, 4, 4, 1, 4),
        (28672, 4096, False, 8): PackedRing(64, 1, 1, 4, 4, 2, 4),
    },
    64: {
        (14336, 4096, False, 4): PackedRing(128, 1, 1, 4, 4, 2, 4),
        (4096, 14336, False, 4): PackedRing(64, 1, 1, 9, 4, 4, 4),
        (4096, 4096, False, 4): PackedRing(64, 1, 1, 9, 4, 4, 4),
        (6144, 4096, False, 4): PackedRing(128, 1, 1, 4, 4, 4, 4),
        (128256, 4096, False, 4): PackedRing(128, 1, 1, 4, 4, 1, 4),
        (28672, 4096, False, 4): PackedRing(64, 1, 1, 4, 4, 1, 4),
        (14336, 4096, False, 8): PackedRing(128, 1, 1, 3, 3, 1, 4),
        (4096, 14336, False, 8): PackedRing(64, 1, 1, 4, 4, 4, 4),
        (4096, 4096, False, 8): PackedRing(64, 1, 1, 4, 4, 4, 4),
        (6144, 4096, False, 8): PackedRing(64, 1, 1, 4, 4, 2, 4),
        (128256, 4096, False, 8): PackedRing(64, 1, 1, 4, 4, 1, 4),
        (28672, 4096, False, 8): PackedRing(64, 1, 1, 3, 3, 1, 4),
    },
}


def packed_ring(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, width: int, zeros: bool
) -> PackedRing:
    """What was measured for this matrix, otherwise what the rule gives."""
    most = next(most for most in PACKED_RINGS if num_rows <= most)
    measured = PACKED_RINGS[most].get((num_outputs, num_inputs, gated, width))
    return measured or ring_rule(num_rows, num_outputs, num_inputs, gated, width, zeros)


def ring_rule(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, width: int, zeros: bool
) -> PackedRing:
    """A program or two for every multiprocessor, and as many steps under way as let two share one.

    What was measured (`PACKED_RINGS`) often takes more warps and several rows of tensor cores for each of
    them: for other matrices `benchmarks/packed_variants.py` is worth its half minute.
    """
    few = num_rows <= 8
    rows = (64 if few else 128) // (1 + gated)
    splits = 1
    while few and rows > 16 and num_outputs < 112 * rows:
        rows //= 2
    while not few and num_outputs * splits < 112 * rows and num_inputs >= 1024 * splits:
        splits *= 2
    warps = 8 if rows == 128 and num_rows > 16 else 4
    warps_k = max(1, 16 * warps // rows)
    blocks = max(warps_k, 1 if not few and (gated or num_rows > 16) else 128 // rows)
    if zeros:
        blocks = max(blocks, ALIGNED_BYTES // rows)
    return filled(PackedRing(rows, blocks, warps_k, 2, 2, splits, warps), num_rows, width, gated, zeros)


def filled(
    ring: PackedRing, num_rows: int, width: int, gated: bool, zeros: bool = False, most: int = BY_TWOS
) -> PackedRing:
    """As many stages as fit: of x up to four, of codes what is left."""
    for name, end in (("stages", 3), ("input_stages", 4), ("stages", 10)):
        while getattr(ring, name) < end:
            more = replace(ring, **{name: getattr(ring, name) + 1})
            if more.held_bytes(num_rows, width, gated, zeros) > most:
                break
            ring = more
    return ring


def packed_rule(num_inputs: int, group_size: int, item_bytes: int, gated: bool) -> PackedTile:
    """For any GPU and shape: columns of one group if it is large enough; within 99 KiB of shared memory."""
    own, most = group_size & -group_size, (128 if item_bytes <= 2 else 64) // (1 + gated)
    columns = min(most, own) if own >= 32 and group_size < num_inputs else most
    columns = max(16, min(columns, 1 << (num_inputs - 1).bit_length()))
    return PackedTile(32, columns, 4, 4) if item_bytes <= 2 else PackedTile(32, columns, 8, 3)


def _up(number: int, parts: int) -> int:
    """The quotient, rounded up."""
    return -(-number // parts)
