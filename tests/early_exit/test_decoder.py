"""Decoding with early exit: against the whole text again at every token, and against plain decoding."""

import copy
from itertools import product

import pytest
import torch

from llmcourse.decoding import beam, generate
from llmcourse.early_exit import (
    ConfidenceRule,
    EarlyExitLogits,
    EntropyRule,
    ExitDrafter,
    PatienceRule,
    UncachedEarlyExitLogits,
    generate_early,
    heat,
    skipped,
)
from tests.early_exit.tiny import PROMPTS, random_heads
from tests.speculative.tiny import tiny_decoder

NEW_TOKENS = 12
WAYS = ("propagate", "recompute")
RULES = (EntropyRule(2.2), ConfidenceRule(0.35), PatienceRule(1))


@pytest.fixture(scope="module")
def heads():
    """In float64, so that nothing is decided by rounding."""
    return random_heads(tiny_decoder(num_layers=4).double())


def both(heads, rule, prompts=PROMPTS, exits=None, way="propagate", **settings):
    """Texts and exits of the fast path and of the slow truth."""
    answers = []
    for kind in (EarlyExitLogits, UncachedEarlyExitLogits):
        source = kind(heads, rule, exits=exits, skipped=way)
        texts = [g.tokens for g in generate(source, prompts, max_new_tokens=NEW_TOKENS, **settings)]
        answers.append((texts, source.exit_layers))
    return answers


@pytest.mark.parametrize(
    ("rule", "way", "exits"), [*product(RULES, WAYS, [None]), *product(RULES[:1], WAYS, [[2], [1, 3]])]
)
def test_rows_leave_one_by_one_as_in_the_whole_text(heads, rule, way, exits):
    fast, slow = both(heads, rule, exits=exits, way=way)
    assert fast == slow
    if exits is None:
        assert len({tuple(step) for step in fast[1]}) > 3, "rows that leave together show little"


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_one_length_and_a_single_one(heads, way):
    for prompts in ([PROMPTS[0]], [[1, 2], [3, 4]]):
        fast, slow = both(heads, RULES[0], prompts, way=way)
        assert fast == slow


def compare_logits(heads, way):
    """All of them, by the same tokens for both: texts alone may hide a small slip."""
    sources = [kind(heads, RULES[1], skipped=way) for kind in (EarlyExitLogits, UncachedEarlyExitLogits)]
    generator = torch.Generator().manual_seed(3)
    torch.testing.assert_close(*(source.start(PROMPTS, 40) for source in sources))
    for _ in range(NEW_TOKENS):
        tokens = torch.randint(40, (len(PROMPTS),), generator=generator)
        torch.testing.assert_close(*(source.step(tokens) for source in sources))
    assert sources[0].exit_layers == sources[1].exit_layers


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_the_whole_text(heads, way):
    compare_logits(heads, way)


def test_the_two_ways_differ(heads):
    """What propagation loses shows: otherwise the tests above would prove little."""
    texts = [both(heads, RULES[0], way=way)[0] for way in WAYS]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("way", WAYS)
