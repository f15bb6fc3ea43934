"""Drafts and verification in one cache: the same text, and no layer reads a token twice."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch

from llmcourse.decoding import SamplingParams, generate
from llmcourse.decoding.history import History
from llmcourse.speculative import (
    EarlyLayersDrafter,
    LookupDrafter,
    ModelDrafter,
    SharedLayersTarget,
    Tally,
    stream,
)
from llmcourse.speculative import generate as speculate
from tests.chi_square import p_value
from tests.speculative import test_loop_statistics as statistics
from tests.speculative.tiny import near, tiny_decoder

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10], [14, 15, 14]]
NEW, LAYERS = 8, 3


def alike(num_layers: int = LAYERS, **settings):
    """Layers that add little, so that drafts of the first ones often stand."""
    model = tiny_decoder(num_layers=num_layers, **settings).double()
    for layer in model.model.layers[1:]:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight *= 0.3
    return model


@pytest.fixture(scope="module")
def model():
    return alike()


@pytest.fixture(scope="module")
def plain(model):
    return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=())]


def shared(model, layers: int = 2) -> SharedLayersTarget:
    return SharedLayersTarget(EarlyLayersDrafter(model, layers, shared=True))


def texts(target, prompts=PROMPTS, draft_length=3, **settings):
    settings = {"max_new_tokens": NEW, "eos_token_ids": ()} | settings
    found = speculate(target, prompts, drafter=target.drafter, draft_length=draft_length, **settings)
    return [generation.tokens for generation in found]


@pytest.mark.parametrize(("layers", "gamma"), [(1, 1), (2, 4)])
def test_the_text_is_that_of_plain_decoding(model, plain, layers, gamma):
    target = shared(model, layers)
    assert texts(target, draft_length=gamma) == plain


def test_the_text_is_that_of_plain_decoding_in_single_precision():
    single = alike().float()
    wanted = [g.tokens for g in generate(single, PROMPTS[:1], max_new_tokens=NEW, eos_token_ids=())]
    assert texts(shared(single), PROMPTS[:1]) == wanted


def test_steps_are_those_of_a_drafter_with_a_cache_of_its_own(model):
    """Its drafts, and what the model says of them, are the same numbers."""
    target, apart = shared(model), EarlyLayersDrafter(model, 2)
    settings = {"draft_length": 3, "max_new_tokens": NEW, "eos_token_ids": ()}
    both = [
        list(stream(target, PROMPTS, drafter=target.drafter, **settings)),
        list(stream(model, PROMPTS, drafter=apart, **settings)),
    ]
    assert len(both[0]) == len(both[1])
    for ours, theirs in zip(*both, strict=True):
        assert (ours.drafts, ours.tokens, ours.active) == (theirs.drafts, theirs.tokens, theirs.active)
    outcomes = {count for step in both[0] for count in step.num_accepted}
    assert outcomes >= {0, 1, 3}, "drafts fall everywhere"


def test_every_layer_reads_each_token_once(model):
    """Of the last token and γ drafts; with a cache of its own the first layers read them twice."""
    read: Counter[int] = Counter()
    target, apart = shared(model), EarlyLayersDrafter(model, 2)
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, n=number: read.update({n: given[0].shape[1]}))
        for number, layer in enumerate(model.model.layers)
    ]
    counts = {}
    for name, who, drafter in (("shared", target, target.drafter), ("apart", model, apart)):
        steps = stream(who, PROMPTS[:1], drafter=drafter, draft_length=3, max_new_tokens=NEW)
        next(steps)
        read.clear()
        next(steps)
        counts[name] = [read[number] for number in range(LAYERS)]
    for hook in hooks:
        hook.remove()
    assert counts == {"shared": [4, 4, 4], "apart": [7, 7, 4]}


def test_no_memory_is_taken_but_the_targets_cache(model):
    target = shared(model)
    texts(target, PROMPTS[:1])
    mine, its = target.drafter.cache, target.cache
    assert mine.num_layers == 2 and mine.keys.data_ptr() == its.keys.data_ptr()
    assert mine.values.data_ptr() == its.values.data_ptr()
    assert mine.lengths.tolist() == its.lengths.tolist()


def test_end_tokens_and_rows_that_end_first(model, plain):
    ends = [plain[0][4], plain[2][1]]
    wanted = [g.tokens for g in generate(model, PROMPTS, max_new_tokens=NEW, eos_token_ids=ends)]
    assert texts(shared(model), eos_token_ids=ends) == wanted
    assert len(set(map(len, wanted))) > 1


class Turns:
    """Two drafts, then none, and so on; the tally counts the steps."""

    longest = 2

    def gamma(self, tally: Tally, room: int) -> int:
        return min(room - 1, 0 if tally.accepted % 2 else 2)

    def observe(self, tally: Tally, num_drafts: int, num_accepted: int) -> Tally:
        return Tally(tally.accepted + 1)


def test_steps_without_drafts(model, plain):
    """The first layers have then read nothing ahead."""
    target = shared(model)
    settings = {"draft_length": Turns(), "max_new_tokens": NEW, "eos_token_ids": ()}
    steps = list(stream(target, PROMPTS, drafter=target.drafter, **settings))
    rows = range(len(PROMPTS))
    assert [[token for step in steps for token in step.tokens[row]] for row in rows] == plain
    assert {max(map(len, step.drafts)) for step in steps[1:]} >= {0, 2}


BUGS = {
    "states of the step before": ("accept", lambda drafter, counts: ModelDrafter.accept(drafter, counts)),
    "states one token late": ("read_on", lambda drafter, *given: READ_ON(drafter, *given).roll(1, 1)),
}
READ_ON = EarlyLayersDrafter.read_on


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_change_the_text(model, plain, bug):
    name, planted = BUGS[bug]
    with mock.patch.object(EarlyLayersDrafter, name, planted):
        try:
            found = texts(shared(model))
        except (ValueError, RuntimeError):
            return
    assert found != plain


# All texts of four tokens of a tiny model are enumerated, as in `test_loop_statistics`.


def sampled(target, params, seed) -> np.ndarray:
    found = texts(
        target,
        [statistics.PROMPT] * statistics.NUM_TEXTS,
        2,
        max_new_tokens=statistics.LENGTH,
        params=params,
        generator=torch.Generator().manual_seed(seed),
    )
    return np.array(found) @ (statistics.VOCAB ** np.arange(statistics.LENGTH)[::-1])


def test_sampled_texts_follow_the_law_of_the_target():
    """An honest loop fails once in ten thousand fresh seeds; the seed is fixed."""
    small = tiny_decoder(vocab_size=statistics.VOCAB)
    params = SamplingParams(top_p=0.9, presence_penalty=0.8)
    cells = sampled(shared(small, 1), params, 0)
    assert p_value(cells, statistics.law(small, params)) > statistics.FALSE_ALARM_RATE


def test_a_law_that_is_not_the_targets_is_noticed():
    """Of states that lie one token late."""
    small, params = tiny_decoder(vocab_size=statistics.VOCAB), SamplingParams()
    with mock.patch.object(EarlyLayersDrafter, *BUGS["states one token late"]):
        cells = sampled(shared(small, 1), params, 0)
    assert p_value(cells, statistics.law(small, params)) < statistics.FALSE_ALARM_RATE


def test_a_drafter_that_shares_nothing_is_refused(model):
    with pytest.raises(
        ValueError, match="drafter must be one that shares its cache, got its own cache; make"
    ):
        SharedLayersTarget(EarlyLayersDrafter(model, 2))
    for other in (ModelDrafter(near(model)), LookupDrafter(40)):
        with pytest.raises(TypeError, match="drafter"):
            SharedLayersTarget(other)


def test_a_drafter_that_shares_its_cache_needs_the_target_that_knows(model):
    drafter = EarlyLayersDrafter(model, 2, shared=True)
    with pytest.raises(ValueError, match="draft must be called when a target shares its cache, got none"):
        speculate(model, PROMPTS, drafter=drafter, max_new_tokens=4)


def test_another_drafter_than_the_targets_own_is_refused(model):
    """Also where its own drafted before, for other texts."""
    target = shared(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="read must be called when this drafter has drafted, got no"):
            speculate(target, PROMPTS, drafter=LookupDrafter(40), max_new_tokens=4)
        texts(target, PROMPTS[:1], max_new_tokens=3)


OTHERS = {
    "a model": lambda model: ModelDrafter(near(model)),
    "its own cache": lambda model: EarlyLayersDrafter(model, 2),
    "shared": lambda model: EarlyLayersDrafter(model, 2, shared=True),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_drafters_are_refused_by_a_target_that_has_decoded(model, other):
    target = shared(model)
    texts(target)
    with pytest.raises(ValueError, match=r"(read|draft) must be called when"):
        speculate(target, PROMPTS, drafter=OTHERS[other](model), max_new_tokens=4)


def begun(target, prompts, steps: int):
    settings = {"draft_length": 3, "max_new_tokens": NEW, "eos_token_ids": ()}
    found = stream(target, prompts, drafter=target.drafter, **settings)
    return found, [next(found) for _ in range(steps)]


def joined(steps) -> list[list[int]]:
    return [[token for step in steps for token in step.tokens[row]] for row in range(len(steps[0].tokens))]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], [[11] * 9, [10], [3, 4, 5]], PROMPTS[:1]])
@pytest.mark.parametrize("two_targets", [False, True])
def test_of_two_streams_the_older_is_refused(model, prompts, two_targets):
    target = shared(model)
    older, _ = begun(target, PROMPTS, 2)
    newer, steps = begun(SharedLayersTarget(target.drafter) if two_targets else target, prompts, 1)
    with pytest.raises(ValueError, match=r"history must be of the texts that .* began last, got another st"):
        next(older)
    wanted = generate(model, prompts, max_new_tokens=NEW, eos_token_ids=())
    assert joined([*steps, *newer]) == [generation.tokens for generation in wanted]


@pytest.mark.parametrize("two_targets", [False, True])
def test_of_twins_only_one_goes_on(model, plain, two_targets):
    """Streams that have read the same, and no more, cannot be told apart, and need not be."""
    target = shared(model)
    older, steps = begun(target, PROMPTS, 1)
    newer, _ = begun(SharedLayersTarget(target.drafter) if two_targets else target, PROMPTS, 1)
    if two_targets:
        with pytest.raises(ValueError, match="cache must be the one that this drafter shares, got another"):
            next(older)
        return
    steps.append(next(older))
    with pytest.raises(ValueError, match="history must be of the texts"):
        next(newer)
    assert joined([*steps, *older]) == plain


def test_nothing_is_drafted_or_read_before_prompts(model):
    token = torch.tensor([[1]])
    with pytest.raises(ValueError, match="cache must be the one that this drafter shares, got another or no"):
        shared(model).read(token)
    with pytest.raises(ValueError, match="draft must be called behind prompts, got none; call start"):
        EarlyLayersDrafter(model, 2).draft(History.from_prompts([[1]], 4), [1])


@pytest.mark.parametrize("layers", [0, LAYERS + 1])
def test_a_part_of_a_cache_has_its_layers(model, layers):
    with pytest.raises(ValueError, match=rf"num_layers must be in \[1, {LAYERS}\], got {layers}"):
        model.new_cache(1, 8).first_layers(layers)
