"""Settings become processors, in order, and bad ones are refused when made."""

from __future__ import annotations

import math

import pytest

from llmcourse.decoding import (
    Eta,
    FrequencyPenalty,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    SamplingParams,
    Temperature,
    TopK,
    TopP,
    Typical,
)


def everything(**changes):
    values = dict(temperature=0.5, top_k=9, top_p=0.9, min_p=0.05, typical=0.8, eta=1e-3, no_repeat_ngram=3)
    penalties = dict(presence=0.2, frequency=0.1, repetition=1.2, penalty_scope="generated")
    return SamplingParams(**(values | penalties | changes))


def test_nothing_is_switched_on_by_default():
    assert SamplingParams().processors() == []
    assert not SamplingParams().greedy


def test_penalties_come_first_then_temperature_then_truncation():
    penalties = [
        NoRepeatNGram(3),
        PresencePenalty(0.2, "generated"),
        FrequencyPenalty(0.1, "generated"),
        RepetitionPenalty(1.2, "generated"),
    ]
    truncation = [TopK(9), TopP(0.9), MinP(0.05), Typical(0.8), Eta(1e-3)]
    assert everything().processors() == [*penalties, Temperature(0.5), *truncation]
    assert everything(temperature=0.0).processors() == penalties
    assert everything(temperature=0.0).greedy


@pytest.mark.parametrize(
    ("setting", "processor"),
    [
        (dict(temperature=2.0), Temperature(2.0)),
        (dict(top_k=1), TopK(1)),
        (dict(top_p=0.5), TopP(0.5)),
        (dict(min_p=1.0), MinP(1.0)),
        (dict(typical=0.5), Typical(0.5)),
        (dict(eta=0.01), Eta(0.01)),
        (dict(no_repeat_ngram=2), NoRepeatNGram(2)),
        (dict(presence=-1.0), PresencePenalty(-1.0)),
        (dict(frequency=-1.0), FrequencyPenalty(-1.0)),
        (dict(repetition=0.9), RepetitionPenalty(0.9)),
    ],
    ids=repr,
)
def test_each_setting_switches_on_its_own_processor(setting, processor):
    assert SamplingParams(**setting).processors() == [processor]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            dict(temperature=-0.5),
            "temperature must be positive and finite, got -0.5; use 0 in SamplingParams",
        ),
        (dict(temperature=math.nan), "temperature must be positive and finite, got nan"),
        (dict(temperature=math.inf), "temperature must be positive and finite, got inf"),
        (dict(top_p=1.3), r"top_p must be in \(0, 1\], got 1.3; use 1.0 to disable it"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0; use 1.0 to disable it"),
        (dict(top_p=math.nan), r"top_p must be in \(0, 1\], got nan"),
        (
            dict(top_k=-1),
            "top_k must be an integer of at least 1, got -1; use 0 in SamplingParams to disable it",
        ),
        (dict(min_p=-0.1), r"min_p must be in \(0, 1\], got -0.1; use 0.0 in SamplingParams to disable it"),
        (dict(min_p=1.1), r"min_p must be in \(0, 1\], got 1.1"),
        (dict(typical=0.0), r"typical must be in \(0, 1\], got 0.0; use 1.0 to disable it"),
        (dict(eta=1.0), r"eta must be in \(0, 1\), got 1.0; use 0.0 in SamplingParams to disable it"),
        (dict(no_repeat_ngram=-1), "no_repeat_ngram must be an integer of at least 1, got -1; use 0 in"),
        (dict(presence=math.inf), "presence must be finite, got inf; use 0.0 to disable it"),
        (dict(frequency=math.nan), "frequency must be finite, got nan; use 0.0 to disable it"),
        (dict(repetition=-1.0), "repetition must be positive and finite, got -1.0; use 1.0 to disable it"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_bad_settings_are_refused_when_made_even_where_greedy_ignores_them(setting, message, temperature):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**({"temperature": temperature} | setting))
