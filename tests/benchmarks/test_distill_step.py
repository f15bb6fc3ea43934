"""benchmarks/distill_step.py: what is counted, and what is recorded of a run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distill_step as bench
import record

from llmcourse.attention import attention_reference
from llmcourse.costs import num_parameters
from llmcourse.model import Decoder
from tests.benchmarks.tiny_course import as_recorded_on_a_gpu, shown

TINY = ["--batch-size=2", "--length=16", "--device=cpu", "--no-compile", "--blocks=3"]


def tiny(width: int):
    config = bench.config(width, 1, 24, 2)
    return bench.DecoderConfig(**vars(config) | {"vocab_size": 60})


def test_the_models_are_as_large_as_they_are_called():
    sizes = [num_parameters(config) / 1e6 for config in (bench.STUDENT, bench.TEACHER)]
    assert sizes == pytest.approx([100, 400], rel=0.03)


def test_products_are_counted_as_pytorch_counts_them():
    """But for scores that a causal mask spares: PyTorch counts all, so half of attention is put back."""
    options = bench.parser().parse_args(["--batch-size=2", "--length=32"])
    student, teacher = tiny(16), tiny(32)
    ids = torch.randint(60, (2, 32))
    for name, config in (("student", student), ("teacher", teacher)):
        model = Decoder(config, attention_reference)
        with FlopCounterMode(display=False) as counter:
            logits = model(ids)
            if name == "student":
                logits.sum().backward()
        passes = 3 if name == "student" else 1
        spared = passes * 4 * 2 * config.hidden_size * (32 * 32 - 32 * 33 / 2)
        found = bench.counted_flops(options, student, teacher)[name]
        assert found == pytest.approx(counter.get_total_flops() - spared, rel=0.02), name


@pytest.mark.parametrize("objective", bench.OBJECTIVES)
def test_a_run_is_recorded_beside_what_a_product_reaches(tmp_path, monkeypatch, objective):
    as_recorded_on_a_gpu(monkeypatch, tmp_path)
    bench.main([*TINY, f"--objective={objective}"], student=tiny(16), teacher=tiny(32))
    (row,) = map(json.loads, next(tmp_path.glob("*.jsonl")).read_text().splitlines())
    (raw,) = map(json.loads, next((tmp_path / "raw").glob("*.jsonl")).read_text().splitlines())
    ending = "" if objective == "response" else f"_{objective}"
    assert row["name"] == f"distill_step_100m_400m{ending}" and row["unit"] == "TFLOP/s"
    assert row["limit"] > 0 and row["limit_name"] == "bf16 matmul" and row["step_ms"] == raw["step_ms"] >= 0
    assert (row["teacher_tflop"] == 0) == (objective == "scratch")
    _, printed = shown(tmp_path, "kinds = (", whole=False)
    assert ("distill_step_100m_400m: " in printed) == (objective == "response")


def test_settings_that_are_tried_leave_the_headline_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    bench.main([*TINY, "--no-record"], student=tiny(16), teacher=tiny(32))
    assert not list(tmp_path.glob("*.jsonl")) and list((tmp_path / "raw").glob("*.jsonl"))
