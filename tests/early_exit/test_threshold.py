"""Thresholds for a quality and for a budget: the curve against each rule run by itself, and every choice."""

from __future__ import annotations

import math

import pytest
import torch

from llmcourse.decoding.errors import NonFiniteLogitsError
from llmcourse.early_exit import ConfidenceRule, EntropyRule, ExitHeads, PatienceRule
from llmcourse.early_exit.readings import Readings, read_texts
from llmcourse.early_exit.threshold import curve, fewest_layers, most_agreement
from tests.early_exit.tiny import random_heads

TEXTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21, 22, 20, 21, 22], [5]]
RULES = {"entropy": EntropyRule, "confidence": ConfidenceRule, "patience": PatienceRule}


@pytest.fixture(scope="module")
def heads() -> ExitHeads:
    return random_heads()


@pytest.fixture(scope="module")
def readings(heads) -> Readings:
    return read_texts(heads, TEXTS)


def by_hand(heads: ExitHeads, rule) -> tuple[float, float]:
    """Mean layers and agreement of a rule, from the logits of every exit, position by position."""
    layers, agrees = [], []
    for text in TEXTS[:2]:
        every = [logits[0] for logits in heads.logits(torch.tensor([text[:-1]]))]
        for at in range(len(text) - 1):
            history = []
            for number, logits in enumerate(every, start=1):
                history.append(logits[at : at + 1])
                if number == len(every) or rule.exits(history).item():
                    break
            layers.append(number)
            agrees.append(bool(history[-1].argmax() == every[-1][at].argmax()))
    return sum(layers) / len(layers), sum(agrees) / len(agrees)


def test_readings_are_of_the_logits(heads, readings):
    every = torch.cat(list(heads.logits(torch.tensor([TEXTS[0][:-1]]))))  # (E, T, V)
    assert readings.layers == (1, 2, 3, 4) and readings.targets.tolist() == TEXTS[0][1:] + TEXTS[1][1:]
    assert torch.equal(readings.favourites[:, :10], every.argmax(-1))
    p = every.softmax(-1)
    torch.testing.assert_close(readings.confidence[:, :10], p.amax(-1))
    torch.testing.assert_close(readings.entropy[:, :10], -(p * p.log()).sum(-1))
    assert readings.agreement()[-1] == 1 and readings.agreement()[0] < 1
    assert readings.accuracy()[-1] == (readings.favourites[-1] == readings.targets).double().mean()


@pytest.mark.parametrize("signal", RULES)
def test_every_point_is_what_its_rule_comes_to(heads, readings, signal):
    found = curve(readings, signal)
    assert len(found.thresholds) == 3 if signal == "patience" else len(found.thresholds) > 15
    for point in range(len(found.thresholds)):
        choice = found.choice(point)
        assert isinstance(choice.rule, RULES[signal])
        assert (choice.mean_layers, choice.agreement) == pytest.approx(by_hand(heads, choice.rule))


@pytest.mark.parametrize("signal", RULES)
def test_it_goes_from_all_layers_down(readings, signal):
    found = curve(readings, signal)
    assert found.mean_layers[0] == 4 and found.agreement[0] == 1
    assert (found.mean_layers.diff() <= 1e-12).all()
    if signal != "patience":
        assert found.mean_layers[-1].item() == pytest.approx(1)
        assert found.agreement[-1].item() == pytest.approx(readings.agreement()[0].item())


@pytest.mark.parametrize("signal", RULES)
def test_choices_are_the_best_of_all_and_monotone(readings, signal):
    found = curve(readings, signal)
    points = [found.choice(point) for point in range(len(found.thresholds))]
    costs = []
    for target in torch.linspace(0, 1, 21).tolist():
        choice = fewest_layers(found, target)
        able = [point for point in points if point.agreement >= target]
        assert choice.agreement >= target and choice.mean_layers == min(point.mean_layers for point in able)
        costs.append(choice.mean_layers)
    assert costs == sorted(costs), "more agreement never costs less"
    gains = []
    for budget in torch.linspace(found.mean_layers.min().item() + 1e-9, 4, 21).tolist():
        choice = most_agreement(found, budget)
        able = [point for point in points if point.mean_layers <= budget]
        assert choice.mean_layers <= budget and choice.agreement == max(point.agreement for point in able)
        gains.append(choice.agreement)
    assert gains == sorted(gains), "more layers never agree less"


def test_all_agree_where_all_is_asked(readings):
    choice = fewest_layers(curve(readings, "entropy"), 1)
    assert choice.agreement == pytest.approx(1) and choice.mean_layers <= 4


@pytest.mark.parametrize("agreement", [-0.1, 1.01, math.nan, True, "much"])
def test_agreements_that_are_no_share_are_refused(readings, agreement):
    found = curve(readings, "entropy")
    with pytest.raises((ValueError, TypeError), match=r"agreement must be in \[0, 1\]|agreement"):
        fewest_layers(found, agreement)


def test_budgets_that_cannot_be_kept_say_what_can(readings):
    with pytest.raises(ValueError, match="mean_layers must be at least 1, the fewest that a rule of entropy"):
        most_agreement(curve(readings, "entropy"), 0.5)
    least = curve(readings, "patience").mean_layers.min().item()
    with pytest.raises(
        ValueError, match=rf"mean_layers must be at least {least:.4g}, the fewest that a rule of pat"
    ):
        most_agreement(curve(readings, "patience"), 1)
    with pytest.raises(ValueError, match="mean_layers must be a number, got nan"):
        most_agreement(curve(readings, "entropy"), math.nan)


def test_other_signals_and_no_text_are_refused(heads, readings):
    for texts in ([], [[1]]):
        with pytest.raises(ValueError, match="texts must be at least one of two tokens or more, got none"):
            read_texts(heads, texts)
    with pytest.raises(ValueError, match="a text must be at most 32 tokens, got 33; cut it into windows"):
        read_texts(heads, [[1] * 33])
    with pytest.raises(ValueError, match="readings must be of at least one position, got none"):
        empty = torch.zeros(2, 0)
        Readings((1, 2), empty, empty, empty.long(), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_logits_that_are_not_finite_are_refused(value, layer):
    """Of one exit, which no rule would take, or of the whole model, with which all would agree."""
    broken = random_heads()
    norm = broken.backbone.model.norm if layer == 4 else broken.head(layer).norm
    norm.weight[0] = value
    who = "the whole model" if layer == 4 else f"the exit after layer {layer}"
    with pytest.raises(NonFiniteLogitsError, match=f"logits of {who} must be finite, got NaN or infinity; "):
        read_texts(broken, TEXTS)


def test_readings_of_some_exits_are_those_of_heads_that_have_no_others(heads, readings):
    some = readings.only([2])
    assert some.layers == (2, readings.layers[-1])
    assert torch.equal(some.entropy, readings.entropy[[1, -1]]) and some.targets is readings.targets
    with pytest.raises(ValueError, match="exits must be of"):
        readings.only([9])
