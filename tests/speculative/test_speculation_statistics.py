"""Texts that a server samples with speculation follow the target's exact law; planted bugs do not.

As in `test_loop_statistics`, all texts of four tokens of a tiny model are enumerated, and 1,500 are served in
each case, a few at once, with preemptions. Two in three of them speculate, by one drafter and several draft
lengths. The p-values are corrected together (Holm 1979), for a false alarm once in 10,000 runs with fresh
seeds.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from llmcourse.decoding import SamplingParams
from llmcourse.serving import Request
from llmcourse.speculative import LookupDrafter, ModelDrafter, Speculation, speculation
from tests.chi_square import holm, p_value
from tests.serving.test_paged_runner import serve
from tests.speculative.planted import BUGS
from tests.speculative.test_loop_statistics import FALSE_ALARM_RATE, LENGTH, PROMPT, SETTINGS, VOCAB, law
from tests.speculative.tiny import near, tiny_decoder

NUM_TEXTS = 1_500
DRAFTERS = {
    "near": lambda model: ModelDrafter(near(model, 0.08)),
    "lookup": lambda model: LookupDrafter(VOCAB),
}
CASES = [("near", "plain"), ("near", "cold, top-k"), ("near", "penalties, top-p"), ("lookup", "plain")]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(vocab_size=VOCAB)


def served(model, drafter: str, params: SamplingParams, first_seed: int) -> np.ndarray:
    """The cells of texts that a server wrote."""
    options = [None, *(Speculation(DRAFTERS[drafter](model), length) for length in (2, 3))]
    wanted = [
        Request(str(seed), PROMPT, LENGTH, params, seed, speculation=options[seed % 3])
        for seed in range(first_seed, first_seed + NUM_TEXTS)
    ]
    states = serve(model, wanted, policy="continuous", num_blocks=13, max_running=8)
    assert sum(state.num_preemptions for state in states) > NUM_TEXTS / 100
    assert sum(state.num_accepted for state in states) > NUM_TEXTS / 5
    tokens = np.array([state.generated for state in states])
    return tokens @ (VOCAB ** np.arange(LENGTH)[::-1])


def test_every_drafter_and_setting_leaves_the_law_as_it_is(model):
    laws = {name: law(model, params) for name, params in SETTINGS.items()}
    found = [
        p_value(served(model, drafter, SETTINGS[settings], 10_000 * case), laws[settings])
        for case, (drafter, settings) in enumerate(CASES)
    ]
    assert holm(found).min() > FALSE_ALARM_RATE


@pytest.mark.parametrize("bug", ["always accepts", "no residual"])
def test_planted_bugs_are_rejected(model, bug):
    params = SETTINGS["plain"]
    with mock.patch.object(speculation, "verify_drafts", BUGS[bug]):
        assert p_value(served(model, "near", params, 0), law(model, params)) < FALSE_ALARM_RATE
