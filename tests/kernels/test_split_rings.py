"""Programs that share a matrix's columns give its product; and who takes them, who does not.

The kernel's own code runs over NumPy arrays here (`emulated`), which sees places, slots and sums.
`contract_of_rings` runs the kernel itself, on a GPU of Hopper.
"""

import itertools
import json
import platform
import re
import threading
import types

import numpy as np
import pytest
import torch

if platform.system() != "Linux":
    pytest.skip("Triton is made for Linux only", allow_module_level=True)

from llmcourse.costs.models import MODELS
from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.decoding.engine.window import _WindowStep
from llmcourse.kernels import linear_split_gluon
from llmcourse.kernels.linear import AnyTile, best_linear_tile, linear, linear_reference
from llmcourse.kernels.split_rings import (
    MOST_SPLIT_ROWS,
    SHARED_BY_TWO,
    SPLIT_RINGS,
    SplitMemory,
    SplitRing,
)
from llmcourse.kernels.tiles import SIXTEEN_ROWS, Ring, few_rows_tile
from tests.interpreted import ROOT
from tests.kernels.emulated import Array, Barrier, Descriptor, Pointer, Sums, expect, load, rounded, run
from tests.kernels.test_kernels import matrices

PARTS = {
    "plain": (False, False, False, False),  # norm, gated, bias, residual
    "norm": (True, False, False, False),
    "gated": (True, True, False, False),
    "bias and residual": (False, False, True, True),
    "all that go together": (True, True, False, True),
}
RINGS = (
    SplitRing(128, 64, 2, 2),
    SplitRing(128, 64, 3, 2, splits=3),
    SplitRing(64, 128, 2, 3, splits=2, warps=4),
    SplitRing(128, 64, 5, 3, splits=7),  # of which some have nothing but zeros to add
)


