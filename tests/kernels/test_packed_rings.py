"""Packed codes and x, taken apart in registers, give the product: `packed_gluon` where there is no GPU.

The kernel's own code runs over NumPy arrays here (`emulated`), which sees where each number goes, slots and
sums. `contract_of_packed_rings` runs the kernel itself, on a GPU of Hopper.
"""

import platform
import threading
import types

import numpy as np
import pytest
import torch

if platform.system() != "Linux":
    pytest.skip("Triton is made for Linux only", allow_module_level=True)

from llmcourse.kernels import packed_codes_gluon, packed_gluon
from llmcourse.kernels.linear import linear_reference
from llmcourse.kernels.packed_tiles import MOST_REGISTERS, PackedRing
from llmcourse.kernels.packed_words import packed_words
from llmcourse.kernels.tiles import ring_rows
from tests.kernels.emulated import Array, Barrier, Pointer, Shared, expect, load, python_of, rounded, run
from tests.kernels.emulated_packed import Tiles, names_of_packed

PARTS = {
    "plain": (False, False, False, False),  # norm, gated, bias, residual
    "norm": (True, False, False, False),
    "bias and residual": (False, False, True, True),
    "all that go together": (True, True, False, True),
}
RINGS = (
    PackedRing(64, 2, 1, 2, 2),
    PackedRing(32, 2, 2, 3, 2, splits=3),
    PackedRing(64, 1, 1, 2, 4),
    PackedRing(64, 2, 2, 2, 3),  # 32 rows of weights a warp
    PackedRing(64, 4, 4, 3, 2, splits=2),  # 64
    PackedRing(64, 1, 1, 4, 2, splits=5),  # of which some have nothing but zeros to add
)
KINDS = {"four bits": (4, True, False), "with zero points": (4, True, True), "channels": (8, False, False)}


