"""What the dial costs, in numbers that can be counted by hand."""

import pytest

from llmcourse.blockwise import generate, measure
from llmcourse.decoding.form import parsed_share
from llmcourse.decoding.metrics import distinct_n
from llmcourse.decoding.reread import reread
from llmcourse.tokenizer import Tokenizer
from tests.blockwise.tiny import tiny_block_decoder

TEXTS = ("Once upon", "def area(")


@pytest.fixture(scope="module")
def model():
    return tiny_block_decoder(vocab_size=300, eos_token_ids=())


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer(tiny_checkpoint)


@pytest.mark.parametrize(
    ("block_size", "passes", "expected"), [(1, 1, 1.0), (4, 1, 4.0), (4, 2, 2.0), (12, 1, 12.0), (12, 3, 4.0)]
)
def test_tokens_of_a_pass_are_counted(model, tokenizer, block_size, passes, expected):
    settings = {"block_size": block_size, "passes": passes, "max_new_tokens": 12}
    quality = measure(model, tokenizer, TEXTS, "prose", **settings)
    assert quality.tokens_per_pass == pytest.approx(expected)
    assert quality.form is None and (quality.block_size, quality.passes) == (block_size, passes)


def test_each_number_is_that_of_the_texts(model, tokenizer):
    quality = measure(model, tokenizer, TEXTS, "code", form="code", block_size=3, max_new_tokens=12)
    prompts = [tokenizer.encode_prompt(text) for text in TEXTS]
    generations = generate(model, prompts, tokenizer=tokenizer, block_size=3, max_new_tokens=12)
    assert quality.distinct_2 == distinct_n([g.tokens for g in generations], 2)
    tokens = [generation.tokens for generation in generations]
    assert quality.nats_per_token == -reread(model.backbone, prompts, tokens).log_probability
    shares = [parsed_share(text + g.text) for text, g in zip(TEXTS, generations, strict=True)]
    assert quality.form == pytest.approx(sum(shares) / 2)


def test_a_seed_gives_the_same_texts_again(model, tokenizer):
    settings = {"block_size": 3, "max_new_tokens": 9, "temperature": 1.0}
    first, again, other = (measure(model, tokenizer, TEXTS, "x", seed=n, **settings) for n in (0, 0, 1))
    assert first == again != other


def test_what_cannot_be_measured_is_refused(model, tokenizer):
    with pytest.raises((ValueError, TypeError), match="form"):
        measure(model, tokenizer, TEXTS, "prose", form="prose", block_size=1)
