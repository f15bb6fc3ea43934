"""An exit that drafts for its own model: the text is the model's, however the exit was trained."""

from itertools import product

import pytest
import torch

from llmcourse.decoding import generate
from llmcourse.decoding.history import History
from llmcourse.early_exit import ConfidenceRule, EntropyRule, ExitDrafter, PatienceRule
from llmcourse.speculative import ModelDrafter, SharedLayersTarget
from llmcourse.speculative import generate as speculate
from llmcourse.speculative.engine import SpeculativeEngine
from tests.early_exit.tiny import PROMPTS, random_heads
from tests.speculative.tiny import tiny_decoder

NEW_TOKENS = 12
SURE = (None, ConfidenceRule(0.35), EntropyRule(2.2), ConfidenceRule(1), ConfidenceRule(0))


@pytest.fixture(scope="module")
def heads():
    return random_heads(tiny_decoder(num_layers=4).double())


@pytest.fixture(scope="module")
def plain(heads):
    return [g.tokens for g in generate(heads.backbone, PROMPTS, max_new_tokens=NEW_TOKENS)]


@pytest.mark.parametrize(("layer", "sure"), [*product([1], SURE), (3, None), (3, SURE[1])])
def test_the_text_is_the_models_own(heads, plain, layer, sure):
    drafter = ExitDrafter(heads, layer, sure)
    texts = speculate(heads.backbone, PROMPTS, drafter=drafter, draft_length=3, max_new_tokens=NEW_TOKENS)
    assert [g.tokens for g in texts] == plain


@pytest.mark.parametrize("sure", [None, SURE[1]])
def test_the_text_is_the_models_own_where_the_cache_is_shared(heads, plain, sure):
    """The exit's own head drafts, and stops where it is not sure: the other layers then read less."""
    drafter = ExitDrafter(heads, 2, sure, shared=True)
    target = SharedLayersTarget(drafter)
    texts = speculate(target, PROMPTS, drafter=drafter, draft_length=3, max_new_tokens=NEW_TOKENS)
    assert [g.tokens for g in texts] == plain


def test_a_trained_exit_drafts_in_the_engine_with_its_cache_shared(heads, plain):
    settings = {"draft_length": 3, "shared_cache": True}
    engine = SpeculativeEngine(heads.backbone, heads.folded(2), **settings)
    assert engine.generate(PROMPTS, NEW_TOKENS).tokens == plain


def drafts(heads, sure, processors=(), generator=None):
    drafter = ExitDrafter(heads, 2, sure)
    drafter.start(PROMPTS, 24)
    return drafter.draft(History.from_prompts(PROMPTS, 8), [4] * 4, processors, generator), drafter


@pytest.mark.parametrize("seed", [None, 3])
def test_drafting_stops_where_the_exit_is_not_sure(heads, seed):
    """Up to there the drafts are those of a drafter that never stops, and there the rule says no."""
    rule = ConfidenceRule(0.35)

    def draws():
        return None if seed is None else torch.Generator().manual_seed(seed)

    whole, _ = drafts(heads, None, generator=draws())
    some, drafter = drafts(heads, rule, generator=draws())
    assert whole.num_tokens.tolist() == [4] * 4 and len(set(some.num_tokens.tolist())) > 1
    for row, count in enumerate(some.num_tokens.tolist()):
        assert some.tokens[row, :count].tolist() == whole.tokens[row, :count].tolist()
        assert not some.tokens[row, count:].any()
        for length in range(count + 1):
            text = torch.tensor([[*PROMPTS[row], *whole.tokens[row, :length].tolist()]])
            if length < 4:
                logits = drafter.model(text)[:, -1]
                assert rule.exits([logits]).item() == (length < count)
    if seed is not None:
        assert torch.equal(some.q, whole.q[:, : some.q.shape[1]])


def test_nobody_sure_is_no_draft_and_one_pass(heads):
    draft, drafter = drafts(heads, ConfidenceRule(1))
    assert draft.tokens.shape == (4, 0) and draft.num_tokens.tolist() == [0] * 4
    drafter.accept([0] * 4)
    assert drafter.cache.lengths.tolist() == [len(prompt) for prompt in PROMPTS]


def test_a_trained_exit_is_what_drafts(heads):
    """Its drafts are the head's, not those of the model's own head on the same layers."""
    draft, _ = drafts(heads, None)
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token in draft.tokens[row].tolist():
            logits = list(heads.logits(torch.tensor([text])))[1][0, -1]
            assert token == logits.argmax().item()
            text.append(token)


def test_rules_that_compare_exits_are_refused(heads):
    with pytest.raises(ValueError, match="sure must be a rule that looks at one exit, got patience of 1"):
        ExitDrafter(heads, 1, PatienceRule(1))
    with pytest.raises(ValueError, match="an exit must be at most 3, got 4"):
        ExitDrafter(heads, 4)
    assert ModelDrafter(heads.folded(1)).goes_on(torch.zeros(1, 40)) is None
