"""Texts that the loop samples follow the target's exact law, whoever drafts; planted bugs do not.

All texts of four tokens of a tiny model are enumerated, and 1,000 are sampled in one batch in each case.
The p-values are corrected together (Holm 1979), for a false alarm once in 10,000 runs with fresh seeds.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch

from llmcourse.decoding import History, SamplingParams
from llmcourse.speculative import (
    EarlyLayersDrafter,
    LookupDrafter,
    ModelDrafter,
    distribution,
    generate,
    judged,
)
from tests.chi_square import holm, p_value
from tests.speculative.planted import BUGS
from tests.speculative.tiny import near, tiny_decoder

FALSE_ALARM_RATE = 1e-4
VOCAB, LENGTH, NUM_TEXTS = 5, 4, 1_000
PROMPT = [1, 2, 1]
SETTINGS = {
    "plain": SamplingParams(),
    "cold, top-k": SamplingParams(temperature=0.7, top_k=3),
    "penalties, top-p": SamplingParams(top_p=0.9, presence_penalty=0.8),
}
DRAFTERS = {
    "near": lambda model: ModelDrafter(near(model, 0.08)),
    "early layers": lambda model: EarlyLayersDrafter(model, 1),
    "lookup": lambda model: LookupDrafter(VOCAB),
}
CASES = [("near", "cold, top-k"), ("early layers", "plain"), ("lookup", "penalties, top-p")]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(vocab_size=VOCAB)


def law(model, params) -> np.ndarray:
    """The probability of every text, in the order of its digits."""
    texts, law = torch.tensor([PROMPT]), torch.ones(1, dtype=torch.float64)
    for _ in range(LENGTH):
        history = History(
            texts, torch.full((len(texts),), texts.shape[1]), torch.full((len(texts),), len(PROMPT))
        )
        p = distribution(model(texts)[:, -1], history, params.processors()).double()
        law = (law[:, None] * p).flatten()
        new = torch.arange(VOCAB).repeat(len(texts))[:, None]
        texts = torch.cat((texts.repeat_interleave(VOCAB, 0), new), 1)
    return (law / law.sum()).numpy()


def sampled(model, drafter, params, seed) -> np.ndarray:
    """The cells of texts that the loop wrote."""
    generations = generate(
        model,
        [PROMPT] * NUM_TEXTS,
        drafter=DRAFTERS[drafter](model),
        draft_length=2,
        max_new_tokens=LENGTH,
        params=params,
        generator=torch.Generator().manual_seed(seed),
    )
    tokens = np.array([generation.tokens for generation in generations])
    return tokens @ (VOCAB ** np.arange(LENGTH)[::-1])


def test_every_drafter_and_setting_leaves_the_law_as_it_is(model):
    laws = {name: law(model, params) for name, params in SETTINGS.items()}
    found = [
        p_value(sampled(model, drafter, SETTINGS[settings], seed), laws[settings])
        for seed, (drafter, settings) in enumerate(CASES)
    ]
    assert holm(found).min() > FALSE_ALARM_RATE


@pytest.mark.parametrize("bug", ["always accepts", "no residual", "q at the wrong position"])
def test_planted_bugs_are_rejected(model, bug):
    params = SETTINGS["plain"]
    with mock.patch.object(judged, "verify_drafts", BUGS[bug]):
        assert p_value(sampled(model, "near", params, 0), law(model, params)) < FALSE_ALARM_RATE
