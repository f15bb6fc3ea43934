"""The walk through tiles is the run of tiled attention: its bytes, its states, its result."""

import math

import pytest
import torch

from llmcourse.attention import (
    SlowMemory,
    attention_reference,
    causal_mask,
    tiled_attention,
    unfused_attention,
)
from llmcourse.figures.tiles import walk_tiles


def rows(queries=32, keys=32, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, size, generator=generator).to(dtype) for n in (queries, keys, keys)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "tiles"),
    [(32, 32, (8, 8)), (13, 13, (4, 5)), (5, 9, (2, 4)), (1, 7, (8, 2)), (3, 3, (32, 32))],
)
def test_the_end_is_that_of_tiled_attention(queries, keys, tiles, causal):
    q, k, v = rows(queries, keys)
    walk = walk_tiles(q, k, v, causal=causal, query_tile=tiles[0], key_tile=tiles[1])
    memory, unfused = SlowMemory(), SlowMemory()
    one = [x[None, None] for x in (q, k, v)]
    out, log_sum_exp = tiled_attention(
        *one, causal=causal, query_tile=tiles[0], key_tile=tiles[1], memory=memory
    )
    unfused_attention(*one, causal=causal, memory=unfused)
    assert (walk.steps[-1].read_bytes, walk.steps[-1].written_bytes) == (
        memory.read_bytes,
        memory.written_bytes,
    )
    assert (walk.unfused_read_bytes, walk.unfused_written_bytes) == (
        unfused.read_bytes,
        unfused.written_bytes,
    )
    assert torch.equal(walk.result, out[0, 0])
    mask = causal_mask(queries, keys) if causal else torch.ones(queries, keys, dtype=torch.bool)
    torch.testing.assert_close(walk.expected, attention_reference(*one, mask[None])[0, 0])
    last = len(walk.steps) - 1
    for row in range(queries):
        seen = walk.partial(last, row)
        torch.testing.assert_close(seen.result(), walk.expected[row])
        torch.testing.assert_close(seen.log_sum_exp(), log_sum_exp[0, 0, row])


def test_steps_go_along_the_keys_and_then_write():
    walk = walk_tiles(*rows(), query_tile=16, key_tile=8)
    places = [(step.query_tile, step.key_tile) for step in walk.steps]
    assert places == [(-1, None), (0, 0), (0, 1), (0, None), (1, 0), (1, 1), (1, 2), (1, 3), (1, None)]
    assert (walk.num_tiles, walk.num_skipped) == (8, 2)
    assert walk.joined(4) == [(0, 0), (0, 1), (1, 0)]
    assert [step.traffic_bytes for step in walk.steps] == sorted(step.traffic_bytes for step in walk.steps)


def test_bytes_of_the_first_steps_by_hand():
    walk = walk_tiles(*rows(), query_tile=8, key_tile=8)
    tile = 8 * 8 * 4
    assert walk.steps[1].read_bytes == 3 * tile and walk.steps[1].written_bytes == 0
    assert walk.steps[2].written_bytes == tile + 8 * 4  # the result, and its log-sum-exp
    assert walk.steps[1].sram_bytes == 3 * tile + tile + 8 * 4 + 8 * 4 + tile  # q k v, scores, m, l, o


def test_what_is_known_of_a_row_after_one_tile():
    q, k, v = rows()
    walk = walk_tiles(q, k, v, causal=False, query_tile=8, key_tile=8)
    scores = q[3] @ k[:16].T / math.sqrt(8)
    seen = walk.partial(2, 3)
    assert float(seen.peak) == pytest.approx(float(scores.max()), abs=1e-5)
    assert float(seen.total) == pytest.approx(float((scores - scores.max()).exp().sum()), rel=1e-5)
    torch.testing.assert_close(seen.result(), scores.softmax(-1) @ v[:16])
    risen = float((scores[:8].max() - scores.max()).exp())
    assert walk.steps[2].fade[3] == pytest.approx(risen, rel=1e-5)
    assert walk.steps[1].fade == (0.0,) * 8  # nothing was there
    assert walk.partial(2, 8) is None and walk.partial(0, 3) is None


def test_halves_are_counted_as_halves():
    wide, half = (walk_tiles(*rows(dtype=dtype)) for dtype in (torch.float32, torch.float16))
    assert half.unfused_bytes == wide.unfused_bytes / 2
    assert half.steps[1].read_bytes == wide.steps[1].read_bytes / 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_tile": 0}, "query_tile must be at least 1, got 0"),
        ({"key_tile": -1}, "key_tile must be at least 1, got -1"),
        ({"q": torch.zeros(0, 8)}, "q must have 1 to 32 rows, as many as there are keys at most, got 0"),
        ({"q": torch.zeros(33, 8)}, "got 33"),
        ({"v": torch.full((32, 8), math.nan)}, "v must be finite"),
    ],
)
def test_what_cannot_be_walked_is_refused(change, words):
    arguments = dict(zip("qkv", rows(), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        walk_tiles(**arguments)
