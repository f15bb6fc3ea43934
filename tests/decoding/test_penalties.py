"""Penalties against transformers, and against references that count token by token."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as peer

from llmcourse.decoding import FrequencyPenalty, History, NoRepeatNGram, PresencePenalty, RepetitionPenalty
from llmcourse.decoding.penalties import _check_scope
from tests.decoding.fakes import random_logits

VOCAB = 6  # so small that texts repeat themselves
ROWS = 16


CASES = st.fixed_dictionaries(
    {
        "prompts": st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14), min_size=ROWS),
        "new_tokens": st.integers(0, 6),
        "seed": st.integers(0, 2**31),
        "padding": st.integers(0, VOCAB - 1),
        "masked": st.sampled_from([0.0, 0.3]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
    }
)


def build(prompts, new_tokens, seed, padding, masked, dtype):
    """Ragged texts, part prompt, part generated, and logits with -inf among them."""
    generator = torch.Generator().manual_seed(seed)
    history = History.from_prompts(prompts, room=seed % 3)
    for _ in range(new_tokens):
        active = torch.rand(len(prompts), generator=generator) < 0.8
        history.append(torch.randint(VOCAB, (len(prompts),), generator=generator), active)
    history.tokens[~history.mask()] = padding  # padding may hold any value
    return history, random_logits(seed, len(prompts), VOCAB, 3.0, None, masked, dtype)


def row_by_row(history, logits, processor_of):
    """What transformers makes of each row alone: it knows no ragged batch."""
    rows = []
    for row, prompt_length in enumerate(history.prompt_lengths.tolist()):
        tokens = torch.tensor([history.row(row)])
        rows.append(processor_of(prompt_length)(tokens, logits[row : row + 1].clone()))
    return torch.cat(rows)


many = settings(max_examples=70, deadline=None)  # of 16 rows or more


@given(CASES, st.integers(1, 5))
@many
def test_no_repeat_ngram_agrees_with_transformers(case, n):
    history, logits = build(**case)
    expected = row_by_row(history, logits, lambda _: peer.NoRepeatNGramLogitsProcessor(n))
    assert torch.equal(NoRepeatNGram(n)(logits, history), expected)


@given(CASES, st.floats(0.5, 3.0), st.sampled_from(["all", "generated"]))
@many
def test_repetition_agrees_with_transformers(case, theta, scope):
    history, logits = build(**case)

    def processor_of(prompt_length):
        ignored = prompt_length if scope == "generated" else None
        return peer.RepetitionPenaltyLogitsProcessor(theta, prompt_ignore_length=ignored)

    expected = row_by_row(history, logits, processor_of)
    assert torch.equal(RepetitionPenalty(theta, scope)(logits, history), expected)


@given(CASES, st.floats(-2.0, 2.0), st.sampled_from(["all", "generated"]))
@many
def test_presence_and_frequency_agree_with_counting(case, alpha, scope):
    history, logits = build(**case)
    presence = PresencePenalty(alpha, scope)(logits, history)
    frequency = FrequencyPenalty(alpha, scope)(logits, history)
    for row, prompt_length in enumerate(history.prompt_lengths.tolist()):
        text = history.row(row)[prompt_length if scope == "generated" else 0 :]
        for token in range(VOCAB):
            before, count = logits[row, token].item(), Counter(text)[token]
            assert presence[row, token].item() == pytest.approx(before - alpha * (count > 0), abs=1e-5)
            assert frequency[row, token].item() == pytest.approx(before - alpha * count, abs=1e-5)


def test_blocking_by_hand():
    """a b c a b: a third word c would repeat "a b c"; with n = 2 so would anything that followed b."""
    history = History.from_prompts([[1, 2, 3, 1, 2], [1, 2, 3]])
    logits = torch.zeros(2, 5)
    assert (NoRepeatNGram(3)(logits, history) == -math.inf).nonzero().tolist() == [[0, 3]]
    assert (NoRepeatNGram(1)(logits, history) == -math.inf).sum(-1).tolist() == [3, 3]
    assert torch.equal(NoRepeatNGram(9)(logits, history), logits)


def test_repetition_makes_negative_logits_smaller_too():
    history = History.from_prompts([[0, 1]])
    assert RepetitionPenalty(2.0)(torch.tensor([[3.0, -3.0, 1.0]]), history).tolist() == [[1.5, -6.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (
            NoRepeatNGram,
            0,
            "no_repeat_ngram_size must be an integer of at least 1, got 0; use 0 in SamplingParams",
        ),
        (NoRepeatNGram, -2, "no_repeat_ngram_size must be an integer of at least 1, got -2"),
        (
            PresencePenalty,
            math.nan,
            "presence_penalty must be a finite number, got nan; use 0.0 to disable it",
        ),
        (
            FrequencyPenalty,
            math.inf,
            "frequency_penalty must be a finite number, got inf; use 0.0 to disable it",
        ),
        (
            RepetitionPenalty,
            0.0,
            "repetition_penalty must be positive and finite, got 0.0; use 1.0 to disable it",
        ),
        (NoRepeatNGram, True, "no_repeat_ngram_size must be an integer of at least 1, got True"),
        (RepetitionPenalty, math.nan, "repetition_penalty must be positive and finite, got nan"),
        (_check_scope, "prompt", "penalty_scope must be 'all' or 'generated', got 'prompt'; 'generated'"),
    ],
)
def test_bad_values_are_refused_when_made(make, value, message):
    with pytest.raises(ValueError, match=message):
        make(value)
