"""Rows of benchmarks/early_exit.py, from a tiny model to what is recorded."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import early_exit
import record
import speculative

from llmcourse.early_exit.heads import ExitHeads
from tests.speculative.tiny import VOCAB, tiny_decoder


def rows(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(line) for path in folder.glob(pattern) for line in path.read_text().splitlines()]


def test_the_fastest_exit_of_other_prompts_is_recorded_beside_theory(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(
        speculative, "DOMAINS", {"code": lambda: ["import a", "def f(x):", "class A", "x = 1"]}
    )
    monkeypatch.setattr(speculative, "TOKENS", 8)
    monkeypatch.setattr(speculative, "QUEUED", 2)
    heads = ExitHeads(tiny_decoder(num_layers=3, context=64))
    encode = lambda text: [ord(letter) % VOCAB for letter in text]  # noqa: E731
    early_exit.report_speed(heads, encode, "tiny", heads.layers, [1, 2])
    (row,), tried = rows(tmp_path, "*.jsonl"), rows(tmp_path, "raw/early_exit*.jsonl")
    assert [(one["layer"], one["gamma"]) for one in tried] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    fastest = max(tried, key=lambda one: one["speed_up"])
    assert (row["layer"], row["gamma"]) == (fastest["layer"], fastest["gamma"])
    assert (row["name"], row["target"]) == ("early_exit_code_b1", "tiny")
    assert row["drafter"] == f"its first {row['layer']} layers"
    assert row["limit"] == pytest.approx(row["predicted"])
