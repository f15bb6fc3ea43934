"""What is read again is what the model said of each token, one after another."""

import pytest
import torch

from llmcourse.decoding import SamplingParams, generate
from llmcourse.decoding.reread import reread
from tests.speculative.tiny import tiny_decoder

PROMPTS, TEXTS = [[1], [2, 3], [4], [5, 6, 7]], [[1, 2], [], [3], [4, 5, 6]]


def test_each_token_by_a_pass_of_its_own():
    model, total, best = tiny_decoder(), 0.0, 0
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        for position, token in enumerate(text):
            logits = model(torch.tensor([[*prompt, *text[:position]]]))[0, -1]
            total += logits.log_softmax(-1)[token].item()
            best += int(logits.argmax()) == token
    found = reread(model, PROMPTS, TEXTS)
    assert found.log_probability == pytest.approx(total / 6, abs=1e-5)
    assert found.favourites == best / 6


def test_greedy_texts_are_favourites_alone():
    model = tiny_decoder()
    written = generate(model, PROMPTS, max_new_tokens=8)
    found = reread(model, PROMPTS, [one.tokens for one in written])
    promised = [log_prob for one in written for log_prob in one.log_probs]
    assert found.favourites == 1.0
    assert found.log_probability == pytest.approx(sum(promised) / len(promised), rel=1e-5)
    seed = torch.Generator().manual_seed(0)
    sampled = generate(
        model, PROMPTS, params=SamplingParams(temperature=2.0), generator=seed, max_new_tokens=8
    )
    assert reread(model, PROMPTS, [one.tokens for one in sampled]).favourites < 1


def test_it_is_told_in_one_line():
    model = tiny_decoder()
    found = reread(model, [[1]], [generate(model, [[1]], max_new_tokens=3)[0].tokens])
    assert str(found) == f"log-probability {found.log_probability:5.2f}, its favourite 100.0%"


@pytest.mark.parametrize(
    ("prompts", "texts", "message"),
    [
        (PROMPTS, [[]] * 4, "texts must be with at least 1 token, got 0"),
        (PROMPTS, TEXTS[:3], "texts must be 4, one for each prompt, got 3"),
        ([[]], [[1]], "prompts must be of at least 1 token each"),
        ([], [], "texts must be with at least 1 token"),
    ],
)
def test_nothing_to_read(prompts, texts, message):
    with pytest.raises(ValueError, match=message):
        reread(tiny_decoder(), prompts, texts)
