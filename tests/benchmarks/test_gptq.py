"""Rows of benchmarks/gptq.py, of small matrices on the CPU; what they measure there is nothing to keep."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gptq as benchmark
import record
from large_models import CONFIGS

from llmcourse.quantization.quantized_tensor import QuantizedTensor
from llmcourse.timing import Timing

CPU = torch.device("cpu")


def test_a_layer_has_seven_matrices_of_the_shape():
    found = benchmark.matrices(CONFIGS["llama3_8b"])
    assert found == {(4096, 4096): 2, (1024, 4096): 2, (14336, 4096): 2, (4096, 14336): 1}


def test_both_ways_are_timed_and_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    found = benchmark.measured((32, 256), 2, CPU, repeats=1)
    assert 0.99 < found.loss_ratio <= 1.001 and found.shape == (32, 256)
    (path,) = (tmp_path / "raw").iterdir()
    row = json.loads(path.read_text("utf-8"))
    assert row["shape"] == [32, 256] and row["bits"] == 4 and row["ours"] >= 0


def test_a_way_that_loses_more_than_the_loop_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    exact = benchmark.gptq_codes

    def worse(*given):
        q = exact(*given)
        return QuantizedTensor((q.codes // 2 * 2).to(torch.int8), q.scale, q.zero_point, q.bits, q.group_size)

    monkeypatch.setattr(benchmark, "gptq_codes", worse)
    with pytest.raises(AssertionError, match="of the loop's, at most"):
        benchmark.measured((32, 256), 1, CPU, repeats=1)


def test_the_figure_is_of_all_matrices_of_a_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    found = [
        benchmark.Measured((4, 4), 3, Timing((0.1,)), Timing((1.0,)), 0.9999),
        benchmark.Measured((4, 8), 1, Timing((0.2,)), Timing((1.2,)), 1.0002),
    ]
    benchmark.report(found, CPU, {"model_s": 100.0})
    (path,) = tmp_path.glob("*.jsonl")
    row = json.loads(path.read_text("utf-8"))
    assert row["name"] == "gptq_llama3_8b" and row["unit"] == "layers/s"
    assert row["value"] == pytest.approx(4 / 0.5) and row["peer_value"] == pytest.approx(4 / 4.2, rel=1e-3)
    assert row["loss_ratio"] == 1.0002 and row["least_speedup"] == 6.0 and row["model_s"] == 100.0
