"""Settings become processors, in order, and bad ones are refused when made."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields

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
    values = dict(
        temperature=0.5,
        top_k=9,
        top_p=0.9,
        min_p=0.05,
        typical_p=0.8,
        eta_cutoff=1e-3,
        no_repeat_ngram_size=3,
    )
    penalties = dict(
        presence_penalty=0.2, frequency_penalty=0.1, repetition_penalty=1.2, penalty_scope="generated"
    )
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
        (dict(typical_p=0.5), Typical(0.5)),
        (dict(eta_cutoff=0.01), Eta(0.01)),
        (dict(no_repeat_ngram_size=2), NoRepeatNGram(2)),
        (dict(presence_penalty=-1.0), PresencePenalty(-1.0)),
        (dict(frequency_penalty=-1.0), FrequencyPenalty(-1.0)),
        (dict(repetition_penalty=0.9), RepetitionPenalty(0.9)),
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
            "temperature must be at least 0 and finite, got -0.5; use 0 for greedy search",
        ),
        (dict(temperature=math.nan), "temperature must be at least 0 and finite, got nan"),
        (dict(temperature=math.inf), "temperature must be at least 0 and finite, got inf"),
        (dict(top_p=1.3), r"top_p must be in \(0, 1\], got 1.3; use 1.0 to disable it"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0; use 1.0 to disable it"),
        (dict(top_p=math.nan), r"top_p must be in \(0, 1\], got nan"),
        (
            dict(top_k=-1),
            "top_k must be an integer of at least 0, got -1; use 0 to disable it",
        ),
        (dict(min_p=-0.1), r"min_p must be in \[0, 1\], got -0.1; use 0 to disable it"),
        (dict(min_p=1.1), r"min_p must be in \[0, 1\], got 1.1"),
        (dict(typical_p=0.0), r"typical_p must be in \(0, 1\], got 0.0; use 1.0 to disable it"),
        (dict(eta_cutoff=1.0), r"eta_cutoff must be in \[0, 1\), got 1.0; use 0 to disable it"),
        (
            dict(no_repeat_ngram_size=-1),
            "no_repeat_ngram_size must be an integer of at least 0, got -1; use 0 to disable it",
        ),
        (
            dict(presence_penalty=math.inf),
            "presence_penalty must be a finite number, got inf; use 0.0 to disable it",
        ),
        (
            dict(frequency_penalty=math.nan),
            "frequency_penalty must be a finite number, got nan; use 0.0 to disable it",
        ),
        (
            dict(repetition_penalty=-1.0),
            "repetition_penalty must be positive and finite, got -1.0; use 1.0 to disable it",
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_bad_settings_are_refused_when_made_even_where_greedy_ignores_them(setting, message, temperature):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**({"temperature": temperature} | setting))


WITHOUT_TYPE_CHECKS = """
import json, sys
from llmcourse import decoding
for name, setting, value in json.load(sys.stdin):
    try:
        print(getattr(decoding, name)(**{setting: value}))
    except ValueError as error:
        print(error)
"""
NUMBERS = [field.name for field in fields(SamplingParams) if field.name != "penalty_scope"]
REFUSED = {
    ("SamplingParams", "temperature", "hot"): "at least 0 and finite, got 'hot'; use 0 for greedy search",
    ("SamplingParams", "top_k", 2.0): "an integer of at least 0, got 2.0; use 0 to disable it",
    ("SamplingParams", "no_repeat_ngram_size", 2.5): "an integer of at least 0, got 2.5; use 0 to disable it",
    ("SamplingParams", "penalty_scope", "none"): "'all' or 'generated', got 'none'; 'generated' leaves",
    ("TopK", "k", "3"): "an integer of at least 1, got '3'; use 0 in SamplingParams",
    ("MinP", "min_p", None): "in (0, 1], got None; use 0.0 in SamplingParams",
    ("Epsilon", "epsilon", "small"): "in (0, 1), got 'small'; choose one from 3e-4 to 9e-4 (Hewitt",
    ("Eta", "epsilon", None): "in (0, 1), got None; use 0.0 in SamplingParams to disable it",
    ("Temperature", "temperature", True): "positive and finite, got True; use 0 in SamplingParams",
} | {
    ("SamplingParams", name, value): f", got {value!r}; use "
    for name in NUMBERS
    for value in ("0.5", None, True, False)
}
SAID_AS = {("TopK", "k"): "top_k", ("Eta", "epsilon"): "eta_cutoff"}


def test_what_is_no_number_is_refused_in_the_form_of_the_house():
    """In a program of its own: here, types are already enforced before a value is looked at."""
    given = json.dumps(list(REFUSED))
    command = [sys.executable, "-c", WITHOUT_TYPE_CHECKS]
    lines = subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
    for (kind, setting, _), message, line in zip(REFUSED, REFUSED.values(), lines.splitlines(), strict=True):
        assert line.startswith(f"{SAID_AS.get((kind, setting), setting)} must be ") and message in line
