"""Greedy search on an embedded model: the same tokens and scores as transformers, on 100 prompts."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmcourse import pretrained
from llmcourse.decoding import generate, stream
from llmcourse.prompts import one_hundred

NEW_TOKENS = 24
LENGTHS = (3, 6, 9, 14, 20)


@pytest.fixture(scope="module")
def small():
    return pretrained.load("small")


@pytest.fixture(scope="module")
def encoded(small):
    """Ragged all the same, but cut to a few lengths: transformers then takes a batch a length."""
    texts = [small.tokenizer.encode(text) for text in one_hundred()]
    return [tokens[: max(length for length in LENGTHS if length <= len(tokens))] for tokens in texts]


@pytest.fixture(scope="module")
def theirs(encoded):
    """Tokens and scores of every prompt, in batches in which nothing is padded."""
    model = AutoModelForCausalLM.from_pretrained(pretrained.find_checkpoint("small"), dtype=torch.float32)
    by_length = defaultdict(list)
    for index, tokens in enumerate(encoded):
        by_length[len(tokens)].append(index)
    results = [None] * len(encoded)
    for length, indices in by_length.items():
        batch = torch.tensor([encoded[index] for index in indices])
        output = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for row, index in enumerate(indices):
            scores = torch.stack([step[row] for step in output.scores])  # (T, V)
            results[index] = output.sequences[row, length:].tolist(), scores
    return results


def test_there_are_a_hundred_prompts_of_three_domains():
    texts = one_hundred()
    assert len(set(texts)) == 100
    assert [texts[0].isascii(), "《" in texts[34], "def " in texts[67]] == [True] * 3


def test_greedy_writes_the_same_tokens_with_the_same_scores(small, encoded, theirs):
    """All hundred ragged prompts are one batch here."""
    assert {len(tokens) for tokens in encoded} == set(LENGTHS)
    steps = stream(small.model, encoded, max_new_tokens=NEW_TOKENS)
    scores = [[] for _ in encoded]
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            generations = end.value
            break
        for row in step.active.nonzero()[:, 0].tolist():
            scores[row].append(step.logits[row])
    for index, (tokens, expected) in enumerate(theirs):
        ours = generations[index].tokens
        assert ours == tokens[: len(ours)], f"prompt {index}: {one_hundred()[index]!r}"
        assert len(ours) == NEW_TOKENS or generations[index].finish_reason == "eos"
        torch.testing.assert_close(torch.stack(scores[index]), expected[: len(ours)], atol=1e-4, rtol=1e-4)


def test_a_prompt_alone_writes_what_it_writes_in_the_batch(small, encoded):
    some = encoded[::25]
    together = generate(small.model, some, max_new_tokens=NEW_TOKENS)
    for prompt, expected in zip(some, together, strict=True):
        (alone,) = generate(small.model, [prompt], max_new_tokens=NEW_TOKENS)
        assert alone.tokens == expected.tokens
        assert alone.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