def random_codes(rows: int, blocks: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, (rows, blocks · 128), and their pieces of 16 bits as in a tile: (blocks, rows, pieces)."""
    half = 2 ** (width - 1)
    codes = np.random.default_rng(0).integers(-half, half, (rows, 128 * blocks), dtype=np.int8)
    pieces = packed_words(torch.from_numpy(codes), width).view(torch.int16).unflatten(1, (blocks, -1))
    return codes, pieces.transpose(0, 1).numpy()


def operands(width: int, **planted) -> tuple[np.ndarray, np.ndarray]:
    """The product of operands that the kernel's code makes of codes and of x by gains, and the true one."""
    names = names_of_packed((0, 0)) | planted
    taken, left, right, by_gains, gains_of = (
        python_of(getattr(packed_codes_gluon, name), names)
        for name in (
            "pieces_of_codes",
            "numbers_of_codes",
            "blocks_of_input",
            "weighted",
            "gains_of_step",
        )
    )
    rows, blocks, batch = 32, 2, 8
    codes, pieces = random_codes(rows, blocks, width)
    draw = np.random.default_rng(1).standard_normal
    x, gains = rounded(draw((batch, 128 * blocks))), rounded(draw(128 * blocks))
    tile = x.reshape(batch, 2 * blocks, 64).transpose(1, 0, 2)
    of_x = right(Shared(tile[None]), 0, blocks, 1, None)
    of_x = by_gains(of_x, gains_of(Shared(gains.reshape(1, 2 * blocks, 64)), 0, blocks, 1))
    weights = left(taken(Shared(pieces[None]), 0, blocks, 1), blocks, width, False, None)
    found = (weights.numbers @ of_x.numbers).sum(0)
    return found, codes.astype(np.float32) @ rounded(x * gains).T


@pytest.mark.parametrize("width", [4, 8])
def test_operands_agree_in_the_order_of_columns(width):
    np.testing.assert_allclose(*operands(width), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("width", [4, 8])
def test_operands_that_do_not_agree_show(width):
    language = names_of_packed((0, 0))["gl"]
    language.permute = lambda x, order: Array(x.numbers.transpose(sorted(order)))
    found, truth = operands(width, gl=language)
    assert np.linalg.norm(found - truth) > 0.5 * np.linalg.norm(truth)


class Case:
    """Random arguments of a launch, and its memory."""

    def __init__(self, kind: str, parts: str, num_rows: int, num_outputs: int, blocks: int):
        self.width, self.grouped, self.zeros = KINDS[kind]
        self.norm, self.gated, self.bias, self.residual = PARTS[parts]
        generator = np.random.default_rng(0)
        draw = lambda *shape: rounded(generator.standard_normal(shape))  # noqa: E731
        self.outputs, self.blocks, rows = num_outputs, blocks, num_outputs * (1 + self.gated)
        self.codes, self.pieces = random_codes(rows, blocks, self.width)
        groups = blocks if self.grouped else 1
        self.scales = rounded((0.5 + np.abs(draw(groups, rows))) / (2**self.width * blocks**0.5 * 5))
        self.points = generator.integers(-8, 8, (groups, rows)) * self.zeros
        self.x = draw(num_rows, 128 * blocks)
        self.gains, self.biases = np.abs(draw(128 * blocks)), draw(num_outputs)
        self.residuals = draw(num_rows, num_outputs)

    def truth(self) -> np.ndarray:
        codes = self.codes.reshape(len(self.codes), len(self.scales), -1).astype(np.float64)
        weight = ((codes - self.points.T[..., None]) * self.scales.T[..., None]).reshape(self.codes.shape)
        wide = lambda numbers, given: torch.from_numpy(numbers).double() if given else None  # noqa: E731
        parts = {
            "norm": wide(self.gains, self.norm),
            "bias": wide(self.biases, self.bias),
            "residual": wide(self.residuals, self.residual),
        }
        return linear_reference(wide(self.x, True), wide(weight, True), gated=self.gated, **parts).numpy()

    def run(self, ring: PackedRing, seed: int = 0, launches: int = 1, **planted) -> np.ndarray:
        num_rows, steps = len(self.x), ring.steps(128 * self.blocks)
        needs = ring.needs(num_rows, self.outputs, self.gated)
        parts, arrivals = np.full(needs.numbers, np.nan, np.float32), np.zeros(needs.tiles, np.int32)
        flat = lambda numbers: Pointer(numbers.reshape(-1), torch.bfloat16)  # noqa: E731
        of_x = self.x.reshape(num_rows, 2 * self.blocks, 64).transpose(1, 0, 2)
        by_rows = (ring.blocks, ring.rows)
        for _ in range(launches):
            out = np.full((num_rows, self.outputs), np.nan, np.float32)
            arguments = (
                Tiles(of_x, 2 * ring.blocks, ring_rows(num_rows), 64),
                Tiles(self.gains.reshape(-1, 64), 2 * ring.blocks, 64),
                Tiles(self.pieces, *by_rows, 8 * self.width),
                Tiles(self.scales, *by_rows),
                Tiles(self.points, *by_rows, item_bytes=1),
                flat(self.scales),
                flat(self.biases),
                flat(self.residuals),
                flat(out),
                Pointer(parts, torch.float32),
                Pointer(arrivals, torch.int32),
                num_rows,
                self.outputs,
                1e-6,
            )
            constants = {
                "K": 128 * self.blocks,
                "WIDTH": self.width,
                "BATCH": ring_rows(num_rows),
                "ROWS": ring.rows,
                "BLOCKS": ring.blocks,
                "WARPS_K": ring.warps_k,
                "STAGES": min(ring.stages, steps),
                "INPUT_STAGES": min(ring.input_stages, steps),
                "SPLITS": ring.splits,
                "STEPS": steps,
                "GROUPED": self.grouped,
                "HAS_ZEROS": self.zeros,
                "HAS_NORM": self.norm,
                "HAS_BIAS": self.bias,
                "HAS_RESIDUAL": self.residual,
                "GATED": self.gated,
                "PDL": True,
                "num_warps": ring.warps,
            }
            grid = (-(-self.outputs // ring.rows), ring.splits)
            kernel = packed_gluon._packed_ring_kernel
            run(kernel, grid, arguments, constants, seed, names_of_packed, **planted)
            assert not arrivals.any(), "zero between launches"
        return out


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_gives_the_product(kind, parts, ring):
    """Outputs, blocks of columns and rows that fill no tile, twice with the same memory."""
    for num_rows, num_outputs, blocks in ((1, 77, 11), (9, 130, 6), (16, 1, 1)):
        case = Case(kind, parts, num_rows, num_outputs, blocks)
        assert error(case.run(ring, launches=2), case.truth()) < 0.006, "NaN where it is not written"


def test_the_order_in_which_programs_end_changes_no_bit():
    case, ring = Case("four bits", "all that go together", 3, 70, 9), PackedRing(64, 1, 1, 2, 2, splits=5)
    first, *others = (case.run(ring, seed) for seed in range(5))
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    "planted",
    [
        {"weighted": lambda x, gains: x},
        {"gathered": lambda parts, at, there, size, splits: load(parts + at, there)},  # of the first only
        {"_added": lambda sums, *_: sums},
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_what_is_planted_shows(planted):
    case = Case("four bits", "all that go together", 5, 77, 11)
    assert error(case.run(PackedRing(32, 2, 2, 3, 2, splits=3), **planted), case.truth()) > 0.1


def test_codes_that_stay_136_too_large_show():
    """What is subtracted for all rows at once, and is not."""
    none = lambda sums, times: Array(np.zeros_like(np.concatenate([sums.numbers] * times, axis=1)))  # noqa: E731
    case, ring = Case("four bits", "plain", 1, 77, 11), PackedRing(64, 2, 2, 2, 3)
    assert error(case.run(ring, repeated=none), case.truth()) > 1


def hasty(barrier: Barrier, parity: int) -> None:
    """The producer waits for no slot."""
    if threading.current_thread() is threading.main_thread():
        barrier.wait(parity)


@pytest.mark.parametrize("ring", RINGS[:3:2], ids=str)
def test_a_slot_asked_for_before_it_was_read_shows(ring):
    waits = {"init": lambda *_, count: None, "expect": expect, "wait": hasty, "arrive": Barrier.arrive}
    with pytest.raises(AssertionError, match="asked for again before it was waited for"):
        Case("four bits", "norm", 1, 77, 11).run(ring, mbarrier=types.SimpleNamespace(**waits))


@pytest.mark.parametrize(
    ("ring", "rows", "width", "gated", "programs"),
    [
        (PackedRing(32, 4, 2, 3, 3), 1, 4, False, 4),
        (PackedRing(64, 4, 4, 3, 2), 1, 4, False, 3),  # shared memory
        (PackedRing(64, 4, 2, 4, 4, warps=8), 1, 4, False, 2),
        (PackedRing(64, 2, 1, 2, 2), 1, 4, True, 3),
        (PackedRing(64, 2, 1, 2, 2), 1, 8, True, 2),  # codes of both halves
        (PackedRing(128, 1, 1, 3, 3), 64, 4, False, 2),
        (PackedRing(128, 1, 1, 3, 3, warps=8), 64, 4, False, 1),
    ],
)
def test_registers_are_for_as_many_programs_as_fit(ring, rows, width, gated, programs):
    """The unit in which a warp gets them is eight a thread."""
    registers, threads = ring.registers(rows, width, gated, False), 32 * (ring.warps + 4)
    assert registers % 8 == 0 and registers <= MOST_REGISTERS[ring.warps]
    assert 65536 // (registers * threads) == programs
    assert programs * ring.held_bytes(rows, width, gated, False) <= 227 * 1024
