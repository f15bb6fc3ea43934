"""The decoder against transformers, family by family, on random weights; and against itself."""

import math

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmcourse.attention import attention_reference, causal_mask
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder, DecoderConfig, Llama3RopeScaling
from llmcourse.pretrained import load
from tests.tiny_tokenizer import tiny_tokenizer_json

VOCAB, CONTEXT = 300, 1024
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=128,
)
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama-mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama-mqa": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "llama-head-dim": (LlamaForCausalLM, LlamaConfig, {"head_dim": 24}),
    "llama-theta-eps": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-2},
    ),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "qwen3-tied-bias": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True},
    ),
}


def random_transformers_model(family):
    """All parameters drawn at random: fresh ones have biases of 0 and norms of 1, which hide mistakes."""
    model_class, config_class, changes = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**(SIZES | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A transformers model and ours, loaded from the files that it saved."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = random_transformers_model(request.param)
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return theirs, load(folder).model


@pytest.fixture(scope="module")
def decoder():
    """A small decoder of ours alone, in fp64 so that only real differences show."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        qk_norm=True,
    )
    return Decoder(config).double().eval().requires_grad_(False)


def random_ids(*shape, seed=0, vocab=VOCAB):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def expected_logits(theirs, ids):
    return theirs(ids, use_cache=False).logits


def assert_agrees(ours, expected):
    assert expected.std() > 0.1, "logits this small would agree whatever the model does"
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


class TestAgainstTransformers:
    def test_whole_text(self, pair):
        theirs, ours = pair
        ids = random_ids(2, 37)
        assert_agrees(ours(ids), expected_logits(theirs, ids))

    def test_whole_text_with_the_slow_attention(self, pair):
        theirs, ours = pair
        slow = Decoder(ours.config, attention_reference)
        slow.load_state_dict(ours.state_dict())
        ids = random_ids(2, 37)
        with torch.no_grad():
            assert_agrees(slow(ids), expected_logits(theirs, ids))

    def test_far_positions(self, pair):
        theirs, ours = pair
        ids = random_ids(1, CONTEXT - 4)
        expected = expected_logits(theirs, ids)
        assert_agrees(ours(ids), expected)
        cache = ours.new_cache(1, CONTEXT)
        ours(ids[:, :1000], cache)
        assert_agrees(ours(ids[:, 1000:], cache), expected[:, 1000:])

    def test_token_by_token(self, pair):
        theirs, ours = pair
        ids = random_ids(2, 12)
        cache = ours.new_cache(2, 12)
        logits = [ours(ids[:, t : t + 1], cache) for t in range(12)]
        assert_agrees(torch.cat(logits, dim=1), expected_logits(theirs, ids))

    @pytest.mark.parametrize("chunks", [(37,), (36, 1), (1, 36), (16, 16, 5)], ids=str)
    def test_prefill_in_chunks(self, pair, chunks):
        theirs, ours = pair
        ids = random_ids(2, 37)
        cache = ours.new_cache(2, 40)
        logits = [ours(chunk, cache) for chunk in ids.split(chunks, dim=1)]
        assert_agrees(torch.cat(logits, dim=1), expected_logits(theirs, ids))

    def test_ragged_batch(self, pair):
        """Prompts of 9, 1 and 5 tokens, padded to 9 with anything, then 3 tokens more for each."""
        theirs, ours = pair
        ids, lengths = random_ids(3, 12), [9, 1, 5]
        cache = ours.new_cache(3, 12)
        prompts = torch.full((3, 9), 7)
        for row, length in enumerate(lengths):
            prompts[row, :length] = ids[row, :length]
        prefilled = ours(prompts, cache)
        cache.truncate(lengths)
        steps = [
            ours(torch.stack([ids[row, n + step] for row, n in enumerate(lengths)])[:, None], cache)
            for step in range(3)
        ]
        for row, length in enumerate(lengths):
            expected = expected_logits(theirs, ids[row : row + 1, : length + 3])[0]
            got = torch.cat([prefilled[row, :length], *(step[row] for step in steps)])
            assert_agrees(got, expected)

    def test_rollback(self, pair):
        """Tokens that were taken back leave no trace, in rows of unequal length."""
        theirs, ours = pair
        ids = random_ids(2, 10)
        cache = ours.new_cache(2, 16)
        ours(ids[:, :6], cache)
        ours(random_ids(2, 7, seed=1), cache)
        cache.truncate([4, 6])
        logits = ours(torch.stack([ids[0, 4:8], ids[1, 6:10]]), cache)
        for row, (first, last) in enumerate([(4, 8), (6, 10)]):
            expected = expected_logits(theirs, ids[row : row + 1, :last])[0, first:]
            assert_agrees(logits[row], expected)

    def test_reordered_rows(self, pair):
        theirs, ours = pair
        ids = random_ids(2, 8)
        cache = ours.new_cache(2, 9)
        ours(ids, cache)
        cache.reorder(torch.tensor([1, 0, 1]))
        new = random_ids(3, 1, seed=1)
        texts = torch.cat([ids[[1, 0, 1]], new], dim=1)
        assert_agrees(ours(new, cache), expected_logits(theirs, texts)[:, -1:])


class TestCacheIsExact:
    """Cached and uncached differ only in rounding: in fp64 by nothing that one could see."""

    def test_ragged_chunks(self, decoder):
        ids = random_ids(3, 20, vocab=50)
        expected = decoder(ids)
        cache = decoder.new_cache(3, 24)
        decoder(ids[:, :10], cache)
        held = [10, 3, 7]
        cache.truncate(held)
        for chunk in (1, 4, 2, 3):
            tokens = torch.stack([ids[row, n : n + chunk] for row, n in enumerate(held)])
            logits = decoder(tokens, cache)
            for row, n in enumerate(held):
                torch.testing.assert_close(logits[row], expected[row, n : n + chunk], atol=1e-12, rtol=0)
            held = [n + chunk for n in held]

    def test_rows_do_not_see_each_other(self, decoder):
        ids = random_ids(2, 9, vocab=50)
        changed = ids.clone()
        changed[1] = random_ids(9, seed=1, vocab=50)
        torch.testing.assert_close(decoder(ids)[0], decoder(changed)[0], atol=0, rtol=0)

    def test_tokens_do_not_see_the_future(self, decoder):
        ids = random_ids(1, 9, vocab=50)
        changed = ids.clone()
        changed[0, 6] += 1
        before, after = decoder(ids), decoder(changed)
        torch.testing.assert_close(before[:, :6], after[:, :6], atol=0, rtol=0)
        assert not torch.allclose(before[:, 6:], after[:, 6:])

    def test_a_failed_call_leaves_the_cache_alone(self, decoder):
        cache = decoder.new_cache(1, 4)
        ids = random_ids(1, 4, vocab=50)
        decoder(ids[:, :2], cache)
        for bad in (torch.tensor([[50]]), random_ids(1, 3, vocab=50)):
            with pytest.raises(ValueError):
                decoder(bad, cache)
        torch.testing.assert_close(decoder(ids[:, 2:], cache), decoder(ids)[:, 2:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(decoder, dtype):
    ids = random_ids(2, 9, vocab=50)
    other = Decoder(decoder.config)
    other.load_state_dict(decoder.state_dict())
    logits = other.to(dtype)(ids)
    assert logits.dtype == dtype == other.new_cache(1, 1).keys.dtype
    error = (logits.double() - decoder(ids)).abs().max() / decoder(ids).std()
    assert error < {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float64: 1e-12}[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_angles_of_far_positions_are_not_taken_in_half_precision(decoder, dtype):
    """1001 is no number in bf16: its token would stand where 1000 stands."""
    positions = torch.arange(990, 1024)[None]
    other = Decoder(decoder.config).to(dtype)
    for got, expected in zip(other.rope(positions), decoder.rope(positions), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=torch.finfo(dtype).eps + 1e-4, rtol=0)


def test_num_parameters_counts_tied_embeddings_once(decoder):
    attention = 16 * 8 * (4 + 2 + 2) + 4 * 8 * 16 + 2 * 8  # q, k, v; o; the norms of q and k
    assert decoder.num_parameters == 50 * 16 + 2 * (attention + 3 * 16 * 24 + 2 * 16) + 16


class TestBadInput:
    @pytest.mark.parametrize("token", [50, -1, 10**6])
    def test_token_id_out_of_range(self, decoder, token):
        with pytest.raises(ValueError, match=rf"token ids must be in \[0, 50\), got {token}; is the tok"):
            decoder(torch.tensor([[3, token, 4]]))

    def test_rows_that_the_cache_does_not_have(self, decoder):
        cache = decoder.new_cache(3, 8)
        for rows in (1, 4):
            message = f"token_ids must have 3 rows as the cache has, got {rows}; make a cache for as many"
            with pytest.raises(ValueError, match=message):
                decoder(random_ids(rows, 2, vocab=50), cache)
        assert cache.extent == 0 and not cache.keys.any()

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"num_layers": 3}, "num_layers 2, got 3"),
            ({"num_layers": 1}, "num_layers 2, got 1"),
            ({"num_kv_heads": 4}, "num_kv_heads 2, got 4"),
            ({"num_kv_heads": 1}, "num_kv_heads 2, got 1"),  # which would be broadcast without a word
            ({"head_dim": 4}, "head_dim 8, got 4"),
            ({"dtype": torch.float32}, r"dtype torch\.float64, got torch\.float32"),
            ({"num_layers": 3, "head_dim": 4}, "num_layers 2, got 3, head_dim 8, got 4"),
        ],
    )
    def test_a_cache_of_another_model(self, decoder, change, message):
        own = dict(num_layers=2, batch_size=1, num_kv_heads=2, capacity=8, head_dim=8, dtype=torch.float64)
        cache = KVCache(**(own | change))
        with pytest.raises(
            ValueError, match=f"cache must be one of this model, with {message}; make it with"
        ):
            decoder(random_ids(1, 2, vocab=50), cache)
        assert cache.extent == 0 and not cache.lengths.any() and not cache.keys.any()
        decoder(random_ids(1, 2, vocab=50), KVCache(**own))

    def test_a_cache_on_another_device(self, decoder):
        cache = decoder.new_cache(1, 8)
        cache.keys, cache.values = cache.keys.to("meta"), cache.values.to("meta")
        with pytest.raises(
            ValueError, match="cache must be one of this model, with device cpu, got meta; make"
        ):
            decoder(random_ids(1, 2, vocab=50), cache)
        assert cache.extent == 0

    @pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
    def test_no_tokens(self, decoder, shape):
        for cache in (None, decoder.new_cache(1, 8)):
            with pytest.raises(
                ValueError, match=r"token_ids must have shape \(B, T\), B and T at least 1, got \("
            ):
                decoder(torch.zeros(shape, dtype=torch.long), cache)

    def test_cache_overflow(self, decoder):
        with pytest.raises(ValueError, match="the cache holds 4 tokens a row, 5 are needed"):
            decoder(random_ids(1, 5, vocab=50), decoder.new_cache(1, 4))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
            ({"num_layers": -2}, "num_layers must be at least 1, got -2"),
            ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
            ({"head_dim": 7}, "head_dim must be even for RoPE, got 7"),
            ({"rms_norm_eps": 0.0}, r"rms_norm_eps must be above 0 and finite, got 0\.0"),
            ({"rope_theta": math.nan}, "rope_theta must be above 0 and finite, got nan"),
            ({"rope_theta": math.inf}, "rope_theta must be above 0 and finite, got inf"),
            ({"eos_token_ids": (50,)}, r"eos_token_ids must be in \[0, 50\), got 50"),
        ],
    )
    def test_config(self, decoder, change, message):
        with pytest.raises(ValueError, match=message):
            DecoderConfig(**(vars(decoder.config) | change))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"factor": 0.0}, r"factor must be above 0 and finite, got 0\.0"),
            ({"high_freq_factor": 1.0}, r"high_freq_factor must be larger than .*, got 1\.0 and 1\.0"),
            (
                {"original_max_position_embeddings": 0},
                "original_max_position_embeddings must be at least 1, got 0",
            ),
        ],
    )
    def test_rope_scaling(self, change, message):
        numbers = {key: value for key, value in LLAMA3_ROPE.items() if not key.startswith("rope")}
        with pytest.raises(ValueError, match=message):
            Llama3RopeScaling(**(numbers | change))


class TestMaskAndPositions:
    """A mask and positions may be given: causality and counting on are only what they are by default."""

    @pytest.fixture
    def tokens(self):
        return torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])

    def test_those_of_plain_text_change_nothing(self, decoder, tokens):
        mask = causal_mask(4, 4)[None].expand(2, -1, -1)
        places = torch.arange(4).expand(2, -1)
        expected = decoder.hidden_states(tokens)
        torch.testing.assert_close(decoder.hidden_states(tokens, mask=mask, positions=places), expected)
        shifted = decoder.hidden_states(tokens, positions=places + 3)  # RoPE knows distances alone
        torch.testing.assert_close(shifted, expected, atol=1e-4, rtol=1e-4)
        stretched = decoder.hidden_states(tokens, positions=places * 3)
        assert not torch.isclose(stretched[:, 1:], expected[:, 1:]).all(-1).any()

    def test_a_token_sees_what_the_mask_shows_it(self, decoder, tokens):
        mask = torch.ones(2, 4, 4, dtype=torch.bool)
        mask[:, :, 2] = False
        other = tokens.clone()
        other[:, 2] += 1
        seen, unseen = (decoder.hidden_states(t, mask=mask) for t in (tokens, other))
        assert torch.equal(seen[:, [0, 1, 3]], unseen[:, [0, 1, 3]])
        other[:, 3] += 1
        later = decoder.hidden_states(other, mask=mask)
        assert not torch.isclose(seen[:, :2], later[:, :2]).all(-1).any(), "both ways"

    def test_with_a_cache_the_mask_is_over_what_it_holds_and_what_is_new(self, decoder, tokens):
        mask = torch.ones(2, 4, 4, dtype=torch.bool).tril()
        mask[:, 3, 1] = False
        cache = decoder.new_cache(2, 4)
        decoder.hidden_states(tokens[:, :2], cache)
        found = decoder.hidden_states(tokens[:, 2:], cache, mask=mask[:, 2:])
        torch.testing.assert_close(found, decoder.hidden_states(tokens, mask=mask)[:, 2:])

    def test_other_shapes_are_refused_and_the_cache_is_left_as_it_was(self, decoder, tokens):
        cache = decoder.new_cache(2, 8)
        decoder.hidden_states(tokens, cache)
        wrong = {"mask": torch.ones(2, 4, 4, dtype=torch.bool)}, {"positions": torch.zeros(2, 3).long()}
        for arguments in wrong:
            with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
                decoder.hidden_states(tokens, cache, **arguments)
        assert cache.lengths.tolist() == [4, 4]
