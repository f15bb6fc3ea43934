"""What every processor owes its neighbours: an untouched input, rows that do not mix, order."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.generation import logits_process as peer

from llmcourse.decoding import (
    Epsilon,
    Eta,
    FrequencyPenalty,
    History,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    apply,
)
from tests.decoding.fakes import random_logits

TRUNCATIONS = [TopK(5), TopP(0.7), MinP(0.2), Typical(0.6), Epsilon(0.1), Eta(0.1)]
PENALTIES = [
    NoRepeatNGram(2),
    PresencePenalty(0.7),
    FrequencyPenalty(0.3),
    RepetitionPenalty(1.4, "generated"),
]
PROCESSORS = [Temperature(0.6), *TRUNCATIONS, *PENALTIES]


def history():
    texts = History.from_prompts([[1, 2, 1], [5], [3, 3, 3, 3]], room=3)
    texts.append(torch.tensor([4, 2, 3]))
    return texts


def logits(dtype=torch.float32):
    return random_logits(3, 3, 12, 2.0, None, 0.2, torch.float32).to(dtype)


@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_input_is_left_as_it_was_and_masked_tokens_stay_masked(processor, dtype):
    given, texts = logits(dtype), history()
    before, tokens = given.clone(), texts.tokens.clone()
    processed = processor(given, texts)
    assert torch.equal(given, before) and torch.equal(texts.tokens, tokens)
    assert processed.shape == given.shape and (processed[given == -math.inf] == -math.inf).all()
    assert not processed.isnan().any()


@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
def test_a_row_does_not_depend_on_its_batch(processor):
    together = processor(logits(), history())
    for row in range(3):
        alone = processor(logits()[row : row + 1], history().select([row]))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
def test_a_broken_row_leaves_the_others_alone(processor):
    broken = logits()
    broken[1] = math.nan
    assert torch.equal(processor(broken, history())[[0, 2]], processor(logits(), history())[[0, 2]])


@pytest.mark.parametrize("processor", TRUNCATIONS, ids=repr)
@pytest.mark.parametrize("shape", ["flat", "one left", "one huge"])
def test_truncation_keeps_at_least_one_token(processor, shape):
    row = torch.zeros(1, 50)
    if shape == "one left":
        row[0, :49] = -math.inf
    if shape == "one huge":
        row[0, 7] = 1e4
    kept = processor(row, History.from_prompts([[0]])) > -math.inf
    assert kept.any() and (shape != "one huge" or kept[0, 7])


@pytest.mark.parametrize("value", [0.1, 0.7, 1.0, 3.0])
def test_temperature_agrees_with_transformers(value):
    assert torch.equal(
        Temperature(value)(logits(), history()), peer.TemperatureLogitsWarper(value)(None, logits())
    )


def test_processors_are_applied_from_left_to_right():
    halve, subtract = Temperature(2.0), PresencePenalty(1.0)
    texts, given = History.from_prompts([[0]]), torch.tensor([[4.0, 0.0]])
    assert apply([halve, subtract], given, texts).tolist() == [[1.0, 0.0]]
    assert apply([subtract, halve], given, texts).tolist() == [[1.5, 0.0]]
    assert apply([], given, texts) is given


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature_is_refused_when_made(value):
    message = (
        f"temperature must be positive and finite, got {value}; use 0 in SamplingParams for greedy search"
    )
    with pytest.raises(ValueError, match=message):
        Temperature(value)


@pytest.mark.parametrize(
    "processor, found",
    [
        (lambda logits, history: logits[:, :2], r"torch.float32 of shape \(1, 2\)"),
        (lambda logits, history: logits.long(), r"torch.int64 of shape \(1, 4\)"),
        (lambda logits, history: None, "None"),
    ],
    ids=["cut off", "integers", "nothing"],
)
def test_a_processor_that_returns_something_else_is_named(processor, found):
    history = History.from_prompts([[0]])
    with pytest.raises(TypeError, match=rf"must return logits of shape \(1, 4\), got {found}"):
        apply([processor], torch.zeros(1, 4), history)