def test_another_state_handed_up_or_kept_is_noticed(heads, way, monkeypatch):
    leave = skipped.LayerRunner.leave
    other = lambda self, layers, rows, x: leave(self, layers, rows, 0.9 * x + 0.1)  # noqa: E731
    monkeypatch.setattr(skipped.LayerRunner, "leave", other)
    with pytest.raises(AssertionError):
        compare_logits(heads, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("never", [ConfidenceRule(1), EntropyRule(0), PatienceRule(4)])
def test_a_rule_that_never_lets_go_is_plain_decoding(never, way):
    heads = random_heads()
    source, plain = EarlyExitLogits(heads, never, skipped=way), generate
    for seed in (None, 7):
        draws = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
        early = generate(source, PROMPTS, max_new_tokens=NEW_TOKENS, generator=draws[0])
        whole = plain(heads.backbone, PROMPTS, max_new_tokens=NEW_TOKENS, generator=draws[1])
        assert [g.tokens for g in early] == [g.tokens for g in whole]
        assert [g.log_probs for g in early] == [g.log_probs for g in whole], "to the last bit"
    assert {layers for step in source.exit_layers + source.layers_run for layers in step} == {4}


def test_a_rule_that_always_lets_go_runs_one_layer(heads):
    for way in WAYS:
        for early in generate_early(heads, PROMPTS, ConfidenceRule(0), skipped=way, max_new_tokens=6):
            assert early.exit_layers == early.layers_run == [4, 1, 1, 1, 1, 1]
            assert early.mean_layers == 1 and len(early.generation.tokens) == 6


def test_what_is_caught_up_with_counts(heads):
    """Every layer that recomputation runs is counted when it runs: in the end, all but the last."""
    early = generate_early(heads, PROMPTS, RULES[0], skipped="recompute", max_new_tokens=NEW_TOKENS)
    for one in early:
        assert all(run >= left for left, run in zip(one.exit_layers, one.layers_run, strict=True))
        # A token gets as far as it or a later one goes, which takes it along.
        reached = [max(one.exit_layers[at:]) for at in range(1, len(one.exit_layers))]
        assert sum(one.layers_run[1:]) == sum(reached)
    assert any(one.layers_run != one.exit_layers for one in early)
    for one in generate_early(heads, PROMPTS, RULES[0], max_new_tokens=NEW_TOKENS):
        assert one.layers_run == one.exit_layers and 1 < one.mean_layers < 4


def test_one_token_has_no_mean(heads):
    (early,) = generate_early(heads, [[1]], RULES[0], max_new_tokens=1)
    assert early.exit_layers == [4] and early.mean_layers != early.mean_layers


def test_rows_of_a_batch_are_what_they_are_alone(heads):
    for way in WAYS:
        together = generate_early(heads, PROMPTS, RULES[0], skipped=way, max_new_tokens=NEW_TOKENS)
        for prompt, one in zip(PROMPTS, together, strict=True):
            (alone,) = generate_early(heads, [prompt], RULES[0], skipped=way, max_new_tokens=NEW_TOKENS)
            assert alone.generation.tokens == one.generation.tokens
            assert (alone.exit_layers, alone.layers_run) == (one.exit_layers, one.layers_run)


@pytest.mark.parametrize("way", WAYS)
def test_beams_move_with_what_was_left_behind(heads, way):
    sources = [kind(heads, RULES[0], skipped=way) for kind in (EarlyExitLogits, UncachedEarlyExitLogits)]
    found = [beam.beam_searches(s, PROMPTS[:2], num_beams=3, max_new_tokens=8) for s in sources]
    fast, slow = ([[h.tokens for h in one.hypotheses] for one in search] for search in found)
    assert fast == slow and len(fast[0]) > 0


@pytest.mark.parametrize("exits", [[4], [0], [5], [1, 4]])
def test_exits_that_are_not_there_are_refused(heads, exits):
    with pytest.raises(ValueError, match="an exit must be"):
        EarlyExitLogits(heads, RULES[0], exits=exits)


HALVES = {
    "generate_early": lambda heads: generate_early(heads, PROMPTS, RULES[0], max_new_tokens=2),
    "uncached": lambda heads: UncachedEarlyExitLogits(heads, RULES[0]),
    "drafter": lambda heads: ExitDrafter(heads, 2),
    "map": lambda heads: heat(heads, [1, 2], RULES[0]),
}


@pytest.mark.parametrize("call", HALVES)
def test_heads_of_another_dtype_than_their_backbone_are_refused(heads, call):
    message = "be on the backbone's device, in its dtype: cpu, torch.float64, got cpu, torch.float16"
    with pytest.raises(ValueError, match=message):
        HALVES[call](copy.deepcopy(heads).half())


def test_ways_that_are_none_are_refused(heads):
    with pytest.raises(ValueError, match="skipped must be 'propagate' or 'recompute', got 'forget'"):
        skipped.require_skipped("forget")


class Answers:
    """A rule that says what it is told."""

    def __init__(self, answer):
        self.answer = answer

    def exits(self, history):
        return self.answer


@pytest.mark.parametrize("answer", [torch.tensor([True]), torch.zeros(4), [False] * 4, None])
def test_rules_that_do_not_answer_are_refused(heads, answer):
    source = EarlyExitLogits(heads, Answers(answer))
    source.start(PROMPTS, 20)
    with pytest.raises(
        ValueError, match="what exits\\(\\) of a rule returns must be a tensor of shape \\(4,\\)"
    ):
        source.step(torch.tensor([1, 2, 3, 4]))
