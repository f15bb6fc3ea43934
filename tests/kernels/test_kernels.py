"""Kernels keep their contract, and what cannot run is refused by name."""

import json
import platform
import re
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from llmcourse.costs.models import MODELS
from llmcourse.costs.shapes import ModelShapes
from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.decoding.engine.window import _WindowStep
from llmcourse.kernels import append_attention
from llmcourse.kernels.backend import resolve
from llmcourse.kernels.decode_attention import MOST_SPLITS, STAGED_KEYS, Workspace, num_splits
from llmcourse.kernels.linear import best_linear_tile, linear
from llmcourse.kernels.tiles import (
    FEW_ROWS,
    FEW_ROWS_BYTES,
    MEASURED,
    MOST_RING_ROWS,
    RING_BYTES,
    STRIPS,
    AttentionTile,
    FlashTile,
    Ring,
    Strip,
    Tile,
    few_rows_tile,
    gemv_rule,
    gemv_tile,
    matmul_rows,
    matmul_tile,
    paged_tile,
    ring_rows,
    streamed_tile,
)
from llmcourse.kernels.tokens import Choice
from tests.interpreted import INTERPRETED, QUICKLY, ROOT, check_passes

CONTRACT = [
    Path(__file__).with_name(name)
    for name in (
        "contract.py",
        "contract_of_tokens.py",
        "contract_of_paged.py",
        "contract_of_rotary.py",
        "contract_of_append.py",
        "contract_of_drafts.py",
        "contract_of_draft_trees.py",
        "contract_of_drawn_drafts.py",
        "contract_of_ranked_drafts.py",
        "contract_of_shared_drafts.py",
        "contract_of_serving.py",
        "contract_of_packed.py",
        "contract_of_packed_engines.py",
        "contract_of_flash_attention.py",
        "contract_of_gptq_block.py",
        "contract_of_arguments.py",
        "contract_of_int8.py",
        "contract_of_vocabulary_divergence.py",
    )
]


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_kernels_keep_their_contract():
    switches, plugin = ({}, ()) if torch.cuda.is_available() else (INTERPRETED, QUICKLY)
    check_passes("--noconftest", *plugin, *CONTRACT, switches=switches)


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.mark.skipif(not HOPPER, reason="only a GPU of Hopper multiplies by four warps together")
def test_rings_that_go_round_keep_their_contract():
    for name in ("contract_of_rings.py", "contract_of_packed_rings.py", "contract_of_wide_int8.py"):
        check_passes("--noconftest", Path(__file__).with_name(name), switches={})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="thousands of texts take the interpreter hours")
def test_texts_sampled_on_a_gpu_keep_their_contract():
    check_passes("--noconftest", Path(__file__).with_name("contract_of_sampled_texts.py"), switches={})


CPU = torch.device("cpu")


