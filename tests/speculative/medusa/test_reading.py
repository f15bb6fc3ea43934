"""Tree attention in one pass, against each node read as a text of its own, in double precision."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch

from llmcourse.decoding import History, SamplingParams
from llmcourse.decoding.processors import apply
from llmcourse.kv_cache import KVCache
from llmcourse.speculative import DraftTree, chain, read_tree
from llmcourse.speculative.medusa import TreeTarget, full, mask_of
from llmcourse.speculative.medusa.reading import node_logits
from tests.speculative.test_tree_drafts import random_tree
from tests.speculative.tiny import CONTEXT, PROMPTS, VOCAB, tiny_decoder

TREES = {
    "branching": DraftTree((-1, -1, 0, 0, 1, 3)),
    "chain": chain(4),
    "siblings": DraftTree((-1, -1, -1)),
    "none": chain(0),
    "full": full([3, 2, 2]).tree,
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder().double()


def drafts_for(tree: DraftTree, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, len(tree)), generator=torch.Generator().manual_seed(seed))


def started(model, texts, room) -> TreeTarget:
    """A target that has read all but the last token of each text."""
    target = TreeTarget(model)
    target.start_hidden(texts, max(map(len, texts)) + room)
    target.rollback([1] * len(texts))
    return target


def in_one_pass(target, texts, drafts, tree) -> torch.Tensor:
    last = torch.tensor([[text[-1]] for text in texts])
    hidden = target.read_tree(torch.cat((last, drafts), 1), mask_of(tree))
    return target.model.lm_head(hidden)


def texts_of_two_tokens() -> list[list[int]]:
    return [prompt if len(prompt) > 1 else [7, *prompt] for prompt in PROMPTS]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_one_pass_says_what_every_path_says_alone(model, tree):
    texts, drafts = texts_of_two_tokens(), drafts_for(tree, len(PROMPTS))
    found = in_one_pass(started(model, texts, len(tree) + 1), texts, drafts, tree)
    torch.testing.assert_close(found, read_tree(model, texts, drafts, tree), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(2))
def test_step_after_step_the_cache_holds_the_accepted_paths(model, seed):
    """Random paths of random trees are kept, rows of unequal length: each next step reads as if afresh."""
    rng = random.Random(seed)
    texts = [list(text) for text in texts_of_two_tokens()]
    target = started(model, texts, 30)
    for step in range(3):
        tree = random_tree(rng, 5)
        drafts = drafts_for(tree, len(texts), seed + step)
        found = in_one_pass(target, texts, drafts, tree)
        torch.testing.assert_close(found, read_tree(model, texts, drafts, tree), atol=1e-9, rtol=0)
        paths = [tree.path(rng.randrange(-1, len(tree))) for _ in texts]
        if step == 1:
            paths[2] = None  # this row has ended, and does not grow
        target.keep(len(tree) + 1, paths)
        for text, path, own in zip(texts, paths, drafts.tolist(), strict=True):
            text += [] if path is None else [*(own[node] for node in path), rng.randrange(VOCAB)]
        assert target.cache.lengths.tolist() == [len(text) - 1 for text in texts]


@pytest.mark.parametrize("bug", ["positions by slot", "all nodes seen", "nothing moved"])
def test_planted_bugs_are_seen(model, bug):
    tree, texts = TREES["branching"], texts_of_two_tokens()
    drafts, mask = drafts_for(tree, len(texts)), mask_of(tree)
    if bug == "positions by slot":
        mask.depths = torch.arange(len(tree) + 1)
    elif bug == "all nodes seen":
        mask.sees = torch.ones_like(mask.sees).tril()
    target = started(model, texts, 20)
    last = torch.tensor([[text[-1]] for text in texts])
    found = model.lm_head(target.read_tree(torch.cat((last, drafts), 1), mask))
    off = (found - read_tree(model, texts, drafts, tree)).abs().max()
    if bug != "nothing moved":
        assert off > 1e-3
        return
    with mock.patch.object(KVCache, "_move", lambda *arguments: None):
        target.keep(len(tree) + 1, [tree.path(5)] * len(texts))
    longer = [[*text, own[0], own[3], own[5], 1] for text, own in zip(texts, drafts.tolist(), strict=True)]
    found = in_one_pass(target, longer, drafts, tree)
    assert (found - read_tree(model, longer, drafts, tree)).abs().max() > 1e-3


# ---- what the cache and the model refuse


def test_the_last_tokens_that_are_kept_are_moved_together():
    cache = KVCache(2, 2, 1, 8, 2)
    for lengths in (3, 4):
        slots, _ = cache.reserve(lengths)
        for layer in range(2):
            values = (slots[:, None, :, None] + torch.tensor([0, 10])[:, None, None, None]).expand(
                2, 1, -1, 2
            )
            cache.write(layer, values.float(), -values.float(), slots)
    cache.keep(4, [[0, 2, 3], [1]])
    assert cache.lengths.tolist() == [6, 4] and cache.extent == 6 and cache.ragged
    for layer in range(2):
        assert cache.keys[layer, 0, 0, :6, 1].tolist() == [0, 1, 2, 3, 5, 6]
        assert cache.values[layer, 1, 0, :4, 0].tolist() == [-10, -11, -12, -14]


@pytest.mark.parametrize(
    ("num_last", "kept", "message"),
    [
        (3, [[0, 0], []], r"kept\[0\] must increase within \[0, 2\], got \[0, 0\]; number the last tokens"),
        (3, [[0], [2, 1]], r"kept\[1\] must increase within \[0, 2\], got \[2, 1\]"),
        (3, [[3], []], r"kept\[0\] must increase within \[0, 2\], got \[3\]"),
        (3, [[-1], []], r"kept\[0\] must increase"),
        (6, [[0], []], r"num_last\[0\] must be in \[0, 5\], got 6"),
        (3, [[0]], "kept must have 2 entries, one a row, got 1"),
    ],
)
def test_what_cannot_be_kept_is_refused(num_last, kept, message):
    cache = KVCache(1, 2, 1, 8, 2)
    cache.reserve(5)
    with pytest.raises(ValueError, match=message):
        cache.keep(num_last, kept)
    assert cache.lengths.tolist() == [5, 5]


def test_a_mask_of_another_tree_is_refused(model):
    target = started(model, [[1, 2, 3]], 8)
    with pytest.raises((ValueError, TypeError), match="mask"):
        target.read_tree(torch.tensor([[3, 4]]), mask_of(chain(2)))
    assert target.cache.lengths.tolist() == [2]


# ---- processors see a node's own path


def test_penalties_see_the_path_above_a_node_and_nothing_beside_it():
    tree = TREES["branching"]
    texts = texts_of_two_tokens()
    history = History.from_prompts(texts, 2)
    drafts = drafts_for(tree, len(texts))
    logits = torch.randn(len(texts), len(tree) + 1, VOCAB, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(
        presence_penalty=0.8, repetition_penalty=1.3, no_repeat_ngram_size=2, temperature=0.7
    )
    before = history.tokens.clone(), history.lengths.clone()
    found = node_logits(logits, drafts, tree, history, params.processors())
    assert torch.equal(before[0], history.tokens) and torch.equal(before[1], history.lengths)
    for row, text in enumerate(texts):
        for node in range(-1, len(tree)):
            path = [drafts[row, step].item() for step in tree.path(node)]
            alone = History.from_prompts([text], CONTEXT)
            for token in path:
                alone.append(torch.tensor([token]))
            expected = apply(params.processors(), logits[row : row + 1, node + 1], alone)
            torch.testing.assert_close(found[row : row + 1, node + 1], expected)
