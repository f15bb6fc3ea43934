"""Attention by tiles is attention, whatever the tiles; and the bytes are those that the papers count."""

import math

import pytest
import torch

from llmcourse.attention import SlowMemory, attention_reference, tiled_attention, unfused_attention

# (B, H, Hkv, T, S, D): one token, tiles that fit and do not, a chunk at the end, more queries than keys
SHAPES = [
    (1, 1, 1, 1, 1, 4),
    (2, 4, 4, 16, 16, 8),
    (2, 4, 2, 17, 17, 8),
    (1, 6, 1, 5, 23, 6),
    (1, 4, 2, 1, 33, 8),
    (1, 2, 2, 13, 7, 8),
]
TILES = [(1, 1), (4, 4), (3, 5), (16, 8), (64, 64)]


def tensors(shape, dtype=torch.float64, seed=0):
    batch, heads, kv_heads, queries, keys, size = shape
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, size)]
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def mask_of(shape, causal):
    batch, _, _, queries, keys, _ = shape
    seen = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
    return (seen if causal else torch.ones_like(seen)).expand(batch, queries, keys)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestValues:
    @pytest.mark.parametrize("tiles", TILES, ids=str)
    def test_tiled(self, shape, tiles, causal):
        q, k, v = tensors(shape)
        out, log_sum_exp = tiled_attention(q, k, v, causal=causal, query_tile=tiles[0], key_tile=tiles[1])
        mask = mask_of(shape, causal)
        torch.testing.assert_close(out, attention_reference(q, k, v, mask), atol=1e-12, rtol=0)
        scores = q @ k.repeat_interleave(shape[1] // shape[2], 1).mT / math.sqrt(shape[-1])
        expected = scores.masked_fill(~mask[:, None], -math.inf).logsumexp(-1)
        torch.testing.assert_close(log_sum_exp, expected, atol=1e-12, rtol=0)

    def test_unfused(self, shape, causal):
        q, k, v = tensors(shape)
        expected = attention_reference(q, k, v, mask_of(shape, causal))
        torch.testing.assert_close(unfused_attention(q, k, v, causal=causal), expected, atol=1e-12, rtol=0)


def test_a_query_without_keys_gets_zeros():
    q, k, v = tensors((1, 2, 2, 13, 7, 8))
    out, log_sum_exp = tiled_attention(q, k, v, query_tile=4, key_tile=4)
    assert (out[:, :, :6] == 0).all() and (log_sum_exp[:, :, :6] == -math.inf).all()
    assert (unfused_attention(q, k, v)[:, :, :6] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tiles_round_only_the_result(dtype):
    """And so they are nearer to the truth than what writes its scores in 16 bits."""
    q, k, v = tensors((2, 4, 2, 40, 90, 16), dtype)
    truth = attention_reference(q.double(), k.double(), v.double())
    out, log_sum_exp = tiled_attention(q, k, v, query_tile=16, key_tile=16)
    assert out.dtype == dtype and log_sum_exp.dtype == torch.float32
    torch.testing.assert_close(out.double(), truth, atol=1e-5, rtol=torch.finfo(dtype).eps)
    unfused = (unfused_attention(q, k, v).double() - truth).abs().max()
    assert (out.double() - truth).abs().max() < unfused < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("bytes_each", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bytes_of_the_unfused_are_operands_and_four_times_the_scores(shape, bytes_each):
    batch, heads, kv_heads, queries, keys, size = shape
    memory = SlowMemory()
    unfused_attention(*tensors(shape, {2: torch.bfloat16, 4: torch.float32}[bytes_each]), memory=memory)
    scores, rows = batch * heads * queries * keys, batch * heads * queries * size
    assert memory.read_bytes == bytes_each * (rows + 2 * batch * kv_heads * keys * size + 2 * scores)
    assert memory.written_bytes == bytes_each * (2 * scores + rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_the_bytes_of_the_tiled_are_keys_once_a_tile_of_queries(shape, tiles):
    batch, heads, _, queries, keys, size = shape
    memory = SlowMemory()
    tiled_attention(
        *tensors(shape, torch.bfloat16), causal=False, query_tile=tiles[0], key_tile=tiles[1], memory=memory
    )
    query_tiles = math.ceil(queries / tiles[0])
    per_head = 2 * size * (queries + 2 * keys * query_tiles)
    assert memory.read_bytes == batch * heads * per_head
    assert memory.written_bytes == batch * heads * queries * (2 * size + 4)  # and 4 for the log-sum-exp


def test_what_is_beyond_the_diagonal_is_not_read():
    """Of 4 × 4 tiles, a causal walk needs 1 + 2 + 3 + 4."""
    shape, keys_read = (1, 1, 1, 64, 64, 8), []
    for causal in (False, True):
        memory = SlowMemory()
        tiled_attention(
            *tensors(shape, torch.float32), causal=causal, query_tile=16, key_tile=16, memory=memory
        )
        keys_read.append((memory.read_bytes - 4 * 64 * 8) / (2 * 4 * 16 * 8))
    assert keys_read == [16, 10]


def test_the_saving_is_a_number():
    """16 bits, D = 64, T = S = 1024, tiles of 128: 8.9 MB against 2.4 MB."""
    counts = []
    for attention, tiles in ((unfused_attention, {}), (tiled_attention, {"query_tile": 128})):
        memory = SlowMemory()
        attention(*tensors((1, 1, 1, 1024, 1024, 64), torch.bfloat16), causal=False, memory=memory, **tiles)
        counts.append(memory.traffic_bytes)
    assert counts == [2 * (4 * 1024 * 64 + 4 * 1024**2), 2 * 64 * 1024 * (2 + 2 * 8) + 4 * 1024]


@pytest.mark.parametrize("name", ["query_tile", "key_tile"])
def test_a_tile_without_rows_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0; 64 rows fit"):
        tiled_attention(*tensors(SHAPES[0]), **{name: 0})


@pytest.mark.parametrize("attention", [tiled_attention, unfused_attention])
def test_heads_that_do_not_divide_are_refused(attention):
    with pytest.raises(ValueError, match="query heads must be a multiple of key/value heads, got 3 and 2"):
        attention(*tensors((1, 3, 2, 4, 4, 8)))