def matrices(model: ModelShapes) -> set[tuple[int, int, bool]]:
    """Outputs, inputs and whether gated, of each matrix that a step reads."""
    heads, size = model.num_heads * model.head_dim, model.hidden_size
    return {
        (heads + 2 * model.num_kv_heads * model.head_dim, size, False),
        (size, heads, False),
        (model.intermediate_size, size, True),
        (size, model.intermediate_size, False),
        (model.vocab_size, size, False),
    }


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "backend must be 'auto', 'triton' or 'reference', got 'cuda'; leave it at 'auto'"),
        ("triton", "backend must be one that can run, got 'triton'"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(backend, message):
    with pytest.raises(ValueError) as caught:
        resolve(backend, CPU, torch.float32)
    assert message in str(caught.value)


def test_where_nothing_else_runs_the_reference_does():
    assert resolve("auto", CPU, torch.float32) == resolve("reference", CPU, torch.float64) == "reference"


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize(
    ("backend", "num_rows", "kernel"),
    [
        ("auto", 1, "launch_gemv"),
        ("auto", 2, None),
        ("auto", 64, None),
        ("triton", 1, "launch_gemv"),
        ("triton", 2, "launch_matmul"),
        ("reference", 1, None),
    ],
)
def test_by_default_several_rows_take_the_faster_product(monkeypatch, backend, num_rows, kernel):
    """As on a GPU, where the kernels can run."""
    from llmcourse.kernels import linear_triton

    launched = []
    for name in ("launch_gemv", "launch_matmul"):
        monkeypatch.setattr(linear_triton, name, lambda *_, name=name: launched.append(name))
    x = torch.ones(num_rows, 4)
    monkeypatch.setattr(
        "llmcourse.kernels.linear.resolve", lambda b, *_: "reference" if b == "reference" else "triton"
    )
    y = linear(x, torch.ones(3, 4), backend=backend)
    assert launched == ([kernel] if kernel else [])
    assert kernel or torch.equal(y, torch.full((num_rows, 3), 4.0))


@pytest.fixture
def hopper(monkeypatch):
    """As on such a GPU, as long as nothing is launched."""
    monkeypatch.setattr("llmcourse.kernels.linear.resolve", lambda *_: "triton")
    monkeypatch.setattr("llmcourse.kernels.capabilities.runs_wgmma", lambda: True)
    monkeypatch.setattr("llmcourse.kernels.capabilities.shared_bytes", lambda: 227 * 1024)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize(
    ("num_rows", "strip", "message"),
    [
        (2, Strip(8, 2, True), "for 2 rows: warps must be 4 or 8, which multiply together, got 2"),
        (8, Strip(64, 1, True), "for 8 rows: warps must be 4 or 8, which multiply together, got 1"),
        (16, Strip(8, 16, True), "for 16 rows: warps must be 4 or 8, which multiply together, got 16"),
        (3, Strip(8, 4, False), "for 3 rows: tensor_cores must be True, since nothing else multiplies"),
    ],
)
def test_a_strip_that_only_one_row_can_have_is_refused(hopper, num_rows, strip, message):
    with pytest.raises(ValueError, match=re.escape(f"tile must be one that fits, got {strip} {message}")):
        linear(meta(num_rows, 64), meta(80, 64), backend="triton", tile=strip)


def test_no_strip_for_several_rows_is_wider_than_the_tensor_cores():
    """`wgmma` takes 256 columns: those of x, for each block of 64 columns of a piece."""
    strips = [Strip(rows, warps, True) for rows in (8, 16, 32, 64, 128) for warps in (4, 8)]
    assert max(strip.columns // 64 * ring_rows(MOST_RING_ROWS) for strip in strips) == 256
    assert min(strip.columns // 64 * strip.rows // strip.warps for strip in strips) == 16, "64 by 4 warps"


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_batches_are_streamed_where_that_was_measured_and_windows_everywhere(hopper):
    for shape in {*FEW_ROWS, *MATRICES}:
        outputs, inputs, gated = shape
        x, weight = meta(8, inputs), meta(outputs * (1 + gated), inputs)
        streamed = streamed_tile(8, *shape)
        assert best_linear_tile(x, weight, gated, "triton") == streamed
        found = best_linear_tile(x, weight, gated, "auto")
        assert found == (streamed if shape in FEW_ROWS else few_rows_tile(8, outputs, gated))
        assert not isinstance(best_linear_tile(meta(9, inputs), weight, gated, "auto"), Strip | Ring)
    assert {*MATRICES} - {*FEW_ROWS}


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_a_window_over_many_rows_leaves_products_to_pytorch(hopper):
    """The kernel for few rows reads the weights anew for every 64, and for 256 took 4.7 times as long."""
    step = object.__new__(_WindowStep)  # without its memory
    step.settings = KernelSettings()
    for outputs, inputs, gated in MATRICES:
        tiles = {
            rows: step._tile(meta(rows, inputs), meta(outputs * (1 + gated), inputs), gated)
            for rows in (2, 16, 256)
        }
        assert [rows for rows, tile in tiles.items() if tile is None] == [256]


def test_a_workspace_and_a_choice_check_their_numbers():
    for splits in (0, 65, True):
        with pytest.raises(
            ValueError, match=rf"num_splits must be an integer in \[1, 64\], got {splits}; 1 is"
        ):
            Workspace(1, 2, 1, 8, splits, CPU)
    assert Workspace(1, 2, 1, 8, 33, CPU).peaks.shape == (1, 2, 64), "the kernels count in powers of 2"
    with pytest.raises(ValueError, match="temperature must be at least 0 and finite"):
        Choice(1, 8, CPU, temperature=-1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"splits": 3}, "splits must be a power of 2 of at least 1, got 3"),
        ({"splits": 0}, "splits must be a power of 2 of at least 1, got 0"),
    ],
)
def test_settings_that_no_kernel_can_be_launched_with_are_refused(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        KernelSettings(**setting)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"block": 8}, "block must be a power of 2 of at least 16, got 8"),
        ({"block": 48}, "block must be a power of 2 of at least 16, got 48"),
        ({"warps": 3}, "warps must be one of (1, 2, 4, 8, 16) or None, got 3"),
        ({"stages": -1}, "stages must be at least 0, got -1; 0 keeps the tile in registers"),
    ],
)
def test_a_tile_of_attention_that_no_kernel_can_be_launched_with_is_refused(numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AttentionTile(**numbers)


def test_a_strip_that_no_kernel_can_be_launched_with_is_refused():
    with pytest.raises(ValueError, match="rows must be a power of 2 of at least 8, got 4"):
        Strip(4, 4, True)
    with pytest.raises(ValueError, match="warps must be one of"):
        Strip(8, 3, False)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"queries": 24}, "queries must be a power of 2 of at least 16, got 24"),
        ({"keys": 8}, "keys must be a power of 2 of at least 16, got 8"),
        ({"warps": 3}, "warps must be one of (1, 2, 4, 8, 16) or None, got 3"),
        ({"stages": 0}, "stages must be at least 1, got 0; 1 keeps one tile in flight"),
    ],
)
def test_a_tile_of_flash_attention_that_no_kernel_can_be_launched_with_is_refused(numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FlashTile(**{"queries": 16, "keys": 16, **numbers})


def test_settings_that_kernels_can_be_launched_with_are_taken():
    for setting in (
        {},
        {"splits": 1},
        {"splits": 64, "attention": AttentionTile(16, 16, 1)},
    ):
        KernelSettings(**setting)


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("capacity", [16, 328, 32768])
@pytest.mark.parametrize(("tile", "room"), [(AttentionTile(), 2), (AttentionTile(128, 4, 2), 1)])
def test_splits_fill_the_chip_and_none_is_without_keys(batch_size, capacity, tile, room):
    splits = num_splits(batch_size, 8, capacity, tile, 132)
    assert splits & (splits - 1) == 0 and 1 <= splits <= MOST_SPLITS
    full = splits * batch_size * 8 <= room * 132
    assert splits == 1 or (full and splits * tile.block < capacity + tile.block)
    assert splits == 1 or not tile.stages or capacity > STAGED_KEYS


@pytest.mark.parametrize(
    ("num_tokens", "capacity", "expected"),
    [(64, 392, 1), (64, 600, 2), (64, 32768, 4), (17, 32768, 8), (16, 392, 8), (8, 32768, 32)],
)
def test_splits_of_many_queries_are_few_and_long(monkeypatch, num_tokens, capacity, expected):
    """32 query heads on 8 key heads, 132 multiprocessors: up to 16 tokens are one program for a key head."""
    monkeypatch.setattr(append_attention, "multiprocessors", lambda device: 132)
    keys = torch.empty(1, 8, capacity, 128, dtype=torch.bfloat16, device="meta")
    tile = append_attention.append_tile(keys, 32, num_tokens)
    assert append_attention.append_splits(keys, 32, num_tokens, tile) == expected


RAGGED = [(outputs, inputs, gated) for outputs, inputs in ((1, 7), (77, 1000)) for gated in (False, True)]
MATRICES = sorted({shape for model in MODELS.values() for shape in matrices(model)})


@pytest.mark.parametrize(("outputs", "inputs", "gated"), [*RAGGED, *MATRICES])
def test_tiles_are_powers_of_two_within_the_matrix(outputs, inputs, gated):
    one_row = gemv_tile(outputs, inputs, gated)
    several = [matmul_tile(outputs, inputs, gated, item_bytes) for item_bytes in (2, 4)]
    for tile in (one_row, *several):
        assert all(n & (n - 1) == 0 and n > 0 for n in (tile.rows, tile.columns, tile.warps))
        assert tile.columns < 2 * max(inputs, 16)
    assert one_row.rows <= outputs


OF_TARGET = {(6144, 2048, True), (2048, 2048, False), (12288, 2048, False)}  # of benchmarks/train_target.py


def fastest_of_few(shape: tuple[int, int, bool], what: str) -> Tile | Strip | Ring:
    """Of the recorded run that changed this matrix alone: within a whole pass, otherwise in a chain of it."""
    path = ROOT / "benchmarks/results/raw/few_rows_variants_nvidia_h200.jsonl"
    rows = [row for row in map(json.loads, path.read_text("utf-8").splitlines()) if row["tile"]]
    rows = [r for r in rows if (r["outputs"], r["inputs"], r["gated"]) == shape and what in r["what"]]
    kind, *numbers = min(rows, key=lambda row: row.get("us") or row.get("ms") or 1 / row["gbps"])["tile"]
    return {"Tile": Tile, "Strip": Strip, "Ring": Ring}[kind](*numbers)


def recorded(stage: str) -> list[dict]:
    path = ROOT / "benchmarks/results/raw/decode_variants_nvidia_h200.jsonl"
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [row for row in rows if row["stage"] == stage]


def test_measured_tiles_are_the_fastest_of_the_recorded_run():
    rows = [row for row in recorded("linear") if row["pdl"]]
    for shape, tile in MEASURED.items():
        if shape in OF_TARGET:
            assert tile == fastest_of_few(shape, "one token")
            continue
        fastest = max((row for row in rows if tuple(row["shape"]) == shape), key=lambda row: row["gbps"])
        assert tuple(fastest["tile"]) == tile == gemv_tile(*shape)
    assert set(MEASURED) == matrices(MODELS["Llama-3-8B"]) | matrices(MODELS["Llama-2-7B"]) | OF_TARGET


@pytest.mark.parametrize("shape", FEW_ROWS)
def test_tiles_of_few_rows_are_the_fastest_of_the_recorded_run(shape):
    chain = shape in {(14336, 4096, True), (128256, 4096, False)}  # the fastest there, and then kept
    tokens = "rows=8" if chain else "8 tokens" if shape[1] >= 4096 else "7 tokens"
    assert streamed_tile(8, *shape) == FEW_ROWS[shape] == fastest_of_few(shape, tokens)


@pytest.mark.parametrize("num_rows", [2, 8, 16])
def test_what_streams_few_rows_leaves_room_for_another_program_by_rule(num_rows):
    for shape in {*RAGGED, *MATRICES} - set(FEW_ROWS):
        tile = streamed_tile(num_rows, *shape)
        assert tile.held_bytes(num_rows, shape[1], shape[2]) <= RING_BYTES
        assert tile.rows * tile.columns >= 1024 * tile.warps, "enough for the tensor cores"


def test_strips_are_as_fast_as_the_fastest_of_the_recorded_run():
    """Within one per cent of a whole step's time, which is what such runs differ by."""
    speeds = {row["label"]: row["tokens_s"] for row in recorded("engine") if row["model"] == "qwen3_0.6b"}
    assert set(STRIPS) == {m for m in matrices(MODELS["Qwen3-0.6B"]) if m[0] < 100_000}
    for shape, strip in STRIPS.items():
        assert gemv_tile(*shape, strips=True) == strip != gemv_tile(*shape)
        of_shape = {k: v for k, v in speeds.items() if k.startswith(f"{shape[0]} × {shape[1]}: ")}
        assert len(of_shape) >= 8
        assert speeds[f"{shape[0]} × {shape[1]}: {astuple(strip)}"] > 0.99 * max(of_shape.values())


def test_the_tile_for_blocks_is_among_the_fastest_of_the_recorded_run():
    """Within three per cent, for many requests as for fewer."""
    path = ROOT / "benchmarks/results/raw/paged_variants_nvidia_h200.jsonl"
    rows = [row for row in map(json.loads, path.read_text("utf-8").splitlines()) if "tile" in row]
    for case in ("qwen_256", "qwen_64", "b64_s4096", "b16_s4096"):
        of_case = [row for row in rows if row["case"] == case and row["stage"] == "paged_attention"]
        ours = min(row["us"] for row in of_case if row["tile"] == list(astuple(paged_tile(128, 2, True))))
        assert len(of_case) > 10 and ours < 1.03 * min(row["us"] for row in of_case)


def test_the_tile_for_decoding_over_blocks_is_the_fastest_of_the_recorded_run():
    """For requests of different lengths; where all are alike, another may fill the chip better."""
    path = ROOT / "benchmarks/results/raw/paged_decode_variants_nvidia_h200.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for case in ("qwen_256", "qwen_64"):
        found = {stage: [] for stage in ("paged_decode_attention", "before", "two kernels")}
        for row in rows:
            if row.get("case") == case:
                found[row["stage"]].append(row)
        best = min(found["paged_decode_attention"], key=lambda row: row["us"])
        assert best["tile"] == list(astuple(paged_tile(128, 2, True)))
        assert best["us"] < 0.8 * min(row["us"] for row in found["before"])
        assert best["us"] < min(row["us"] for row in found["two kernels"])


def test_the_kernel_for_few_rows_beat_the_library_in_the_recorded_run():
    for batch in (2, 4, 8, 16, 32, 64):
        speeds = {r["label"]: r["tokens_s"] for r in recorded("engine") if r["batch"] == batch}
        assert speeds["kernels, no pdl"] > max(speeds["PyTorch's products"], speeds["kernels, pdl"])


@pytest.mark.parametrize("num_rows", [2, 16, 17, 33, 64])
def test_tiles_for_few_rows_fit_the_shared_memory_of_hopper(num_rows):
    for outputs, _, gated in MATRICES:
        tile = few_rows_tile(num_rows, outputs, gated)
        if tile is not None:
            held = tile.rows * (1 + gated) + matmul_rows(num_rows, 2)
            assert held * tile.columns * 2 * tile.stages <= FEW_ROWS_BYTES
    assert few_rows_tile(65, 6144, False) is few_rows_tile(4, 1024, False) is None


def test_a_matrix_that_was_not_measured_follows_the_rule():
    others = {(6144, 4096, True), (6143, 4096, False), *RAGGED, *MATRICES} - set(MEASURED)
    for outputs, inputs, gated in others:
        assert gemv_tile(outputs, inputs, gated) == gemv_rule(outputs, inputs, gated)
    assert gemv_rule(6144, 4096, False) != gemv_tile(6144, 4096, False)


@pytest.mark.parametrize(("num_rows", "item_bytes", "held"), [(2, 2, 16), (33, 2, 64), (500, 4, 32)])
def test_a_program_takes_as_many_rows_of_input_as_fit(num_rows, item_bytes, held):
    assert matmul_rows(num_rows, item_bytes) == held
