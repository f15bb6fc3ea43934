"""Targets: several tokens at once give the logits of one by one, and what is taken back leaves no trace."""

from __future__ import annotations

import pytest
import torch

from llmcourse.speculative import CachedTarget, Target, UncachedTarget, as_target
from tests.speculative.tiny import PROMPTS, VOCAB, TableTarget, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def test_reading_and_taking_back_is_reading_the_text_that_is_left(model):
    generator = torch.Generator().manual_seed(0)
    cached, uncached = CachedTarget(model), UncachedTarget(model)
    for target in (cached, uncached):
        target.start(PROMPTS, 60)
    texts = [list(prompt) for prompt in PROMPTS]
    for width in (1, 4, 2, 6, 3):
        tokens = torch.randint(VOCAB, (len(texts), width), generator=generator)
        logits = cached.read(tokens)
        torch.testing.assert_close(logits, uncached.read(tokens), atol=1e-4, rtol=1e-4)
        counts = torch.randint(width + 1, (len(texts),), generator=generator).tolist()
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            text += tokens[row].tolist()
            alone = model(torch.tensor([text]))[0, -width:]
            torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=1e-4)
            del text[len(text) - count :]
        for target in (cached, uncached):
            target.rollback(counts)
    assert cached.cache.lengths.tolist() == list(map(len, texts))
    assert uncached.texts == texts


def test_a_decoder_becomes_a_cached_target(model):
    target = as_target(model)
    assert isinstance(target, CachedTarget) and isinstance(target, Target)
    assert as_target(target) is target
    assert isinstance(TableTarget(3, lambda text: [0.0] * 3), Target)


@pytest.mark.parametrize("other", [None, "base", ("model", "tokenizer")])
def test_what_cannot_verify_is_refused(other):
    with pytest.raises(TypeError, match=f"target must be a Decoder or a Target, got {type(other).__name__}"):
        as_target(other)
