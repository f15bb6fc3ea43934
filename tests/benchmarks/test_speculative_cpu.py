"""Rows of benchmarks/speculative_cpu.py, from tiny models to what is recorded."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import record
import speculative_cpu

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.speculative import LookupDrafter
from llmcourse.speculative.engine import SpeculativeEngine
from tests.speculative.tiny import VOCAB, near, tiny_decoder

TEXTS = [[5, 6, 7, 5, 6], [1, 2, 3, 4], [9, 8, 9, 8]]


@pytest.fixture
def engines(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    model = tiny_decoder(context=64)
    drafters = {"lookup": LookupDrafter(VOCAB), "model": near(model)}
    return DecodeEngine(model), {
        name: SpeculativeEngine(model, drafter, draft_length=2) for name, drafter in drafters.items()
    }


def test_the_best_drafter_is_recorded_beside_theory_and_all_are_kept(tmp_path, engines):
    speculative_cpu.report("code", *engines, TEXTS, 8)
    (row,) = (json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines())
    assert row["name"] == "speculative_code_cpu" and row["drafter"] in engines[1]
    assert row["gamma"] == 2 and row["limit"] == row["predicted"] > 0
    kept = [
        json.loads(line)["drafter"] for p in tmp_path.glob("raw/*") for line in p.read_text().splitlines()
    ]
    assert kept == list(engines[1])


def test_another_text_stops_the_benchmark(engines, monkeypatch):
    monkeypatch.setattr(speculative_cpu, "written", lambda *_: ([0] * 8, [0], 1.0))
    with pytest.raises(AssertionError, match="prompt 0 is continued in another way"):
        speculative_cpu.race(engines[0], engines[1]["lookup"], TEXTS, 8)
