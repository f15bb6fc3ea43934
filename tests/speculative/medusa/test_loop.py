"""The Medusa loop: greedy texts are those of decoding, whatever the tree; how rows end, and how they fail."""

from __future__ import annotations

import copy
import functools
from unittest import mock

import pytest
import torch

from llmcourse import decoding
from llmcourse.decoding import DecodingError, SamplingParams
from llmcourse.speculative.measured import measured_speed_up, tokens_per_step
from llmcourse.speculative.medusa import (
    HeadsConfig,
    MedusaHeads,
    MedusaTree,
    TreeTarget,
    TypicalAcceptance,
    accepted_nodes,
    full,
    generate,
    sparse,
    stream,
)
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.tiny import CONTEXT, PROMPTS, VOCAB, tiny_decoder

TREES = {
    "full": full([3, 2, 2]),
    "sparse": sparse(3, 4),
    "one node": MedusaTree([(0,)]),
    "no node": MedusaTree([]),
    "every second token": full([VOCAB, 2]),
    "without the likeliest": MedusaTree([(1,), (3,), (1, 2)]),
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


@pytest.fixture(scope="module")
def heads(model):
    return tiny_heads(model)


@functools.cache
def greedy(**settings):
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return [row.tokens for row in decoding.generate(tiny_decoder(), PROMPTS, **settings)]


def run(steps):
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_greedy_texts_are_those_of_decoding(model, heads, tree):
    seen, rows = run(stream(model, heads, PROMPTS, tree=tree, max_new_tokens=12))
    assert [row.tokens for row in rows] == greedy(max_new_tokens=12)
    if len(tree) > 40:
        assert tokens_per_step(seen) >= 1.5, "the next token but one is always among so many"
    for step in seen:
        for row, path in enumerate(step.paths):
            emitted = [*(step.drafts[row][node] for node in path), step.next_tokens[row]]
            assert step.tokens[row] == (emitted[: len(step.tokens[row])] if step.active[row] else [])


def test_log_probabilities_are_the_targets(model, heads):
    ours = generate(model, heads, PROMPTS, tree=TREES["full"], max_new_tokens=8)
    theirs = decoding.generate(model, PROMPTS, max_new_tokens=8)
    for one, other in zip(ours, theirs, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_penalties_are_seen_in_the_middle_of_a_step(model, heads):
    params = SamplingParams(temperature=0.0, no_repeat_ngram_size=2, presence_penalty=2.0)
    settings = {"params": params, "max_new_tokens": 12}
    rows = generate(model, heads, PROMPTS, tree=TREES["every second token"], **settings)
    assert [row.tokens for row in rows] == [r.tokens for r in decoding.generate(model, PROMPTS, **settings)]


def test_rows_end_at_their_end_token_and_at_the_end_of_the_context(model, heads):
    texts = greedy(max_new_tokens=12)
    ends = (texts[0][3], texts[2][5])
    rows = generate(
        model, heads, PROMPTS, tree=TREES["every second token"], max_new_tokens=12, eos_token_ids=ends
    )
    assert [row.tokens for row in rows] == greedy(max_new_tokens=12, eos_token_ids=ends)
    assert "eos" in {row.finish_reason for row in rows}
    long = [[1] * (CONTEXT - 3), [2, 3], [4] * CONTEXT]
    rows = generate(model, heads, long, tree=TREES["every second token"], max_new_tokens=9)
    expected = decoding.generate(model, long, max_new_tokens=9)
    assert [row.tokens for row in rows] == [row.tokens for row in expected]
    assert [len(row.tokens) for row in rows] == [3, 9, 0]


@pytest.mark.parametrize("drafting", ["ranked", "drawn"])
def test_a_row_s_text_does_not_depend_on_its_batch(model, heads, drafting):
    settings = dict(tree=TREES["full"], params=SamplingParams(), drafting=drafting, max_new_tokens=8)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = generate(model, heads, PROMPTS, generator=seeds, **settings)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, heads, [prompt], generator=[torch.Generator().manual_seed(row)], **settings)
        assert alone[0].tokens == together[row].tokens


def test_what_many_steps_gained(model, heads):
    seen, rows = run(stream(model, heads, PROMPTS[:1], tree=TREES["every second token"], max_new_tokens=13))
    later = seen[1:]
    assert seen[0].tree is None and seen[0].drafts == [[]] and len(rows[0].tokens) == 13
    counted = sum(len(step.paths[0]) + 1 for step in later)
    assert tokens_per_step(seen) == counted / len(later)
    nodes = accepted_nodes(seen)
    assert sum(nodes.values()) == counted - len(later) and set(nodes) <= set(later[0].tree.choices)
    time_s = sum(step.time_s for step in later)
    assert measured_speed_up(seen, 0.5) == pytest.approx(counted * 0.5 / time_s)
    for measure in (tokens_per_step, lambda steps: measured_speed_up(steps, 1.0)):
        with pytest.raises(ValueError, match="steps must be more than the first one of each text, got none"):
            measure(seen[:1])
    with pytest.raises(ValueError, match="token_s must be above 0, got 0"):
        measured_speed_up(seen, 0)


def broken(value: float, row: int, column: int):
    """Logits of one row broken at one column of every tree that is read."""
    read = TreeTarget.read_tree

    def wrong(self, tokens, mask):
        hidden = read(self, tokens, mask)
        hidden[row, column] = value
        return hidden

    return mock.patch.object(TreeTarget, "read_tree", wrong)


@pytest.mark.parametrize("sampled", [False, True])
def test_broken_logits_fail_their_row_alone(model, heads, sampled):
    settings = {"tree": TREES["full"], "max_new_tokens": 8}
    if sampled:
        settings["params"] = SamplingParams(temperature=0.01)  # nearly greedy, by the sampled way
        settings["generator"] = torch.Generator().manual_seed(0)
    with broken(torch.nan, 1, 0):
        rows = generate(model, heads, PROMPTS, on_error="return", **settings)
        assert [row.finish_reason for row in rows] == ["length", "error", "length", "length"]
        with pytest.raises(DecodingError, match="row 1, step 1: the logits hold nan"):
            generate(model, heads, PROMPTS, **settings)
    for number in (0, 2, 3):
        assert rows[number].tokens == greedy(max_new_tokens=8)[number]
    with broken(torch.nan, 1, 1):  # a node that may never be used
        rows = generate(model, heads, PROMPTS, **settings)
    assert [row.tokens for row in rows] == greedy(max_new_tokens=8)


def test_what_does_not_fit_is_refused(model, heads):
    settings = {"tree": TREES["full"]}
    for change, error, message in (
        ({"tree": full([1, 1, 1, 1])}, ValueError, "depth of the tree must be at most 3"),
        ({"tree": full([VOCAB + 1])}, ValueError, r"ranks must be in \[0, 39\], got 40"),
        ({"tree": full([2]).tree}, TypeError, "MedusaTree"),
        ({"drafting": "guessed"}, (ValueError, TypeError), "drafting"),
        ({"typical": 0.3}, TypeError, "ypical"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"params": SamplingParams()}, ValueError, "generator must be given where params sample"),
        ({"stop": "a"}, ValueError, "stop must be left out where there is no tokenizer"),
    ):
        with pytest.raises(error, match=message):
            stream(model, heads, PROMPTS, **settings | change)
    with pytest.raises(ValueError, match="heads must be on the backbone's device, in its dtype: cpu,"):
        stream(model, copy.deepcopy(heads).half(), PROMPTS, **settings)
    other = MedusaHeads(HeadsConfig(3, 1, 32, VOCAB + 1))
    with pytest.raises(ValueError, match="vocab_size of the heads must be the backbone's 40, got 41"):
        stream(model, other, PROMPTS, **settings)
    with pytest.raises(ValueError, match="prompts must hold at least 1 prompt, got 0"):
        stream(model, heads, [], **settings)
    with pytest.raises(ValueError, match=r"prompts\[0\] must hold token ids in \[0, 39\], got 40"):
        stream(model, heads, [[40]], **settings)


