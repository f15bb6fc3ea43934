"""Held-out loss, against a token at a time and against arithmetic by hand."""

import math

import pytest
import torch

from llmcourse.model import Decoder
from llmcourse.training.evaluate import HeldOut, evaluate
from tests.training.tiny import tiny_config


def tokens(size: int) -> torch.Tensor:
    return torch.randint(0, 300, (size,), generator=torch.Generator().manual_seed(size)).int()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Decoder(tiny_config()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def slow_nats(model, ids: torch.Tensor, length: int) -> float:
    """Minus the log-probability of every token but the first, given its window's tokens before it."""
    total = 0.0
    for position in range(1, len(ids)):
        begin = (position - 1) // length * length
        logits = model(ids[None, begin:position].long())[0, -1].double()
        total -= logits.log_softmax(-1)[ids[position]].item()
    return total


@pytest.mark.parametrize("size", [2, 3, 8, 9, 10, 16, 17, 18, 70])
def test_equals_a_token_at_a_time(model, size):
    ids = tokens(size)
    nats = slow_nats(model, ids, length=8)
    for batch_size in (1, 3):
        loss = evaluate(model, HeldOut("text", ids, 50), length=8, batch_size=batch_size)
        assert loss.nats_per_token == pytest.approx(nats / (size - 1), rel=1e-5)
        assert loss.bits_per_char == pytest.approx(nats / math.log(2) / 50, rel=1e-5)


def test_bits_per_character_by_hand():
    """A model that guesses among 300 tokens: log2 300 = 8.2288 bits for each of 20 tokens, 40 characters."""
    model = Decoder(tiny_config())
    torch.nn.init.zeros_(model.lm_head.weight)
    loss = evaluate(model, HeldOut("text", tokens(21), 40), length=6)
    assert loss.nats_per_token == pytest.approx(5.70378, abs=1e-5)
    assert loss.bits_per_char == pytest.approx(8.22882 / 2, abs=1e-5)


@pytest.mark.parametrize(("size", "num_chars"), [(0, 5), (1, 5), (2, 0)])
def test_nothing_to_measure_on(size, num_chars):
    message = f"'verse' must have at least 2 tokens and 1 character .* got {size} and {num_chars}"
    with pytest.raises(ValueError, match=message):
        HeldOut("verse", tokens(size), num_chars)
