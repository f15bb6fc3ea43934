"""The cached source against the slow truth, through every way in which a batch can change."""

from __future__ import annotations

import pytest
import torch

from llmcourse.decoding import CachedLogits, UncachedLogits, as_source
from llmcourse.decoding.source import check_prompts, check_request
from llmcourse.model import Decoder, DecoderConfig
from tests.decoding.fakes import TableSource

CONFIG = DecoderConfig(50, 32, 48, 2, 4, 2, 8, max_position_embeddings=40, eos_token_ids=(3, 4))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder(CONFIG).eval()


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


def agree(left, right):
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", [CachedLogits, UncachedLogits])
def test_ragged_prompts_give_each_row_the_logits_it_has_alone(model, source):
    batch = source(model)
    together = batch.start(PROMPTS, 10)
    for row, prompt in enumerate(PROMPTS):
        agree(together[row], model(torch.tensor([prompt]))[0, -1])
    tokens = torch.tensor([20, 21, 22])
    together = batch.step(tokens)
    for row, prompt in enumerate(PROMPTS):
        agree(together[row], model(torch.tensor([[*prompt, tokens[row]]]))[0, -1])


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [2], [0, 0, 1, 2, 2]], ids=str)
def test_reordered_rows_go_on_as_copies(model, rows):
    sources = CachedLogits(model), UncachedLogits(model)
    for source in sources:
        source.start(PROMPTS, 12)
        source.step(torch.tensor([20, 21, 22]))
        source.reorder(torch.tensor(rows))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randint(50, (len(rows),), generator=generator)
        agree(sources[0].step(tokens), sources[1].step(tokens))


def test_starting_again_forgets_the_last_batch(model):
    source = CachedLogits(model)
    first = source.start(PROMPTS, 12)
    source.step(torch.tensor([1, 2, 3]))
    source.start([[5, 5]], 4)
    assert torch.equal(source.start(PROMPTS, 12), first)


def test_logits_carry_no_gradient(model):
    source = CachedLogits(model)
    assert not source.start(PROMPTS, 12).requires_grad
    assert not source.step(torch.tensor([1, 2, 3])).requires_grad


def test_a_source_tells_what_its_model_is(model):
    source = as_source(model)
    assert isinstance(source, CachedLogits)
    assert (source.vocab_size, source.max_length, source.eos_token_ids) == (50, 40, (3, 4))
    assert source.device == torch.device("cpu")
    assert as_source(source) is source


def test_anything_else_is_no_source():
    with pytest.raises(
        TypeError, match="source must be a Decoder or a LogitsSource, got tuple; pass the model"
    ):
        as_source((1, 2))


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "prompts must hold at least 1 prompt, got 0"),
        ([[1], []], ValueError, r"prompts\[1\] must hold at least 1 token, got 0; start with <|endoftext|>"),
        (
            [[1] * 9],
            ValueError,
            r"prompts\[0\] must fit into the context of 8 tokens, got 9; keep only its last",
        ),
        (
            [[1], [2, 5]],
            ValueError,
            r"prompts\[1\] must hold token ids in \[0, 4\], got 5 at position 1; encode",
        ),
        ([[-1]], ValueError, r"prompts\[0\] must hold token ids in \[0, 4\], got -1 at position 0"),
        (["hello"], TypeError, r"prompts\[0\] must be a list of token ids, got 'hello'; encode text with"),
        (
            [1, 2],
            TypeError,
            r"prompts\[0\] must be a list of token ids, got 1; .* pass one prompt as \[prompt\]",
        ),
        (5, TypeError, r"prompts must be a list of prompts, got 5; pass one prompt as \[prompt\]"),
        ([[1.5]], TypeError, r"prompts\[0\] must be a list of token ids, got \[1.5\]"),
    ],
    ids=str,
)
def test_bad_prompts_are_refused(prompts, error, message):
    with pytest.raises(error, match=message):
        check_prompts(prompts, TableSource(torch.zeros(5, 5), max_length=8))


def test_end_tokens_are_those_given_or_the_sources_own():
    source = TableSource(torch.zeros(5, 5), eos_token_ids=(3, 4))
    assert check_request(source, [[1]], 1, None) == {3, 4}
    assert check_request(source, [[1]], 1, [0, 0]) == {0}
    assert check_request(source, [[1]], 1, ()) == frozenset()


@pytest.mark.parametrize("value", [0, -1, 1.0, "8", None, True], ids=repr)
def test_max_new_tokens_is_an_integer_of_at_least_1(value):
    message = f"max_new_tokens must be an integer of at least 1, got {value!r}; ask for one token or more"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_request(TableSource(torch.zeros(5, 5)), [[1]], value, None)


@pytest.mark.parametrize("token", [5, -1, 1.0, "a", None, True], ids=repr)
def test_end_tokens_are_in_the_vocabulary(token):
    message = rf"eos_token_ids must be in \[0, 4\], got {token!r}; take them from the model's own tokenizer"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_request(TableSource(torch.zeros(5, 5)), [[1]], 1, [0, token])


def test_one_end_token_comes_in_a_list():
    with pytest.raises(TypeError, match=r"eos_token_ids must be a list of token ids, got 0; pass one as \[t"):
        check_request(TableSource(torch.zeros(5, 5)), [[1]], 1, 0)


def test_a_cache_may_be_made_by_another_hand(model):
    made = []

    def new_cache(batch_size, capacity):
        made.append(model.new_cache(batch_size, capacity))
        return made[-1]

    source = CachedLogits(model, new_cache)
    logits = source.start(PROMPTS, 12)
    assert source.cache is made[0] and (made[0].batch_size, made[0].capacity) == (3, 12)
    assert torch.equal(logits, CachedLogits(model).start(PROMPTS, 12))
