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
from llmcourse.early_exit.stored import save_heads
from tests.speculative.tiny import VOCAB, tiny_decoder


def rows(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(line) for path in folder.glob(pattern) for line in path.read_text().splitlines()]


def test_the_fastest_exit_of_other_prompts_is_recorded_beside_theory(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(
        speculative, "DOMAINS", {"code": lambda: ["import a", "def f(x):", "class A", "x = 1"]}
    )
    for name, few in (("TOKENS", 4), ("QUEUED", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(speculative, name, few)
    heads = ExitHeads(tiny_decoder(num_layers=3, context=64))
    encode = lambda text: [ord(letter) % VOCAB for letter in text]  # noqa: E731
    early_exit.report_speed(heads, encode, "tiny", heads.layers, [2], {"steps": 12})
    found, tried = rows(tmp_path, "*.jsonl"), rows(tmp_path, "raw/early_exit*.jsonl")
    assert [(one["layer"], one["gamma"]) for one in tried] == [(1, 2), (2, 2)] * 2
    assert [row["name"] for row in found] == ["early_exit_code_b1", "early_exit_own_cache_code_b1"]
    for row, cache in zip(found, ("shared", "own"), strict=True):
        fastest = max((one for one in tried if one["cache"] == cache), key=lambda one: one["speed_up"])
        assert (row["layer"], row["gamma"]) == (fastest["layer"], fastest["gamma"])
        assert (row["cache"], row["target"], row["trained"]) == (cache, "tiny", {"steps": 12})
        assert row["drafter"] == f"its first {row['layer']} layers"
        assert row["limit"] == pytest.approx(row["predicted"])
        assert 1 <= row["tokens_a_step"] <= row["gamma"] + 1
        assert ("predicted_v1" in row) == (cache == "own")


def test_costs_by_layers_are_shares_of_the_weights():
    model = tiny_decoder(num_layers=3)
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    wanted = (2 * layer + VOCAB * 32) / (3 * layer + VOCAB * 32)
    assert early_exit.cost_by_layers(model, 2) == pytest.approx(wanted)


def test_parity_names_the_texts_that_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(early_exit, "PARITY_PROMPTS", 2)
    monkeypatch.setattr(speculative, "PARITY_TOKENS", 4)
    monkeypatch.setattr(speculative, "PARITY_BATCH", 2)
    heads = ExitHeads(tiny_decoder(num_layers=3, context=512))
    encode = lambda text: [ord(letter) % VOCAB for letter in text[:20]]  # noqa: E731
    early_exit.report_parity(heads, encode, "tiny", [1])
    monkeypatch.setattr(speculative, "differing", lambda *_: [1])
    early_exit.report_parity(heads, encode, "tiny", [1], {"steps": 12})
    same, other = rows(tmp_path, "*.jsonl")
    assert same["trained"] is None and other["trained"] == {"steps": 12}
    assert (same["value"], same["different"]) == (1.0, [])
    assert (other["value"], other["different"]) == (0.5, [[1, 1]])


def test_it_is_known_how_exits_were_trained(tmp_path):
    heads = ExitHeads(tiny_decoder(num_layers=3))
    save_heads(heads, tmp_path, {"objective": "last", "exits": [1], "steps": 7})
    assert early_exit.notes(str(tmp_path)) == {"objective": "last", "exits": [1], "steps": 7}
    assert early_exit.notes("base")["objective"] == "last"