def test_typical_acceptance_in_the_loop(model, heads):
    """A bar that only certainty passes leaves greedy texts; a low one accepts more than the target would."""
    tree = TREES["every second token"]
    strict = TypicalAcceptance(epsilon=1.0, delta=1.0)
    seen, rows = run(
        stream(model, heads, PROMPTS, tree=tree, typical=TypicalAcceptance(1e-9, 1e-9), max_new_tokens=12)
    )
    assert tokens_per_step(seen) == pytest.approx(3, abs=0.5), (
        "nearly everything passes: two drafts and a token"
    )
    lossless, _ = run(stream(model, heads, PROMPTS, tree=tree, max_new_tokens=12))
    assert tokens_per_step(seen) > tokens_per_step(lossless)
    assert [row.tokens for row in rows] != greedy(max_new_tokens=12)
    one = generate(model, heads, PROMPTS, tree=MedusaTree([]), typical=strict, max_new_tokens=12)
    assert [row.tokens for row in one] == greedy(max_new_tokens=12)
    sampled = dict(params=SamplingParams(), generator=torch.Generator().manual_seed(0))
    rows = generate(model, heads, PROMPTS, tree=tree, typical=strict, max_new_tokens=12, **sampled)
    assert [len(row.tokens) for row in rows] == [12] * 4
