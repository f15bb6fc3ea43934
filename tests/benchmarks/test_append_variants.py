"""Rows of benchmarks/append_variants.py; times are made up, for want of a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import append_variants as variants
import record

from llmcourse import timing
from llmcourse.kernels.append_attention import append_attention, append_tile
from llmcourse.kernels.tiles import AttentionTile

CPU = torch.device("cpu")


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(variants, "LAYERS", 2)
    return variants.Case(16, 24, CPU, torch.float32)


def test_every_way_is_a_row_the_default_first(case, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    default = 4, append_tile(case.caches[0][0], 32, 16)
    monkeypatch.setattr(case, "chosen", lambda: default)
    monkeypatch.setattr(variants, "recorded", lambda run, device: run)
    monkeypatch.setattr(timing, "measure", lambda *args, **how: timing.Timing((4e-6,)))
    variants.report(case, 24, CPU)
    (path,) = (tmp_path / "raw").iterdir()
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 1 + len(variants.SPLITS) * len(variants.TILES)
    assert [row["default"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert AttentionTile(*rows[0]["tile"]) == default[1]
    assert {row["us"] for row in rows} == {2.0}, "of one layer"


def test_a_layer_attends_as_the_reference_does(case, monkeypatch):
    found = []
    monkeypatch.setattr(variants, "append_attention", lambda *args, **how: found.append((args, how)))
    case.layers(2, variants.TILES[0])()
    assert len(found) == 2 and case.tree is None
    for args, how in found:
        assert how["workspace"].num_splits == 2 and how["pdl"]
        append_attention(*args, **how | {"backend": "reference"})
    assert len(variants.Case(variants.TREE_TOKENS, 8, CPU, torch.float32).tree) == variants.TREE_TOKENS
