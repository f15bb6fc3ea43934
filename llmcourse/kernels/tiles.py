"""Tile shapes of the kernels: what was measured to be best, and a rule for the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from llmcourse.kernels.arguments import check_power_of_2, check_warps


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


@dataclass(frozen=True)
class Strip:
    """How `linear_gluon` cuts a matrix: whole rows, held in shared memory.

    Attributes:
        rows: of the weights for one program, a power of two of at least 8, which the accelerator's layout
            asks for; of both halves each where gate and up are fused.
        warps: of 32 threads, for one program.
        tensor_cores: who multiplies; they have far fewer instructions to issue, and a few more to add up.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    rows: int
    warps: int
    tensor_cores: bool

    def __post_init__(self):
        check_power_of_2("rows", self.rows, 8)
        check_warps(self.warps)

    @property
    def columns(self) -> int:
        """Of a piece for several rows of input: four warps multiply 64 rows of 64 numbers at a time."""
        return max(64, 1024 * self.warps // self.rows)

    def held_bytes(self, num_rows: int, num_inputs: int, gated: bool) -> int:
        """Of shared memory, in pieces of `STRIP_COLUMNS` for one row of input, for several with all of x."""
        if num_rows == 1:
            return _up_to(num_inputs, STRIP_COLUMNS) * self.rows * (1 + gated) * 2
        return _up_to(num_inputs, self.columns) * (self.rows * (1 + gated) + ring_rows(num_rows)) * 2


@dataclass(frozen=True)
class Ring:
    """How `linear_rows_gluon` cuts a matrix: tiles of a program's rows, which come through shared memory.

    Attributes:
        rows: of the weights for one program, a power of two of at least 8, which the accelerator's layout
            asks for; of both halves each where gate and up are fused.
        columns: of a tile, a power of two of at least 64. The tensor cores take `rows · columns / 64` rows at
            a time, which must be at least 64.
        stages: tiles under way at once.
        warps: of 32 threads, for one program: four, or eight where a tile has 128 rows for the tensor cores.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    rows: int
    columns: int
    stages: int
    warps: int = 4

    def __post_init__(self):
        check_power_of_2("rows", self.rows, 8)
        check_power_of_2("columns", self.columns, 64)
        if self.warps not in (4, 8):
            raise ValueError(f"warps must be 4 or 8, which multiply together, got {self.warps}")
        if self.rows * self.columns < 1024 * self.warps:
            raise ValueError(
                f"rows · columns must be at least {1024 * self.warps}, which {self.warps} warps multiply at "
                f"a time, got {self.rows} · {self.columns}; make one of them larger"
            )
        if self.stages < 2:
            raise ValueError(f"stages must be at least 2, got {self.stages}; 2 keep one tile in flight")

    def held_bytes(self, num_rows: int, num_inputs: int, gated: bool) -> int:
        """Of shared memory, for so many rows of input; the same for rows of any length."""
        tile = self.columns * 2 * (self.rows * (1 + gated) + ring_rows(num_rows))
        return self.stages * tile + 2 * self.columns * 2 * ring_rows(num_rows)


def ring_rows(num_rows: int) -> int:
    """Rows of input that a `Ring` takes: the tensor cores have eight columns, or a multiple."""
    return max(8, _power_of_2(num_rows))


@dataclass(frozen=True)
class AttentionTile:
    """How a program of `decode_attention` goes through the keys and values of a head.

    Attributes:
        block: keys at a time, a power of 2 of at least 16.
        warps: of 32 threads, for one program.
        stages: tiles under way at once in shared memory; 0 for one after the other in registers, which
            every GPU, dtype and head size can do.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    block: int = 32
    warps: int = 4
    stages: int = 0

    def __post_init__(self):
        check_power_of_2("block", self.block, 16)
        check_warps(self.warps)
        if self.stages < 0:
            raise ValueError(f"stages must be at least 0, got {self.stages}; 0 keeps the tile in registers")


@dataclass(frozen=True)
class FlashTile:
    """The part of the scores that one program of `flash_attention` makes at a time.

    Attributes:
        queries, keys: rows of the tile and columns, powers of 2 of at least 16.
        warps: of 32 threads, for one program.
        stages: tiles of what the program walks through that are in flight.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1

    def __post_init__(self):
        check_power_of_2("queries", self.queries, 16)
        check_power_of_2("keys", self.keys, 16)
        check_warps(self.warps)
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}; 1 keeps one tile in flight")


MOST_QUERIES = 64  # of a key head, that one program of `append_attention` holds in registers
STAGED_HEAD_DIMS = (64, 128, 256)
STRIP_COLUMNS = 1024  # of a row in one piece of shared memory
SPARE_BYTES = 8 * 1024  # of shared memory, for all that a program holds beside its tiles
FEW_ROWS_BYTES = 227 * 1024  # of shared memory, that the tiles of `few_rows_tile` ask for

# For one row of input, (outputs, inputs, gated) to the tile that was fastest on an H200, weights in bfloat16
# and PDL on; the rows are in benchmarks/results/raw/decode_variants_nvidia_h200.jsonl. With these a step of
# Llama-3-8B is 5 % shorter than by the rule below, one of Llama-2-7B 1 %.
MEASURED = {
    (6144, 4096, False): Tile(2, 4096, 4),  # Llama-3-8B
    (14336, 4096, True): Tile(4, 1024, 4),
    (4096, 14336, False): Tile(2, 2048, 4),
    (128256, 4096, False): Tile(4, 4096, 8),
    (4096, 4096, False): Tile(8, 1024, 4),  # both
    (12288, 4096, False): Tile(2, 4096, 4),  # Llama-2-7B
    (11008, 4096, True): Tile(1, 4096, 4),
    (4096, 11008, False): Tile(4, 2048, 4),
    (32000, 4096, False): Tile(2, 4096, 4),
    (6144, 2048, True): Tile(4, 1024, 4),  # the target of benchmarks/train_target.py
    (2048, 2048, False): Tile(4, 2048, 4),
    (12288, 2048, False): Tile(4, 2048, 4),
}

# Small matrices, of which the hand-over from kernel to kernel takes longer than the reading: those of
# Qwen3-0.6B, by a chain of its layers on an H200, in bfloat16.
STRIPS = {
    (4096, 1024, False): Strip(16, 8, False),
    (1024, 2048, False): Strip(8, 4, True),
    (3072, 1024, True): Strip(8, 4, True),
    (1024, 3072, False): Strip(8, 8, False),
}


MOST_RING_ROWS, MEASURED_RING_ROWS = 16, 8  # of input: that run, and for which rings and strips were measured
RING_BYTES = 104 * 1024  # of shared memory, so that two programs fit on a multiprocessor of Hopper

# For up to eight rows of input, (outputs, inputs, gated) to what was fastest on an H200: for eight in chains
# of Llama-3-8B's layers, for seven in those of the others. All are in
# benchmarks/results/raw/few_rows_variants_nvidia_h200.jsonl.
FEW_ROWS = {
    (14336, 4096, True): Ring(128, 128, 3, 8),
    (4096, 14336, False): Ring(16, 512, 4),
    (6144, 4096, False): Ring(32, 256, 4, 8),
    (4096, 4096, False): Ring(32, 128, 16),
    (128256, 4096, False): Ring(128, 128, 3, 8),
    (4096, 1024, False): Strip(64, 4, True),
    (1024, 2048, False): Strip(8, 4, True),
    (3072, 1024, True): Strip(16, 4, True),
    (1024, 3072, False): Strip(16, 8, True),
    (12288, 1024, False): Strip(32, 4, True),
    (6144, 2048, True): Ring(64, 128, 3, 8),  # the target of benchmarks/train_target.py
    (12288, 2048, False): Ring(64, 128, 5),
}

# For nine to sixteen rows, by sixteen tokens of the wide target of that script: where a ring was faster than
# `few_rows_tile` gives. Not of q, k and v, and not of gate and up, which weight x by a norm.
SIXTEEN_ROWS = {
    (4096, 14336, False): Ring(32, 256, 5, 8),
    (4096, 4096, False): Ring(32, 128, 16),
    (12288, 4096, False): Ring(64, 128, 5),
}


def streamed_tile(num_rows: int, num_outputs: int, num_inputs: int, gated: bool) -> Ring | Strip:
    """For up to eight rows in bfloat16 on Hopper: what was measured for this matrix, or what the rule gives.

    By the rule that is a strip where it leaves room for the program of another kernel, otherwise a ring.
    """
    measured = FEW_ROWS.get((num_outputs, num_inputs, gated))
    ring = ring_rule(num_rows, num_outputs, num_inputs, gated)
    strip = Strip(min(ring.rows, 16 if gated else 32), 4, True)
    small = strip.held_bytes(num_rows, num_inputs, gated) <= RING_BYTES
    return measured or (strip if small else ring)


def ring_rule(num_rows: int, num_outputs: int, num_inputs: int, gated: bool) -> Ring:
    """A program for every multiprocessor, and as many tiles as let two programs share one."""
    rows = 64 if gated else 32
    least = max(8, 4096 // max(64, _power_of_2(num_inputs)))  # a tile is no wider than the matrix
    while rows > least and num_outputs < 112 * rows:
        rows //= 2
    rows = max(rows, least)
    ring = Ring(rows, 4096 // rows, 2)
    while (more := replace(ring, stages=ring.stages + 1)).held_bytes(num_rows, 0, gated) <= RING_BYTES:
        ring = more
    return ring


def gemv_tile(num_outputs: int, num_inputs: int, gated: bool, strips: bool = False) -> Tile | Strip:
    """For one row of input: what was measured for this matrix, otherwise what the rule gives.

    Args:
        strips: whether `linear_gluon` can run: on Hopper or later, in bfloat16.
    """
    shape = (num_outputs, num_inputs, gated)
    strip = STRIPS.get(shape) if strips else None
    return strip or MEASURED.get(shape) or gemv_rule(*shape)


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


def few_rows_tile(num_rows: int, num_outputs: int, gated: bool) -> Tile | None:
    """For several rows, in 16 bits; None where PyTorch's product was faster on an H200.

    A program takes most of the 227 KiB of shared memory there: enough of the weights must be on their way.
    """
    if num_rows > 64 or num_outputs < 4096:
        return None
    if num_outputs >= 32768 and not gated:
        return Tile(128, 128, 8, 4)
    if num_rows > 16 and gated:
        return Tile(128, 64, 4, 5)
    if num_rows > 32:
        return None
    return Tile(64, 256, 4, 3) if gated or num_outputs > 4096 else Tile(64, 128, 4, 5)


def matmul_rows(num_rows: int, item_bytes: int) -> int:
    """Rows of input that one program of `matmul_tile` takes."""
    return max(16, min(_power_of_2(num_rows), 128 // item_bytes))


def attention_tile(head_dim: int, item_bytes: int, shared_bytes: int) -> AttentionTile:
    """For one new token a row.

    Args:
        shared_bytes: of a program, where tiles can wait in shared memory: two of them, in 128 KiB or 64;
            0 where they cannot. In registers a tile of 32 keys in float32 overflows those of 4 warps.
    """
    if shared_bytes:
        held = 2**17 if shared_bytes >= 2**17 + SPARE_BYTES else 2**16
        return AttentionTile(block=held // (2 * 2 * head_dim * item_bytes), warps=4, stages=2)
    return AttentionTile(block=32, warps=4 if item_bytes <= 2 else 8)


def paged_tile(head_dim: int, item_bytes: int, hopper: bool) -> AttentionTile:
    """For a cache in blocks, small enough for 99 KiB of shared memory, and for the registers.

    In 16 bits on Hopper the fastest of three for 256 requests of different lengths and for 64 of them on an
    H200 (benchmarks/results/raw/paged_decode_variants_nvidia_h200.jsonl); the kernel for chunks takes the
    same (paged_variants_nvidia_h200.jsonl). For 64 of 4,096 tokens (64, 4, 2), of which four programs fit on
    a multiprocessor, is 17 % faster.

    Args:
        hopper: whether the GPU is that or later; before, both operands of a product are held in registers.
    """
    if item_bytes > 2:
        return AttentionTile(block=16, warps=8, stages=2)
    if head_dim > 128:
        return AttentionTile(block=32, warps=8, stages=2)
    return AttentionTile(block=64 if hopper else 32, warps=4, stages=3)


def flash_tile(head_dim: int, item_bytes: int, biased: bool = False) -> FlashTile:
    """For the forward pass; small enough for 99 KiB of shared memory, and for the registers.

    In float32 there are no tensor cores: all of a tile passes through registers. So does a tile of a bias.
    """
    if item_bytes > 2:
        return FlashTile(32, 32, 8) if head_dim <= 128 else FlashTile(16, 16, 8)
    if biased:
        return FlashTile(64, 32, 8, 2) if head_dim <= 128 else FlashTile(32, 32, 8, 2)
    if head_dim <= 64:
        return FlashTile(128, 64, 8, 3)
    return FlashTile(128, 64, 8, 2) if head_dim <= 128 else FlashTile(64, 32, 8, 2)


def flash_backward_tile(head_dim: int, item_bytes: int, biased: bool = False) -> tuple[FlashTile, FlashTile]:
    """For the backward pass, of a program that walks through keys and of one that walks through queries."""
    if item_bytes > 2:
        if head_dim <= 64:
            return FlashTile(32, 16), FlashTile(32, 32, 8)
        return FlashTile(16, 16, 8, 2), FlashTile(16, 16, 8, 2)
    if biased and head_dim <= 128:
        return FlashTile(64, 32, 8, 2), FlashTile(32, 32, 8, 2)
    if head_dim <= 64:
        return FlashTile(64, 64, 8, 2), FlashTile(32, 64, 8, 2)
    if head_dim <= 128:
        return FlashTile(64, 32, 8, 2), FlashTile(32, 64, 8, 2)
    return FlashTile(32, 32, 8, 2), FlashTile(32, 32, 8)


def flash_backward_hopper_tile(head_dim: int) -> FlashTile:
    """For the backward pass in five products, in 16 bits: what the registers of eight warps can hold."""
    return FlashTile(128 if head_dim <= 64 else 64, 128, 8, 3)


def flash_bias_tile(head_dim: int, item_bytes: int) -> FlashTile:
    """For the gradient of a bias."""
    if item_bytes > 2:
        return FlashTile(32, 32, 8) if head_dim <= 128 else FlashTile(16, 16, 8)
    return FlashTile(64, 32, 8) if head_dim <= 128 else FlashTile(32, 32, 8)


def _up_to(number: int, step: int) -> int:
    """The smallest multiple that is not below it."""
    return -(-number // step) * step


def _power_of_2(number: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (number - 1).bit_length()
