"""Rows of benchmarks/append_variants.py; times are made up, for want of a GPU."""

import functools
import json
import sys
import weakref
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
errors = pytest.importorskip("triton.runtime.errors", reason="Triton is made for Linux only")


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(variants, "LAYERS", 2)
    return variants.Case(16, 24, CPU, torch.float32)


def test_angles_are_of_the_dtype_that_the_kernel_takes(monkeypatch):
    monkeypatch.setattr(variants, "LAYERS", 1)
    made = variants.Case(16, 24, CPU, torch.bfloat16)
    assert {tensor.dtype for tensor in (made.qkv, *made.angles, *made.caches[0])} == {torch.bfloat16}


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


def test_what_no_kernel_can_do_is_named_and_memory_outlives_recordings(case, tmp_path, monkeypatch, capsys):
    """A recording holds addresses alone, as the one here does."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(case, "chosen", lambda: (1, variants.TILES[0]))
    wide, layers, alive = variants.TILES[-1], case.layers, []

    def recorded(run, device):
        if run.tile == wide:
            raise errors.OutOfResources(300_000, 232_448, "shared memory")
        return weakref.ref(run)

    def of(splits, tile):
        run = functools.partial(layers(splits, tile))
        run.tile = tile
        return run

    def measure(replay, **how):
        alive.append(replay() is not None)
        return timing.Timing((4e-6,))

    monkeypatch.setattr(case, "layers", of)
    monkeypatch.setattr(variants, "recorded", recorded)
    monkeypatch.setattr(timing, "measure", measure)
    variants.report(case, 24, CPU)
    assert alive == [True] * (1 + len(variants.SPLITS) * (len(variants.TILES) - 1))
    named = [line for line in capsys.readouterr().out.splitlines() if "out of resource" in line]
    assert len(named) == len(variants.SPLITS) and all(str(wide) in line for line in named)


def test_a_layer_attends_as_the_reference_does(case, monkeypatch):
    found = []
    monkeypatch.setattr(variants, "append_attention", lambda *args, **how: found.append((args, how)))
    case.layers(2, variants.TILES[0])()
    assert len(found) == 2 and case.tree is None
    for args, how in found:
        assert how["workspace"].num_splits == 2 and how["pdl"]
        append_attention(*args, **how | {"backend": "reference"})
    assert len(variants.Case(variants.TREE_TOKENS, 8, CPU, torch.float32).tree) == variants.TREE_TOKENS
