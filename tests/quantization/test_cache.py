"""A cache of codes: what is read is what was rounded, however rows move; and decoding goes on with it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse import kv_cache, pretrained
from llmcourse.decoding import UncachedLogits, generate
from llmcourse.decoding.beam import beam_search
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.quantization.affine import quantize
from llmcourse.quantization.cache import QuantizedKVCache, quantized_cache_logits
from llmcourse.quantization.quantized_tensor import BITS
from llmcourse.roofline import DoesNotFit

LAYERS, HEADS, SIZE = 2, 3, 6
KINDS = [(8, None), (8, False), (4, None), (4, True), (3, None), (2, None)]


def new_cache(batch_size=2, capacity=12, bits=8, symmetric=None, dtype=torch.float32):
    sizes = (LAYERS, batch_size, HEADS, capacity, SIZE)
    return QuantizedKVCache(*sizes, bits=bits, symmetric=symmetric, dtype=dtype)


def rounded(x, bits, symmetric):
    """Each vector by itself, by what `quantize` says."""
    symmetric = bits == 8 if symmetric is None else symmetric
    settings = {"bits": bits, "symmetric": symmetric, "scale_dtype": torch.bfloat16}
    return quantize(x, granularity="token", **settings).dequantized(x.dtype)


def random(batch_size, num_tokens, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch_size, HEADS, num_tokens, SIZE, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_each_vector_is_rounded_by_itself(bits, symmetric, dtype):
    cache = new_cache(bits=bits, symmetric=symmetric, dtype=dtype)
    for layer in range(LAYERS):
        k, v = random(2, 5, layer, dtype)
        if not layer:
            positions, mask = cache.reserve(5)
            assert mask is None and positions.tolist() == [list(range(5))] * 2
        found = cache.write(layer, k, v, positions)
        for got, exact in zip(found, (k, v), strict=True):
            assert got.dtype == dtype and got.shape == exact.shape
            assert got.equal(rounded(exact, bits, symmetric))
            assert not got.equal(exact)
        assert all(a.equal(b) for a, b in zip(cache.read(layer), found, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_history_holds_what_a_cache_of_the_rounded_numbers_holds(data):
    """Feeds, rollbacks, branches kept and rows that move, against a `KVCache`."""
    bits, symmetric = data.draw(st.sampled_from(KINDS))
    cache, plain = new_cache(3, 12, bits, symmetric), KVCache(LAYERS, 3, HEADS, 12, SIZE)
    for seed in range(7):
        action = data.draw(st.sampled_from(["feed", "feed", "truncate", "keep", "reorder"]))
        held = plain.lengths.tolist()
        if action == "feed" and plain.extent < 12:
            count = data.draw(st.integers(1, 12 - plain.extent))
            (positions, mask), (expected, plain_mask) = cache.reserve(count), plain.reserve(count)
            assert positions.equal(expected)
            assert (mask is None) == (plain_mask is None) and (mask is None or mask.equal(plain_mask))
            for layer in range(LAYERS):
                k, v = random(len(held), count, 10 * seed + layer)
                cache.write(layer, k, v, positions)
                plain.write(layer, rounded(k, bits, symmetric), rounded(v, bits, symmetric), positions)
        elif action == "truncate":
            lengths = [data.draw(st.integers(0, length)) for length in held]
            cache.truncate(lengths)
            plain.truncate(lengths)
        elif action == "keep" and min(held) > 1:
            last = data.draw(st.integers(1, min(held)))
            kept = [sorted(data.draw(st.sets(st.integers(0, last - 1)))) for _ in held]
            cache.keep(last, kept)
            plain.keep(last, kept)
        elif action == "reorder":
            rows = torch.tensor(data.draw(st.lists(st.integers(0, len(held) - 1), min_size=1, max_size=4)))
            cache.reorder(rows)
            plain.reorder(rows)
        assert cache.lengths.equal(plain.lengths) and cache.extent == plain.extent
        assert (cache.batch_size, cache.ragged) == (plain.batch_size, plain.ragged)
        for layer in range(LAYERS):
            for got, expected in zip(
                cache.read(layer), (plain.keys[layer], plain.values[layer]), strict=True
            ):
                for row, length in enumerate(plain.lengths.tolist()):
                    assert got[row, :, :length].equal(expected[row, :, :length])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_of_a_token(bits, symmetric):
    cache = new_cache(batch_size=2, capacity=5, bits=bits, symmetric=symmetric)
    a_vector = math.ceil(SIZE * bits / 8) + 2 + (not symmetric)
    assert cache.bytes_per_token == 2 * LAYERS * HEADS * a_vector
    assert sum(tensor.nbytes for tensor in cache.tensors.values()) == 2 * 5 * cache.bytes_per_token
    plain = KVCache(LAYERS, 2, HEADS, 5, SIZE, dtype=torch.bfloat16)
    assert plain.bytes_per_token == 2 * LAYERS * HEADS * SIZE * 2
    assert sum(tensor.nbytes for tensor in plain.tensors.values()) == 2 * 5 * plain.bytes_per_token


def test_what_fits_is_counted_in_codes(monkeypatch):
    free = 2 * 12 * new_cache().bytes_per_token
    monkeypatch.setattr(kv_cache.hardware, "free_bytes", lambda device: free)
    assert new_cache(2, 12).batch_size == 2
    with pytest.raises(DoesNotFit, match="a cache for batch_size 2 and capacity 13 needs"):
        new_cache(2, 13)
    with pytest.raises(DoesNotFit):
        KVCache(LAYERS, 2, HEADS, 12, SIZE)


def test_first_layers_share_the_memory():
    cache = new_cache()
    part = cache.first_layers(1)
    positions, _ = part.reserve(3)
    k, v = random(2, 3, 0)
    part.write(0, k, v, positions)
    assert (part.num_layers, part.extent, cache.extent) == (1, 3, 0)
    cache.reserve(3)
    assert all(a.equal(b) for a, b in zip(cache.read(0), part.read(0), strict=True))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_what_is_not_finite_stays_alone_and_is_not_hidden(bits, symmetric, broken):
    cache = new_cache(bits=bits, symmetric=symmetric)
    k, v = random(2, 4, 0)
    clean = rounded(k, bits, symmetric)
    k[1, 2, 3, 4] = broken
    positions, _ = cache.reserve(4)
    keys, _ = cache.write(0, k, v, positions)
    assert keys[1, 2, 3].isnan().all()
    clean[1, 2, 3] = keys[1, 2, 3] = 0
    assert keys.equal(clean)


def test_zeros_and_extremes():
    """A scale is no smaller than the least number of bf16, 9.2e-41."""
    for magnitude in (0.0, 1e-44, 1e-30, 1e30):
        cache = new_cache(1)
        k, v = random(1, 2, 0) * magnitude
        positions, _ = cache.reserve(2)
        for got, exact in zip(cache.write(0, k, v, positions), (k, v), strict=True):
            assert ((got - exact).abs() <= exact.abs().amax() / 127 + 4.6e-41).all()


def test_keys_of_another_model_are_not_written():
    cache = new_cache()
    positions, _ = cache.reserve(2)
    k, v = random(2, 2, 0)
    with pytest.raises(ValueError, match=r"v must have shape \(2, 3, 2, 6\), got \(2, 1, 2, 6\)"):
        QuantizedKVCache.write.__wrapped__(cache, 0, k, v[:, :1], positions)
    assert not any(tensor.any() for tensor in cache.tensors.values())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="bits must be one of 2, 3, 4, 5, 6, 7, 8, got 16"):
        new_cache(bits=16)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        new_cache(capacity=0)
    for name in ("keys", "values"):
        with pytest.raises(AttributeError, match=r"a QuantizedKVCache holds codes; use read\(layer\), or"):
            getattr(new_cache(), name)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = DecoderConfig(50, 16, 24, LAYERS, 4, 2, 8, 64, qk_norm=True)
    return Decoder(config).eval().requires_grad_(False)


def test_a_decoder_takes_it_and_only_its_own(decoder):
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    exact = decoder(tokens)
    cache = QuantizedKVCache.of(decoder, 2, 9)
    pieces = torch.cat([decoder(piece, cache) for piece in tokens.split((5, 1, 3), 1)], 1)
    whole = decoder(tokens, QuantizedKVCache.of(decoder, 2, 9))
    torch.testing.assert_close(pieces, whole)
    assert 0 < (whole - exact).norm() < 0.05 * exact.norm()
    coarse = decoder(tokens, QuantizedKVCache.of(decoder, 2, 9, bits=2))
    assert (coarse - exact).norm() > 5 * (whole - exact).norm()
    with pytest.raises(ValueError, match="cache must be one of this model, with num_kv_heads 2, got 3"):
        decoder(tokens, new_cache())


PROMPTS = ("def main(", "import torch\n\nclass Model", "It was a dark night, and", "The old man looked at")


@pytest.fixture(scope="module")
def small():
    model, tokenizer = pretrained.load("draft")
    return model, [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]


def test_text_of_8_bits_is_nearly_always_the_same(small):
    """Greedy search is one long chain: it parts where two tokens were nearly alike. 2 bits part at once."""
    model, prompts = small
    expected = generate(model, prompts, max_new_tokens=16)
    same = {}
    for bits in (8, 2):
        found = generate(quantized_cache_logits(model, bits), prompts, max_new_tokens=16)
        same[bits] = sum(a.tokens == b.tokens for a, b in zip(found, expected, strict=True))
    assert same[8] >= 3 and same[2] <= 1


def test_beam_search_takes_it(small):
    model, prompts = small
    settings = {"num_beams": 2, "max_new_tokens": 6}
    found = beam_search(quantized_cache_logits(model), prompts[0], **settings)
    expected = beam_search(UncachedLogits(model), prompts[0], **settings)
    assert found.hypotheses[0].tokens == expected.hypotheses[0].tokens


def test_a_source_of_other_bits_is_refused(small):
    with pytest.raises(ValueError, match=r"bits must be one of .*, got 1"):
        quantized_cache_logits(small[0], 1)
