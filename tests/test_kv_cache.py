"""The cache: slots, lengths and masks; and that it changes no logits, in fp64 to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse import kv_cache
from llmcourse.attention import attention_reference, sdpa
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.roofline import DoesNotFit

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


@pytest.mark.parametrize(
    "n, message",
    [
        ([1], "n must have 2 entries, one a row, got 1; give all rows"),
        ([0, 3], r"n\[1\] must be in \[0, 2\], got 3; the row holds 2 tokens, and what was never"),
        ([-1, 0], r"n\[0\] must be in \[0, 3\], got -1; the row holds 3 tokens"),
        (3, r"n\[1\] must be in \[0, 2\], got 3; the row holds 2 tokens"),
        (-1, r"n\[0\] must be in \[0, 3\], got -1; the row holds 3 tokens"),
    ],
)
def test_rollback_past_the_start_is_refused(n, message):
    cache = new_cache()
    feed(cache, 3, 1)
    cache.truncate([3, 2])
    with pytest.raises(ValueError, match=message):
        cache.rollback(n)
    assert cache.lengths.tolist() == [3, 2] and cache.extent == 3 and cache.ragged


def test_rollback_forgets_the_last_tokens():
    cache = new_cache()
    feed(cache, 6, 1)
    cache.rollback(1)
    assert cache.lengths.tolist() == [5, 5] and cache.extent == 5 and not cache.ragged
    cache.rollback([0, 3])
    assert cache.lengths.tolist() == [5, 2] and cache.extent == 5 and cache.ragged
    cache.rollback([3, 0])
    assert cache.lengths.tolist() == [2, 2] and cache.extent == 2 and not cache.ragged
    cache.rollback(2)
    assert cache.lengths.tolist() == [0, 0] and feed(cache, 8, 2)[2][0].tolist() == list(range(8))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must name at least one row, got none"):
        new_cache().reorder(torch.tensor([], dtype=torch.long))


@pytest.mark.parametrize("rows", [[0, 2], [5], [-3, 0, 1]])
def test_rows_that_are_not_there_are_refused(rows):
    cache = new_cache()
    feed(cache, 3, 1)
    with pytest.raises(ValueError, match=r"rows must be in \[0, 1\], got \[.*\]; number them as they are"):
        cache.reorder(torch.tensor(rows))
    assert cache.batch_size == 2 and cache.lengths.tolist() == [3, 3]


@pytest.mark.parametrize(
    "shape", [(1, HEADS, 2, SIZE), (2, 1, 2, SIZE), (2, HEADS, 1, SIZE), (2, HEADS, 2, 2)]
)
@pytest.mark.parametrize("name", ["k", "v"])
def test_keys_of_another_model_are_not_written(name, shape):
    """Smaller ones would fit: `scatter_` writes as many as it is given."""
    cache = new_cache()
    positions, _ = cache.reserve(2)
    tensors = {"k": torch.ones(2, HEADS, 2, SIZE), "v": torch.ones(2, HEADS, 2, SIZE)}
    tensors[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(2, 3, 2, 4\), got"):
        KVCache.write.__wrapped__(cache, 0, *tensors.values(), positions)
    assert not cache.keys.any() and not cache.values.any()


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("name", ["num_layers", "batch_size", "num_kv_heads", "capacity", "head_dim"])
def test_sizes_below_one_are_refused(name, size):
    sizes = {"num_layers": 1, "batch_size": 1, "num_kv_heads": 1, "capacity": 1, "head_dim": 2}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}; a cache has room for one"):
        KVCache(**(sizes | {name: size}))


def test_a_cache_of_integers_is_refused():
    with pytest.raises(
        ValueError, match=r"dtype must be a floating-point one, got torch\.int64; take the mod"
    ):
        KVCache(1, 1, 1, 1, 2, dtype=torch.int64)


class TestWhatDoesNotFit:
    """One token of these caches takes 2 · 2 layers · 3 heads · 4 · 4 bytes = 192."""

    @pytest.fixture
    def free(self, monkeypatch):
        return lambda num_bytes: monkeypatch.setattr(
            kv_cache.hardware, "free_bytes", lambda device: num_bytes
        )

    def test_need_stands_against_free(self, free):
        free(3 * 10**9)
        message = (
            r"a cache for batch_size 1000 and capacity 20000 needs 3\.8 GB, 3\.0 GB are free on cpu, room "
            r"for 15,625,000 tokens in all; ask for fewer rows \(prompts, beams\) or fewer tokens"
        )
        with pytest.raises(DoesNotFit, match=message):
            new_cache(1000, 20_000)

    def test_nothing_is_allocated_first(self, free, monkeypatch):
        free(2 * 8 * 192 - 1)
        monkeypatch.setattr(torch, "zeros", None)
        with pytest.raises(DoesNotFit):
            new_cache(2, 8)

    def test_to_the_last_byte(self, free):
        free(2 * 8 * 192)
        cache = new_cache(2, 8)
        assert cache.keys.nbytes + cache.values.nbytes == 2 * 8 * 192

    def test_where_free_memory_is_not_known_the_allocation_says_it(self, free):
        free(None)
        with pytest.raises(
            DoesNotFit, match=r"cannot allocate a cache of .* GB on cpu for batch_size 1000000"
        ):
            KVCache(32, 1_000_000, 32, 8192, 128)

    def test_this_machine_is_asked(self):
        with pytest.raises(DoesNotFit, match="GB are free on cpu, room for"):
            KVCache(32, 1_000_000, 32, 8192, 128)


VOCAB = 50
TEXT_LENGTHS = (9, 1, 17, 4)


@pytest.fixture(scope="module", params=[sdpa, attention_reference], ids=lambda attention: attention.__name__)
def decoder(request):
    """Grouped queries, norms on the heads, random weights, fp64: nothing but rounding may differ."""
    torch.manual_seed(0)
    config = DecoderConfig(VOCAB, 16, 24, 2, 4, 2, 8, 64, qk_norm=True)
    return Decoder(config, request.param).double().eval().requires_grad_(False)


def random_text(length, seed):
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(decoder, cache, texts, chunk):
    """Appends texts of any lengths in pieces of at most `chunk` tokens; logits after each of their tokens.

    A piece is padded with other tokens than 0, and the padding is rolled back.
    """
    found = [[] for _ in texts]
    for start in range(0, max(map(len, texts)), chunk):
        pieces = [text[start : start + chunk] for text in texts]
        longest = max(map(len, pieces))
        padded = torch.tensor([piece + [7] * (longest - len(piece)) for piece in pieces])
        logits = decoder(padded, cache)
        cache.rollback([longest - len(piece) for piece in pieces])
        for row, piece in enumerate(pieces):
            found[row].append(logits[row, : len(piece)])
    return [torch.cat(rows) for rows in found]


def assert_uncached(decoder, found, texts):
    """The last logits of each text are those of the model without a cache, each text alone."""
    for logits, text in zip(found, texts, strict=True):
        expected = decoder(torch.tensor([text]))[0]
        assert expected.std() > 0.1, "logits this small would agree whatever the cache holds"
        torch.testing.assert_close(logits, expected[len(text) - len(logits) :], atol=1e-13, rtol=1e-13)


class TestLogits:
    @pytest.mark.parametrize("chunk", [1, 2, 5, 16, 17, 100])
    def test_prefill_in_pieces_of_ragged_texts(self, decoder, chunk):
        texts = [random_text(length, seed) for seed, length in enumerate(TEXT_LENGTHS)]
        cache = decoder.new_cache(len(texts), 40)
        found = read(decoder, cache, texts, chunk)
        assert cache.lengths.tolist() == list(TEXT_LENGTHS)
        assert_uncached(decoder, found, texts)

    @pytest.mark.parametrize("sizes", [(1, 16), (16, 1), (3, 1, 8, 5), (7, 7, 3)], ids=str)
    def test_uneven_pieces(self, decoder, sizes):
        texts = [random_text(17, seed) for seed in range(3)]
        cache = decoder.new_cache(3, 17)
        pieces = torch.tensor(texts).split(sizes, dim=1)
        logits = torch.cat([decoder(piece, cache) for piece in pieces], dim=1)
        assert_uncached(decoder, list(logits), texts)

    def test_token_by_token_after_ragged_prompts(self, decoder):
        prompts = [random_text(length, seed) for seed, length in enumerate(TEXT_LENGTHS)]
        new = [random_text(12, 10 + seed) for seed in range(len(prompts))]
        cache = decoder.new_cache(len(prompts), max(TEXT_LENGTHS) + 12)
        read(decoder, cache, prompts, 100)
        found = read(decoder, cache, new, 1)
        assert_uncached(decoder, found, [a + b for a, b in zip(prompts, new, strict=True)])

    @pytest.mark.parametrize("n", [1, 4, [4, 0, 2, 1], [0, 1, 17, 4], [9, 1, 17, 4]], ids=str)
    @pytest.mark.parametrize("chunk", [1, 3])
    def test_tokens_that_were_taken_back_leave_no_trace(self, decoder, n, chunk):
        """What speculative decoding does: read drafts, take the rejected back, go on with other tokens."""
        texts = [random_text(max(length, 4), seed) for seed, length in enumerate(TEXT_LENGTHS)]
        cache = decoder.new_cache(len(texts), 30)
        read(decoder, cache, texts, 100)
        cache.rollback(n)
        counts = [n] * len(texts) if isinstance(n, int) else n
        kept = [text[: len(text) - count] for text, count in zip(texts, counts, strict=True)]
        assert cache.lengths.tolist() == [len(text) for text in kept]
        new = [random_text(length, 20 + length) for length in (5, 3, 6, 1)]
        found = read(decoder, cache, new, chunk)
        assert_uncached(decoder, found, [a + b for a, b in zip(kept, new, strict=True)])

    def test_many_rounds_of_drafts(self, decoder):
        """Twenty rounds of three tokens, of which each row keeps what it likes."""
        rows = [[3], [4], [5]]
        cache, keep = decoder.new_cache(3, 64), torch.Generator().manual_seed(0)
        read(decoder, cache, rows, 1)
        for seed in range(20):
            if max(map(len, rows)) + 3 > 30:
                rows = [row[:5] for row in rows]
                cache.truncate([len(row) for row in rows])
            drafts = [random_text(3, 100 * seed + row) for row in range(3)]
            found = read(decoder, cache, drafts, 3)
            rows = [row + draft for row, draft in zip(rows, drafts, strict=True)]
            assert_uncached(decoder, found, rows)
            rejected = torch.randint(4, (3,), generator=keep).tolist()
            cache.rollback(rejected)
            rows = [row[: len(row) - count] for row, count in zip(rows, rejected, strict=True)]
