"""What benchmarks/linear_w8a8.py checks, times and records; on small shapes, for want of a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import linear_w8a8 as bench
import record

from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.mixed_linear import MixedLinear

CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "MANY", 32)
    monkeypatch.setattr(bench, "last_level_cache_bytes", lambda device: 2**16)
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict]:
    lines = next(folder.glob("*.jsonl")).read_text("utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def test_every_figure_has_its_peer_and_its_limit(results):
    for rows in (2, 32):
        bench.figures(rows, 64, 400, CPU, library=1e12, copy=10.0, repeats=3)
    found = rows_of(results)
    names = {f"linear_{kind}_n64_k400_m{rows}" for kind in ("w8a8", "llm_int8") for rows in (2, 32)}
    assert set(found) == names | {"linear_w8a8_product_n64_k400_m32"}
    assert all(
        row["value"] > 0 and row["ratio_peer"] > 0 and row["unit"] == "TOP/s" for row in found.values()
    )
    product = found["linear_w8a8_product_n64_k400_m32"]
    assert product["peer"] == "torch._int_mm" and product["limit"] == 1.0
    moved = 64 * 400 + 4 * 64 + 2 * (2 * 400 + 2 * 64)
    limit = 2 * 2 * 64 * 400 / (moved / 10e9) / 1e12
    assert found["linear_w8a8_n64_k400_m2"]["limit"] == pytest.approx(limit, rel=1e-3)
    assert found["linear_llm_int8_n64_k400_m2"]["of_w8a8"] > 0
    assert len(list((results / "raw").glob("linear_w8a8_*.jsonl"))) == 1


def test_activations_have_outliers_in_as_many_columns_as_are_asked_for():
    torch.manual_seed(0)
    x = bench.activations(500, 400, CPU)
    assert (x.abs() >= 6).any(0).sum() == 2 and not (bench.activations(500, 400, CPU, 0).abs() >= 6).any()


def test_a_layer_that_is_wrong_is_not_timed(monkeypatch):
    torch.manual_seed(0)
    weight, scale = bench.coded(16, 400, CPU)
    x = bench.activations(8, 400, CPU)
    for kind in (Int8Linear, MixedLinear):
        bench.check(kind(weight, scale), x)
        wrong = kind(weight, scale)
        right = wrong.product
        monkeypatch.setattr(wrong, "product", lambda x, b="auto", right=right: right(x) * (1 + (b == "auto")))
        with pytest.raises(ValueError, match=r"must be within 0\.02 of its reference, got 1"):
            bench.check(wrong, x)
