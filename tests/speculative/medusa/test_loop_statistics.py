"""Texts that the Medusa loop samples follow the target's law; with planted bugs, or typically accepted, not.

All texts of four tokens of a tiny model are enumerated, and 1,000 are sampled in one batch in each case.
The p-values are corrected together (Holm 1979), for a false alarm once in 10,000 runs with fresh seeds.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch

from llmcourse.decoding import SamplingParams
from llmcourse.speculative import verify_tree
from llmcourse.speculative.medusa import MedusaTree, TypicalAcceptance, drafting, full, generate, judged, loop
from tests.chi_square import holm, p_value
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.test_loop_statistics import (
    FALSE_ALARM_RATE,
    LENGTH,
    NUM_TEXTS,
    PROMPT,
    SETTINGS,
    VOCAB,
    law,
)
from tests.speculative.tiny import tiny_decoder

CASES = [
    ("ranked", full([2, 2]), "plain"),
    ("ranked", MedusaTree([(0,), (2,), (0, 1), (2, 0), (2, 0, 1)]), "penalties, top-p"),
    ("drawn", full([3, 2]), "plain"),
    ("drawn", full([5, 1, 2]), "cold, top-k"),  # more siblings than top-k leaves tokens
]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(vocab_size=VOCAB)


def sampled(model, way, tree, params, seed, **settings) -> np.ndarray:
    """The cells of texts that the loop wrote."""
    generations = generate(
        model,
        tiny_heads(model),
        [PROMPT] * NUM_TEXTS,
        tree=tree,
        drafting=way,
        max_new_tokens=LENGTH,
        params=params,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )
    tokens = np.array([generation.tokens for generation in generations])
    return tokens @ (VOCAB ** np.arange(LENGTH)[::-1])


def test_every_tree_and_way_leaves_the_law_as_it_is(model):
    laws = {name: law(model, params) for name, params in SETTINGS.items()}
    found = [
        p_value(sampled(model, way, tree, SETTINGS[settings], seed), laws[settings])
        for seed, (way, tree, settings) in enumerate(CASES)
    ]
    assert holm(found).min() > FALSE_ALARM_RATE


def by_the_text_alone(p, *arguments, **settings):
    """Every node judged by what the target said after the text."""
    return verify_tree(p[:, :1].expand_as(p), *arguments, **settings)


def processed_alike(logits, drafts, tree, history, processors=()):
    """Penalties that see the text, but not the path above a node."""
    rows = [processors[0](column, history) for column in logits.unbind(1)]
    return torch.stack(rows, 1)


def test_planted_bugs_are_rejected(model):
    plain = SETTINGS["plain"]
    expected = law(model, plain)
    with mock.patch.object(judged, "verify_tree", by_the_text_alone):
        assert p_value(sampled(model, "ranked", full([5, 5]), plain, 0), expected) < FALSE_ALARM_RATE
    real = drafting.drawn

    def stale(tree, logits, history, processors, points):
        draft = real(tree, logits, history, processors, points)
        return type(draft)(draft.tokens, draft.num_tokens, draft.q.roll(1, 1), draft.tree)

    with mock.patch.object(loop, "drawn", stale):
        assert p_value(sampled(model, "drawn", full([2, 2]), plain, 1), expected) < FALSE_ALARM_RATE
    penalised = SamplingParams(presence_penalty=2.0)
    with mock.patch.object(judged, "node_logits", processed_alike):
        cells = sampled(model, "ranked", full([5, 2]), penalised, 2)
    assert p_value(cells, law(model, penalised)) < FALSE_ALARM_RATE


def test_typical_acceptance_changes_the_law(model):
    plain = SETTINGS["plain"]
    cells = sampled(model, "ranked", full([2, 2]), plain, 3, typical=TypicalAcceptance())
    assert p_value(cells, law(model, plain)) < FALSE_ALARM_RATE
