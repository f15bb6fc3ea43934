"""The engine whose drafter works in the target's own cache writes what decoding writes."""

from unittest import mock

import numpy as np
import pytest
import torch

from llmcourse.decoding import generate
from llmcourse.speculative import EarlyLayersDrafter, LookupDrafter, SharedLayersTarget, stream
from llmcourse.speculative.early_layers import first_layers
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.speculative.engine.shared_drafting import SharedDrafting
from tests.chi_square import p_value
from tests.speculative.engine.test_engine import (
    FALSE_ALARM_RATE,
    LENGTH,
    NUM_TEXTS,
    PROMPT,
    SMALL,
    law,
)
from tests.speculative.test_shared_layers import NEW, PROMPTS, alike
from tests.speculative.tiny import CONTEXT, near, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return alike()


@pytest.fixture(scope="module")
def expected(model):
    return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=())]


def engine(model, layers: int = 2, gamma: int = 3, **settings) -> SpeculativeEngine:
    return SpeculativeEngine(
        model, first_layers(model, layers), draft_length=gamma, shared_cache=True, **settings
    )


@pytest.mark.parametrize(("layers", "gamma"), [(1, 1), (2, 5)])
def test_greedy_writes_what_decoding_writes(model, expected, layers, gamma):
    ours = engine(model, layers, gamma)
    assert ours.generate(PROMPTS, NEW).tokens == expected
    assert ours.generate(PROMPTS[:1], NEW).tokens == expected[:1]


def test_it_takes_the_steps_of_the_loop(model):
    """The same drafts stand and fall, as long as the loop does not clamp them to the room."""
    drafter = EarlyLayersDrafter(model, 2, shared=True)
    settings = {"drafter": drafter, "draft_length": 3, "max_new_tokens": NEW, "eos_token_ids": ()}
    steps = list(stream(SharedLayersTarget(drafter), PROMPTS[:1], **settings))
    ours = engine(model)
    assert [ours.start(PROMPTS[:1], CONTEXT)] == steps[0].tokens
    full = [step.tokens for step in steps[1:] if len(step.drafts[0]) == 3]
    assert [ours.step() for _ in full] == full
    assert full


def test_the_drafts_are_those_of_a_cache_of_its_own(model):
    ours, apart = engine(model), SpeculativeEngine(model, first_layers(model, 2), draft_length=3)
    for one in (ours, apart):
        one.start(PROMPTS, CONTEXT)
    assert [ours.step() for _ in range(4)] == [apart.step() for _ in range(4)]
    assert ours._drafting.state.cache.keys.data_ptr() == ours._state.cache.keys.data_ptr()


def test_what_is_timed_alone_moves_nothing_on(model, expected):
    ours = engine(model)
    written = [[token] for token in ours.start(PROMPTS[:1], CONTEXT)]
    written[0] += ours.step()[0]
    for part in (ours.draft, ours.verify, ours.verify):
        part()
    written[0] += ours.step()[0]
    assert written[0] == expected[0][: len(written[0])]


def test_texts_reach_the_end_of_the_context(model):
    room = CONTEXT - len(PROMPTS[0])
    wanted = generate(model, PROMPTS[:1], max_new_tokens=room, eos_token_ids=())[0].tokens
    assert engine(model, gamma=6).generate(PROMPTS[:1], room).tokens == [wanted]


def sampled(model) -> np.ndarray:
    found = engine(model, 1, 2).generate([PROMPT] * NUM_TEXTS, LENGTH, temperature=0.7, seed=1)
    assert found.tally.accepted > 500, "drafts stand"
    return np.array(found.tokens) @ (SMALL ** np.arange(LENGTH)[::-1])


def test_sampled_texts_follow_the_law_of_the_target():
    """An honest engine fails once in ten thousand fresh seeds; the seed is fixed."""
    small = tiny_decoder(vocab_size=SMALL)
    assert p_value(sampled(small), law(small, 0.7)) > FALSE_ALARM_RATE


def without_the_last_draft(drafting, slot, head):
    """What verification is given of the last draft is left from the step before."""
    if head:
        READ(drafting, slot, head)


def one_slot_late(drafting, slot, head):
    READ(drafting, drafting._slots[-1] if head else slot, head)


READ = SharedDrafting._read


@pytest.mark.parametrize("bug", [without_the_last_draft, one_slot_late])
def test_planted_bugs_change_text_and_law(model, expected, bug):
    small = tiny_decoder(vocab_size=SMALL)
    with mock.patch.object(SharedDrafting, "_read", bug):
        assert engine(model).generate(PROMPTS, NEW).tokens != expected
        assert p_value(sampled(small), law(small, 0.7)) < FALSE_ALARM_RATE


@pytest.mark.parametrize(
    ("drafter", "found"),
    [
        (near, "layers of its own"),
        (lambda model: model, "3 layers"),
        (lambda model: LookupDrafter(40), "a LookupDrafter"),
    ],
)
def test_a_cache_is_shared_with_the_targets_first_layers_alone(model, drafter, found):
    message = rf"drafter must be the target's .*first layers.*, got {found}; pass first_layers\(target, n\)"
    with pytest.raises(ValueError, match=message):
        SpeculativeEngine(model, drafter(model), shared_cache=True)


def test_a_window_that_begins_later_reads_no_layer_before(model):
    """Without what the first layers gave, its logits are of something else."""
    ours = engine(model)
    ours.start(PROMPTS, CONTEXT)
    ours._drafting.draft(ours.choice)
    keys = ours._state.cache.keys.clone()
    ours._window.hidden.zero_()
    ours._window.read()
    changed = (ours._state.cache.keys != keys).flatten(1).any(1)
    assert torch.equal(changed, torch.tensor([False, False, True]))