class Case:
    """Random arguments of a launch, and its memory."""

    def __init__(self, parts: str, num_rows: int, num_outputs: int, num_inputs: int):
        self.norm, self.gated, self.bias, self.residual = PARTS[parts]
        generator = np.random.default_rng(0)
        draw = lambda *shape: rounded(generator.standard_normal(shape))  # noqa: E731
        self.x = draw(num_rows, num_inputs)
        self.weight = rounded(draw(num_outputs * (1 + self.gated), num_inputs) / num_inputs**0.5)
        self.gains, self.biases = np.abs(draw(num_inputs)), draw(num_outputs)
        self.residuals = draw(num_rows, num_outputs)

    def truth(self) -> np.ndarray:
        wide = lambda numbers, given: torch.from_numpy(numbers).double() if given else None  # noqa: E731
        return linear_reference(
            wide(self.x, True),
            wide(self.weight, True),
            norm=wide(self.gains, self.norm),
            bias=wide(self.biases, self.bias),
            residual=wide(self.residuals, self.residual),
            gated=self.gated,
        ).numpy()

    def run(self, ring: SplitRing, seed: int = 0, launches: int = 1, **other_names) -> np.ndarray:
        (num_rows, num_inputs), num_outputs = self.x.shape, self.residuals.shape[1]
        steps = ring.steps(num_inputs)
        needs = ring.needs(num_rows, num_outputs, self.gated)
        parts, arrivals = np.full(needs.numbers, np.nan, np.float32), np.zeros(needs.tiles, np.int32)
        flat = lambda numbers: Pointer(numbers.reshape(-1), torch.bfloat16)  # noqa: E731
        for _ in range(launches):
            out = np.full((num_rows, num_outputs), np.nan, np.float32)
            arguments = (
                Descriptor(self.x, MOST_SPLIT_ROWS, ring.columns),
                flat(self.gains),
                Descriptor(self.weight, ring.rows, ring.columns),
                flat(self.biases),
                flat(self.residuals),
                flat(out),
                Pointer(parts, torch.float32),
                Pointer(arrivals, torch.int32),
                num_rows,
                num_outputs,
                1e-6,
            )
            constants = {
                "K": num_inputs,
                "ROWS": ring.rows,
                "COLUMNS": ring.columns,
                "STAGES": min(ring.stages, steps),
                "INPUT_STAGES": min(ring.input_stages, steps),
                "SPLITS": ring.splits,
                "STEPS": steps,
                "GAINS": ring.gains(num_inputs),
                "HAS_NORM": self.norm,
                "HAS_BIAS": self.bias,
                "HAS_RESIDUAL": self.residual,
                "GATED": self.gated,
                "PDL": True,
                "num_warps": ring.warps,
            }
            grid = (-(-num_outputs // ring.rows), ring.splits)
            kernel = linear_split_gluon._split_ring_kernel
            run(kernel, grid, arguments, constants, seed, **other_names)
            assert not arrivals.any(), "zero between launches"
        return out


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_the_kernel_gives_the_product(parts, ring):
    """Outputs, inputs and rows that fill no tile, twice with the same memory."""
    for num_rows, num_outputs, num_inputs in ((17, 77, 1000), (33, 200, 520), (64, 128, 512), (63, 1, 8)):
        case = Case(parts, num_rows, num_outputs, num_inputs)
        assert error(case.run(ring, launches=2), case.truth()) < 0.005, "NaN where it is not written"


def test_the_order_in_which_programs_end_changes_no_bit():
    case = Case("gated", 20, 70, 1000)
    ring = SplitRing(64, 64, 2, 2, splits=5, warps=4)
    first, *others = (case.run(ring, seed) for seed in range(5))
    assert all(np.array_equal(first, other) for other in others)


def a_step_late(sums: Array, up_sums: Array, tile_of_x: Array, gated: bool) -> tuple[Array, Array]:
    """All products but the last are waited for, whose slots are then asked for again."""
    found = []
    for one in (sums, up_sums):
        *taken, last = getattr(one, "pending", None) or [None]
        late = Sums(sum((a.numbers @ b.numbers for a, b in taken), one.numbers))
        late.pending = [last] if last else []
        found.append(late)
    return tuple(found)


def hasty(barrier: Barrier, parity: int) -> None:
    """The producer waits for no slot."""
    if threading.current_thread() is threading.main_thread():
        barrier.wait(parity)


HASTY = types.SimpleNamespace(init=lambda *_, count: None, expect=expect, wait=hasty, arrive=Barrier.arrive)


@pytest.mark.parametrize(
    "planted",
    [
        {"_finished": a_step_late},
        {"_leave": lambda *_: None},  # nothing, for the last to add up
        {"_added": lambda *_: 0.0},
        {
            "gathered": lambda parts, at, there, size, splits: load(parts + at, there)
        },  # what the first has left
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_what_is_planted_shows(planted):
    case = Case("all that go together", 17, 77, 1000)
    found = error(case.run(SplitRing(128, 64, 3, 2, splits=3), **planted), case.truth())
    assert np.isnan(found) or found > 0.1


def test_a_slot_asked_for_before_it_was_read_shows():
    case = Case("norm", 17, 77, 1000)
    with pytest.raises(AssertionError, match="asked for again before it was waited for"):
        case.run(SplitRing(128, 64, 3, 2), mbarrier=HASTY)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.fixture
def hopper(monkeypatch):
    """As on such a GPU, as long as nothing is launched."""
    monkeypatch.setattr("llmcourse.kernels.linear.resolve", lambda *_: "triton")
    monkeypatch.setattr("llmcourse.kernels.capabilities.runs_wgmma", lambda: True)
    monkeypatch.setattr("llmcourse.kernels.capabilities.shared_bytes", lambda: 227 * 1024)


def chosen(rows: int, shape: tuple[int, int, bool], backend: str) -> AnyTile | None:
    outputs, inputs, gated = shape
    return best_linear_tile(meta(rows, inputs), meta(outputs * (1 + gated), inputs), gated, backend)


OTHER = (1000, 512, False)  # in no table
MULTIPROCESSORS = 132  # of an H200


def test_windows_of_17_to_64_rows_take_them_for_the_matrices_that_were_measured(hopper, monkeypatch):
    for rows, backend in itertools.product((1, 2, 8, 9, 16, 17, 32, 33, 64, 65), ("auto", "triton")):
        measured = SPLIT_RINGS[32] if 17 <= rows <= 32 else SPLIT_RINGS[64] if 33 <= rows <= 64 else {}
        for shape in SPLIT_RINGS[64]:
            taken = chosen(rows, shape, backend)
            ring = taken if isinstance(taken, SplitRing) else None
            assert ring == (measured.get(shape) if backend == "triton" else None)
            if rows > 16 and backend == "auto":
                otherwise = few_rows_tile(rows, shape[0], shape[2]) if rows <= 64 else None
                assert taken == otherwise, "most of them PyTorch's"
        assert not isinstance(chosen(rows, OTHER, backend), SplitRing)
    monkeypatch.setattr("llmcourse.kernels.capabilities.runs_wgmma", lambda: False)
    assert not any(isinstance(chosen(64, shape, "triton"), SplitRing) for shape in SPLIT_RINGS[64])


def test_the_tables_are_what_the_recorded_runs_chose(hopper):
    path = ROOT / "benchmarks/results/raw/few_rows_variants_nvidia_h200.jsonl"
    rows = list(map(json.loads, path.read_text("utf-8").splitlines()))
    shape_of = lambda row: (row["outputs"], row["inputs"], row["gated"])  # noqa: E731
    for most, rings in SPLIT_RINGS.items():
        chosen_by = [row for row in rows if re.fullmatch(f"{most} tokens.*, chosen", row["what"])]
        last = {shape_of(row): row["tile"][1:] for row in chosen_by}
        assert {shape: SplitRing(*numbers) for shape, numbers in last.items()} == rings
    for shape, ring in SIXTEEN_ROWS.items():
        tried = [row for row in rows if "16 tokens" in row["what"] and shape_of(row) == shape]
        assert ring == Ring(*min(tried, key=lambda row: row["us"])["tile"][1:])
        assert chosen(9, shape, "triton") == chosen(16, shape, "triton") == ring
    others = {*SPLIT_RINGS[64], OTHER} - set(SIXTEEN_ROWS)
    assert not any(isinstance(chosen(9, shape, "triton"), Ring) for shape in others)


def test_a_window_of_many_texts_leaves_products_to_pytorch_all_the_same(hopper):
    """32 texts of five tokens are 160 rows, for which no program holds x."""
    step = object.__new__(_WindowStep)  # without its memory
    step.settings = KernelSettings()
    for outputs, inputs, gated in SPLIT_RINGS[64]:
        weight = meta(outputs * (1 + gated), inputs)
        assert step._tile(meta(160, inputs), weight, gated) is None
        assert isinstance(step._tile(meta(64, inputs), weight, gated), SplitRing)


def test_the_tables_are_of_llama_and_fit_the_chip():
    assert set(SPLIT_RINGS[64]) == matrices(MODELS["Llama-3-8B"]) > set(SPLIT_RINGS[32])
    for most, rings in SPLIT_RINGS.items():
        by_twos = [
            ring.held_bytes(most, inputs, gated, norm=outputs != 4096) <= SHARED_BY_TWO
            for (outputs, inputs, gated), ring in rings.items()
        ]
        assert all(by_twos) if most == 64 else not any(by_twos)
        for (outputs, _, _), ring in rings.items():
            at_once = (2 if most == 64 else 1) * MULTIPROCESSORS
            assert ring.splits == 1 or -(-outputs // ring.rows) * ring.splits <= at_once


@pytest.mark.parametrize(
    ("ring", "gated", "programs"),
    [
        (SplitRing(128, 64, 5, 3), False, 2),
        (SplitRing(64, 64, 5, 3, warps=4), True, 2),
        (SplitRing(64, 128, 2, 2, warps=4), True, 2),
        (SplitRing(128, 64, 5, 4), False, 1),  # with a norm: 8 KiB are for gains
        (SplitRing(256, 64, 2, 2), False, 1),  # sums
        (SplitRing(128, 64, 2, 2), True, 1),
        (SplitRing(64, 128, 2, 2), False, 1),  # tiles of x
    ],
)
def test_registers_are_for_as_many_programs_as_fit(ring, gated, programs):
    """The unit in which a warp gets them is eight a thread."""
    registers, threads = ring.registers(4096, gated, True), 32 * (ring.warps + 4)
    assert registers % 8 == 0 and registers <= 168
    assert 65536 // (registers * threads) >= programs
    assert programs == 2 or registers == 168


@pytest.mark.parametrize(
    ("rows", "inputs", "message"),
    [
        (16, 64, "it takes 17 to 64 rows, a multiple of 8 numbers each, in bfloat16"),
        (65, 64, "it takes 17 to 64 rows, a multiple of 8 numbers each, in bfloat16"),
        (20, 60, "it takes 17 to 64 rows, a multiple of 8 numbers each, in bfloat16"),
        (64, 64, "with 368768 bytes for a program, which has room for 224256"),
    ],
)
def test_a_ring_that_does_not_fit_is_refused(hopper, rows, inputs, message):
    ring = SplitRing(128, 64, 15, 15)
    with pytest.raises(ValueError, match=re.escape(f"tile must be one that fits, got {ring}")) as caught:
        linear(meta(rows, inputs), meta(80, inputs), backend="triton", tile=ring)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rows": 16}, "rows must be a power of 2 of at least 32, got 16"),
        ({"rows": 512}, "rows must be at most 256, which is what one copy takes, got 512"),
        ({"columns": 32}, "columns must be a power of 2 of at least 64, got 32"),
        ({"stages": 1}, "stages must be at least 2, got 1; 2 keep one tile in flight"),
        ({"input_stages": 1}, "input_stages must be at least 2, got 1"),
        ({"splits": 0}, "splits must be an integer of at least 1, got 0; 1 is for none"),
        ({"splits": True}, "splits must be an integer of at least 1, got True"),
        ({"warps": 2}, "warps must be 4 or 8, which multiply together, got 2"),
    ],
)
def test_a_ring_that_no_kernel_can_be_launched_with_is_refused(numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SplitRing(**{"rows": 128, "columns": 64, "stages": 3, "input_stages": 2, **numbers})


def test_memory_that_is_too_small_is_refused(hopper):
    ring = SplitRing(128, 64, 3, 2, splits=2)
    small = SplitMemory.of([ring.needs(32, 128, False)], "meta")
    given = {"backend": "triton", "tile": ring, "split_memory": small}
    with pytest.raises(
        ValueError, match=r"split_memory must be for at least Needs\(tiles=2, numbers=33024\)"
    ):
        linear(meta(64, 64), meta(200, 64), **given)
    small.check(ring.needs(17, 128, False), torch.device("meta"))
    small.check(SplitRing(128, 64, 3, 2).needs(64, 10**6, False), torch.device("meta"))


def test_one_memory_serves_all_matrices_of_a_step():
    needs = [ring.needs(64, *shape[::2]) for shape, ring in SPLIT_RINGS[64].items()]
    memory = SplitMemory.of(needs, "meta")
    for one in needs:
        memory.check(one, torch.device("meta"))
    assert len(memory.parts) == max(one.numbers for one in needs) and len(memory.arrivals) < 1000
