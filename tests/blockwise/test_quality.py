"""What the dial costs, in numbers that can be counted by hand."""

import pytest
import torch

from llmcourse.blockwise import generate, loss_per_token, measure
from llmcourse.decoding.form import parsed_share
from llmcourse.decoding.metrics import distinct_n
from llmcourse.tokenizer import Tokenizer
from tests.blockwise.tiny import PROMPTS, tiny_block_decoder

TEXTS = ("Once upon", "def area(")


@pytest.fixture(scope="module")
def model():
    return tiny_block_decoder(vocab_size=300, eos_token_ids=())


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer(tiny_checkpoint)


def test_loss_is_of_the_new_tokens_under_the_backbone(model):
    generations = generate(model, PROMPTS, block_size=4, max_new_tokens=6)
    losses = []
    for generation in generations:
        text = generation.prompt + generation.tokens
        log_p = model.backbone(torch.tensor([text]))[0].log_softmax(-1)
        losses += [-log_p[i - 1, text[i]].item() for i in range(len(generation.prompt), len(text))]
    assert loss_per_token(model.backbone, generations) == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_at_the_autoregressive_end_the_loss_is_what_was_promised(model):
    generations = generate(model, PROMPTS, block_size=1, max_new_tokens=6)
    promised = [-log_prob for generation in generations for log_prob in generation.log_probs]
    found = loss_per_token(model.backbone, generations)
    assert found == pytest.approx(sum(promised) / len(promised), rel=1e-6)


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
    assert quality.nats_per_token == loss_per_token(model.backbone, generations)
    shares = [parsed_share(text + g.text) for text, g in zip(TEXTS, generations, strict=True)]
    assert quality.form == pytest.approx(sum(shares) / 2)


def test_a_seed_gives_the_same_texts_again(model, tokenizer):
    settings = {"block_size": 3, "max_new_tokens": 9, "temperature": 1.0}
    first, again, other = (measure(model, tokenizer, TEXTS, "x", seed=n, **settings) for n in (0, 0, 1))
    assert first == again != other


def test_what_cannot_be_measured_is_refused(model, tokenizer):
    with pytest.raises((ValueError, TypeError), match="form"):
        measure(model, tokenizer, TEXTS, "prose", form="prose", block_size=1)
    with pytest.raises(ValueError, match="generations must be texts with a new token, got none"):
        loss_per_token(model.backbone, [])
