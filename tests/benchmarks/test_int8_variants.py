"""What benchmarks/int8_variants.py tries fits the GPU, and what was wrong is never timed."""

import json
import sys
from dataclasses import astuple
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import int8_variants as variants

from llmcourse.kernels.int8_tiles import WideTile, most_outliers

ROOM = 227 * 1024  # shared memory of a program on Hopper


def test_candidates_fit_the_shared_memory_of_hopper():
    for tile in {*variants.WIDE, *(tile for tiles in variants.FEW.values() for tile in tiles)}:
        assert tile.held_bytes <= ROOM - 1024, tile


def test_only_candidates_that_were_right_on_every_shape_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert variants.checked() == set()
    (tmp_path / "raw").mkdir()
    tiles = [WideTile(), WideTile(stages=3), WideTile(band=8), WideTile(band=9)]
    names = [("WideTile", *astuple(tile)) for tile in tiles]
    rows = [
        (names[0], [1, 1, 1], 0.5),  # mended since
        (names[0], [1, 1, 1], 1e-3),
        (names[0], [2, 2, 2], 1e-3),
        (names[1], [1, 1, 1], 1e-3),
        (names[1], [2, 2, 2], 9.0),
        (names[2], [1, 1, 1], 1e-3),
    ]
    lines = [{"case": "plain", "tile": t, "shape": s, "error": e} for t, s, e in rows]
    lines.append({"case": "codes", "tile": names[3], "shape": [1, 1, 1], "error": 1e-3})
    path = tmp_path / "raw/int8_variants_nvidia_h200.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert variants.checked() == {names[0]}


def test_columns_in_16_bits_are_at_least_1_5_per_cent_or_256():
    for size in (1, 64, 2048, 4096, 4097, 8192, 14336, 28672):
        assert most_outliers(size) in (64, 128, 256)
        assert most_outliers(size) >= min(0.015 * size, 256)
