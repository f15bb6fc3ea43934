"""Rows of benchmarks/medusa.py, from a tiny model to what is recorded."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import medusa
import record
import speculative

from llmcourse.speculative.medusa.candidates import full
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from llmcourse.speculative.medusa.search import written_ranks
from tests.speculative.tiny import tiny_decoder

SMALL = 6  # tokens of a vocabulary, of which a tree can hold every guess


@pytest.fixture
def model():
    return tiny_decoder(vocab_size=SMALL, context=128)


@pytest.fixture
def heads(model):
    return MedusaHeads(HeadsConfig.for_model(model, 2)).requires_grad_(False)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Results of their own, few tokens, single runs."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(speculative, "DOMAINS", {"code": lambda: ["abc", "de", "fa", "bd"]})
    monkeypatch.setattr(speculative, "TOKENS", 9)
    monkeypatch.setattr(speculative, "QUEUED", 2)


def rows(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(line) for path in folder.glob(pattern) for line in path.read_text().splitlines()]


def test_speed_is_recorded_beside_what_its_parts_promise(model, heads, tmp_path, monkeypatch):
    trees = {2: full([2]), 42: full([SMALL, SMALL])}
    monkeypatch.setattr(medusa, "search", lambda _, size: trees[size])
    encode = lambda text: [ord(letter) % SMALL for letter in text * 30]  # noqa: E731
    medusa.report_speed(model, heads, encode, "tiny", [2, 42])
    (row,), tried = rows(tmp_path, "*.jsonl"), rows(tmp_path, "raw/medusa*.jsonl")
    assert (row["name"], row["peer"], row["target"]) == ("medusa_code_b1", "DecodeEngine", "tiny")
    assert row["limit"] == pytest.approx(row["tokens_a_step"] / (row["heads"] + row["tree"]), rel=0.01)
    assert [(one["nodes"], one["depth"]) for one in tried] == [(2, 1), (42, 2)]
    assert tried[1]["tokens_a_step"] == 3.0, "a tree of every guess gains all its depth and one"


def test_trees_are_found_on_what_the_model_writes(model, heads):
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = [[1, 2, 3, 0, 5, 2, 4], [4, 1, 0, 3]]
    found = medusa.own_ranks(medusa.DecodeEngine(model), heads, prompts)
    assert torch.equal(found, written_ranks(model, heads, prompts, speculative.TOKENS))
