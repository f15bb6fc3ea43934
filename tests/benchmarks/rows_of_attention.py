"""Rows of benchmarks/attention.py from the drawing of inputs to what is recorded, through the interpreter.

Run beside `test_attention.py`, in a process that has told Triton to interpret.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cache_rows
import flash_rows
import record
import side_by_side
from flash_rows import FlashRow, report_flash, runs_of

from llmcourse import timing
from llmcourse.kernels.tiles import AttentionTile

CPU = torch.device("cpu")
PACE = {"rounds": 1, "turn_s": 0.0}
SHAPE = cache_rows.CacheShape(2, 64, (1, 3))


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Results of their own, few heads and features, PyTorch for a peer, no graphs, single runs."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    backends = {"cudnn": SDPBackend.MATH, "fa2": SDPBackend.FLASH_ATTENTION}
    monkeypatch.setattr(flash_rows, "PEERS", backends)
    for name, value in (("HEADS", 2), ("KV_HEADS", 1), ("HEAD_DIM", 16), ("CHAIN_BYTES", 0)):
        monkeypatch.setattr(cache_rows, name, value)
    tiles = (AttentionTile(16, 4), AttentionTile(32, 4))
    monkeypatch.setattr(cache_rows, "TILES", {"decode": tiles, "paged": tiles})
    monkeypatch.setattr(cache_rows, "PEER", SDPBackend.MATH)
    monkeypatch.setattr(cache_rows, "Graph", lambda work: work)
    for module in (cache_rows, side_by_side):
        monkeypatch.setattr(module, "measure", lambda run, **_: timing.measure(run, warmup=0, repeats=1))


def written(folder):
    """Figures and what they were made of, as they lie on disk."""
    return [
        [json.loads(line) for path in folder.glob(name) for line in path.read_text().splitlines()]
        for name in ("*.jsonl", "raw/attention_*.jsonl")
    ]


def flash_row(direction, causal=True):
    return FlashRow(direction, 32, 40, causal, tokens=40, hidden=64)


@pytest.mark.parametrize(("direction", "causal"), [("fwd", False), ("fwd", True), ("bwd", True)])
def test_a_flash_row_is_recorded(tmp_path, direction, causal):
    row = flash_row(direction, causal)
    found = report_flash(row, 0.5, CPU, torch.float32, **PACE)
    figures, raw = written(tmp_path)
    assert figures == [found] and [line["name"] for line in raw] == [row.name]
    assert raw[0]["tflops"].keys() == {"ours", "cudnn", "fa2", "simple"}
    tflops = raw[0]["tflops"]
    assert found["value"] == pytest.approx(tflops["ours"], rel=1e-3)
    assert found["ratio_fa2"] == pytest.approx(tflops["ours"] / tflops["fa2"], rel=1e-3)
    assert found["ratio_peer"] == pytest.approx(tflops["ours"] / tflops["cudnn"], rel=1e-3)
    assert found["ratio_limit"] == pytest.approx(tflops["ours"] / 0.5, rel=1e-3)
    assert found["simple_value"] == pytest.approx(tflops["simple"], rel=1e-3)
    assert max(raw[0]["of_allowed_error"].values()) <= 1


@pytest.mark.parametrize(
    ("direction", "name", "fault"),
    [
        ("fwd", "ours", "off"),
        ("fwd", "simple", "unwritten"),
        ("bwd", "ours", "unwritten"),
        ("bwd", "simple", "off"),
    ],
)
def test_a_wrong_flash_kernel_is_not_recorded(tmp_path, monkeypatch, direction, name, fault):
    def faulty(row, inputs):
        runs = runs_of(row, inputs)
        right = runs[name]

        def run():
            *others, last = right()
            last = torch.empty_like(last).copy_(last) if fault == "off" else torch.empty_like(last)
            last[-1, -1, -1, -1] += 1e-3
            return (*others, last)

        return runs | {name: run}

    monkeypatch.setattr(flash_rows, "runs_of", faulty)
    with pytest.raises(ValueError, match=f"^{name} must "):
        report_flash(flash_row(direction), 0.5, CPU, torch.float32, **PACE)
    assert written(tmp_path) == [[], []]


def test_cache_rows_are_recorded_with_the_best_setting(tmp_path, monkeypatch):
    found = cache_rows.report_caches(SHAPE, ["decode", "paged"], 0.25, CPU, torch.float32, **PACE)
    figures, raw = written(tmp_path)
    assert figures == found
    assert [row["name"] for row in found] == ["decode_attention_b2_s64", "paged_attention_b2_s64"]
    (turns,) = (line for line in raw if "in_turns" in line)
    gbps = turns["in_turns"]
    for row, kind in zip(found, ("decode", "paged"), strict=True):
        tried = [line for line in raw if line["name"] == row["name"] and "search" in line]
        settings = {(line["search"]["tile"][0], line["search"]["splits"]) for line in tried}
        assert settings == {(16, 1), (16, 3), (32, 1), (32, 3)}
        best = max(tried, key=lambda line: line["gbps"])["search"]
        assert [row["block"], row["warps"], row["stages"]] == best["tile"]
        assert (row["splits"], row["pdl"]) == (best["splits"], best["pdl"])
        assert row["value"] == pytest.approx(gbps[kind], rel=1e-3)
        assert row["ratio_peer"] == pytest.approx(gbps[kind] / gbps["cudnn"], rel=1e-3)
        assert row["ratio_limit"] == pytest.approx(gbps[kind] / 0.25, rel=1e-3)
    assert "ratio_contiguous" not in found[0]
    assert found[1]["ratio_contiguous"] == pytest.approx(gbps["paged"] / gbps["decode"], rel=1e-3)


def test_blocks_alone_are_still_compared_with_a_cache_of_its_own(tmp_path):
    shape = cache_rows.CacheShape(2, 64, (2,))
    (row,) = cache_rows.report_caches(shape, ["paged"], 0.25, CPU, torch.float32, **PACE)
    assert row["name"] == "paged_attention_b2_s64" and row["contiguous_value"] > 0
    assert written(tmp_path)[0] == [row]


@pytest.mark.parametrize("kind", cache_rows.KINDS)
def test_a_wrong_setting_is_left_out(tmp_path, monkeypatch, capsys, kind):
    """One row of the batch stays as it was, NaN, with three splits."""
    function = f"{'paged_' if kind == 'paged' else ''}decode_attention"
    right = getattr(cache_rows, function)

    def faulty(*arguments, out, workspace, **options):
        right(*arguments, out=out, workspace=workspace, **options)
        if workspace.num_splits == 3:
            out[1] = torch.nan

    monkeypatch.setattr(cache_rows, function, faulty)
    problem = cache_rows.Problem(SHAPE, CPU, torch.float32, layers=2)
    assert cache_rows.search(kind, problem).setting.splits == 1
    assert {line["search"]["splits"] for line in written(tmp_path)[1]} == {1}
    assert capsys.readouterr().out.count("FAILED") == 4  # two tiles, early and not

    monkeypatch.setattr(cache_rows, function, lambda *arguments, **options: None)
    with pytest.raises(RuntimeError, match=f"{kind}_attention_b2_s64 has no setting that works"):
        cache_rows.search(kind, problem)


def test_pools_hold_what_the_cache_holds():
    problem = cache_rows.Problem(SHAPE, CPU, torch.float32, layers=2)
    for cache, pool in zip(problem.caches[0], problem.pools[0], strict=True):
        for row, table in enumerate(problem.tables.tolist()):
            assert torch.equal(torch.cat([pool[block] for block in table], dim=1), cache[row])


def test_a_layer_is_as_large_as_its_bytes_say():
    problem = cache_rows.Problem(SHAPE, CPU, torch.float16, layers=1)
    for tensors in (problem.caches[0], problem.pools[0]):
        assert sum(tensor.nbytes for tensor in tensors) == SHAPE.layer_bytes
