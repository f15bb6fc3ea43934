"""What benchmarks/packed_variants.py tries, for want of a GPU without running it."""

import json
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import decode_low_bit
import packed_variants as variants

from llmcourse.kernels import packed_tiles
from llmcourse.kernels.packed_tiles import BY_TWOS, PACKED_RINGS, PackedRing

CASES = [
    (outputs, inputs, normed, gated, width, rows)
    for normed, gated, shapes in variants.KINDS
    for outputs, inputs in shapes
    for width in (4, 8)
    for rows in (1, 8, 16, 32, 64)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_candidates_differ_and_leave_room_for_a_program_of_the_next_kernel(case):
    found = variants.candidates(case)
    *_, gated, width, rows = case
    assert len(found) == len(set(found)) >= (2 if rows > 16 else 4)
    assert all(ring.held_bytes(rows, width, gated, False) <= BY_TWOS for ring in found)


def test_copies_outgrow_the_cache():
    for outputs, inputs in variants.PLAIN:
        num_bytes = outputs * inputs // 2
        assert variants.copies_of(num_bytes) * num_bytes > 2 * variants.L2_BYTES


def test_decoding_takes_the_rings_for_one_row_that_were_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKED_RINGS, 8, {})
    ring, file = PackedRing(64, 4, 2, 4, 3, warps=8), tmp_path / "rings.json"
    rows = [{"case": (4096, 4096, False, False, 4, n), "ring": astuple(ring)} for n in (1, 16)]
    file.write_text(json.dumps(rows), encoding="utf-8")
    decode_low_bit.use(file)
    assert PACKED_RINGS[8] == {(4096, 4096, False, 4): ring}
    assert packed_tiles.packed_ring(1, 4096, 4096, False, 4, False) == ring
    assert packed_tiles.packed_ring(1, 4096, 4096, False, 8, False) != ring
