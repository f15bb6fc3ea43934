"""The cache alone: slots, lengths and masks. What it does to logits is in test_model.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.kv_cache import KVCache

LAYERS, HEADS, SIZE = 2, 3, 4


def new_cache(batch_size=2, capacity=8):
    return KVCache(LAYERS, batch_size, HEADS, capacity, SIZE)


def feed(cache, num_tokens, value):
    """Writes keys of one value, and values of its negative; returns what the queries may see."""
    positions, mask = cache.reserve(num_tokens)
    k = torch.full((cache.batch_size, HEADS, num_tokens, SIZE), float(value))
    for layer in range(LAYERS):
        keys, values = cache.write(layer, k, -k, positions)
    return keys[:, 0, :, 0], values[:, 0, :, 0], positions, mask


def test_tokens_follow_each_other():
    cache = new_cache()
    keys, values, positions, mask = feed(cache, 3, 1)
    assert positions.tolist() == [[0, 1, 2]] * 2 and mask is None
    keys, values, positions, mask = feed(cache, 2, 2)
    assert positions.tolist() == [[3, 4]] * 2 and mask is None
    assert keys.tolist() == [[1, 1, 1, 2, 2]] * 2
    assert values.equal(-keys)
    assert cache.lengths.tolist() == [5, 5] and cache.extent == 5 and not cache.ragged


def test_ragged_rows_continue_where_each_one_ends():
    cache = new_cache()
    feed(cache, 4, 1)
    cache.truncate([4, 2])
    keys, _, positions, mask = feed(cache, 2, 2)
    assert positions.tolist() == [[4, 5], [2, 3]]
    assert keys.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0]]
    assert mask.tolist() == [[[1, 1, 1, 1, 1, 0], [1] * 6], [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]]


def test_rows_of_one_length_again_need_no_mask():
    cache = new_cache()
    feed(cache, 4, 1)
    cache.truncate([4, 2])
    cache.truncate([2, 2])
    assert cache.extent == 2 and feed(cache, 1, 2)[3] is None


def test_layers_are_apart():
    cache = new_cache()
    positions, _ = cache.reserve(1)
    k = torch.ones(2, HEADS, 1, SIZE)
    cache.write(1, k, k, positions)
    assert (cache.keys[0] == 0).all() and (cache.keys[1, :, :, 0] == 1).all()


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0, 0, 1, 1, 0], [1]])
def test_reorder_copies_rows(rows):
    cache = new_cache()
    positions, _ = cache.reserve(3)
    k = torch.tensor([10.0, 20.0])[:, None, None, None].expand(2, HEADS, 3, SIZE)
    for layer in range(LAYERS):
        cache.write(layer, k, -k, positions)
    cache.truncate([3, 2])
    cache.reorder(torch.tensor(rows))
    lengths = [[3, 2][row] for row in rows]
    assert cache.lengths.tolist() == lengths and cache.batch_size == len(rows) and cache.capacity == 8
    assert cache.extent == max(lengths) and cache.ragged == (len(set(lengths)) > 1)
    for row, source in enumerate(rows):
        assert (cache.keys[:, row, :, : lengths[row]] == [10, 20][source]).all()
        assert (cache.values[:, row, :, : lengths[row]] == -[10, 20][source]).all()


def test_the_room_of_long_rows_that_left_is_free_again():
    cache = new_cache(capacity=8)
    feed(cache, 7, 1)
    cache.truncate([7, 2])
    cache.reorder(torch.tensor([1, 1]))
    feed(cache, 6, 2)
    assert cache.lengths.tolist() == [8, 8]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_holds_what_lists_hold(data):
    """Random feeds, rollbacks and reorders, against one Python list a row."""
    cache, rows = new_cache(batch_size=3, capacity=12), [[], [], []]
    for value in range(1, 9):
        action = data.draw(st.sampled_from(["feed", "truncate", "reorder"]))
        if action == "feed" and max(map(len, rows)) < 12:
            count = data.draw(st.integers(1, 12 - max(map(len, rows))))
            before = [len(row) for row in rows]
            rows = [row + [value] * count for row in rows]
            keys, _, positions, mask = feed(cache, count, value)
            assert positions.tolist() == [list(range(n, n + count)) for n in before]
            for row, held in enumerate(rows):
                assert keys[row, : len(held)].tolist() == held
            if mask is not None:
                slots = range(max(map(len, rows)))
                assert mask.tolist() == [[[s <= n + t for s in slots] for t in range(count)] for n in before]
            else:
                assert len(set(before)) == 1
        elif action == "truncate":
            lengths = [data.draw(st.integers(0, len(row))) for row in rows]
            cache.truncate(lengths)
            rows = [row[:n] for row, n in zip(rows, lengths, strict=True)]
        elif action == "reorder":
            order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            cache.reorder(torch.tensor(order))
            rows = [list(rows[i]) for i in order]
        assert cache.lengths.tolist() == [len(row) for row in rows]
        assert cache.extent == max(map(len, rows))


def test_overflow_is_refused_and_changes_nothing():
    cache = new_cache(capacity=4)
    feed(cache, 3, 1)
    with pytest.raises(ValueError, match="the cache holds 4 tokens a row, 5 are needed; create it with a la"):
        cache.reserve(2)
    assert cache.lengths.tolist() == [3, 3] and cache.extent == 3
    feed(cache, 1, 2)  # what fits still fits


def test_no_new_tokens_are_refused():
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        new_cache().reserve(0)


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([3], "lengths must have 2 entries, one a row, got 1"),
        ([3, 4], r"lengths\[1\] must be in \[0, 3\], got 4"),
        ([-1, 3], r"lengths\[0\] must be in \[0, 3\], got -1"),
    ],
)
def test_rollback_that_is_none_is_refused(lengths, message):
    cache = new_cache()
    feed(cache, 3, 1)
    with pytest.raises(ValueError, match=message):
        cache.truncate(lengths)
    assert cache.lengths.tolist() == [3, 3]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must name at least one row, got none"):
        new_cache().reorder(torch.tensor([], dtype=torch.long))


@pytest.mark.parametrize("name", ["num_layers", "batch_size", "num_kv_heads", "capacity", "head_dim"])
def test_sizes_below_one_are_refused(name):
    sizes = {"num_layers": 1, "batch_size": 1, "num_kv_heads": 1, "capacity": 1, "head_dim": 2}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        KVCache(**(sizes | {name: 0}))


def test_a_cache_beyond_all_memory_is_refused_with_its_size():
    with pytest.raises(RuntimeError, match=r"cannot allocate a cache of .* GB on cpu for batch_size 1000000"):
        KVCache(32, 1_000_000, 32, 8192, 128)
