"""Trees of drafts: their shape, what is no tree, reading them, the greedy walk down them, and the loop."""

from __future__ import annotations

import random

import pytest
import torch

from llmcourse import decoding
from llmcourse.model import Context, Decoder, Rope
from llmcourse.speculative import (
    Draft,
    DraftTree,
    LookupDrafter,
    chain,
    generate,
    read_tree,
    walk,
)
from tests.speculative.tiny import CONTEXT, PROMPTS, VOCAB, near, tiny_decoder

BRANCHING = DraftTree((-1, -1, 0, 0, 1, 3))


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def random_tree(rng: random.Random, num_nodes: int) -> DraftTree:
    return DraftTree([rng.randrange(-1, node) for node in range(num_nodes)])


# ---- the tree


def test_depths_paths_and_ancestors():
    assert BRANCHING.depths == (1, 1, 2, 2, 2, 3)
    assert BRANCHING.paths == ((0, 2), (1, 4), (0, 3, 5))
    assert BRANCHING.path(-1) == ()
    assert BRANCHING.path(5) == (0, 3, 5)
    assert BRANCHING.ancestors().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [1, 0, 0, 1, 0, 1],
    ]


@pytest.mark.parametrize("seed", range(10))
def test_what_a_tree_says_of_itself_agrees(seed):
    tree = random_tree(random.Random(seed), 12)
    mask = tree.ancestors()
    assert tuple(mask.sum(1).tolist()) == tree.depths
    for node in range(len(tree)):
        assert tuple(mask[node].nonzero()[:, 0].tolist()) == tree.path(node)
    assert {node for path in tree.paths for node in path} == set(range(len(tree)))
    leaves = [path[-1] for path in tree.paths]
    assert mask[:, leaves].sum(0).tolist() == [1] * len(leaves)  # nothing is below a leaf


@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_a_chain_is_the_degenerate_tree(gamma):
    tree = chain(gamma)
    assert tree.is_chain and len(tree) == gamma
    assert tree.depths == tuple(range(1, gamma + 1))
    assert torch.equal(tree.ancestors(), torch.ones(gamma, gamma, dtype=torch.bool).tril())
    assert tree.paths == ((tuple(range(gamma)),) if gamma else ())
    assert not DraftTree((*tree.parents, -1, -1)).is_chain


def test_trees_are_values():
    assert DraftTree([-1, 0]) == chain(2) == DraftTree((-1, 0), max_nodes=2)
    assert hash(DraftTree([-1, 0])) == hash(chain(2))
    with pytest.raises(AttributeError):
        chain(2).parents = ()


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((0,), r"parents at 0 must be an earlier node, in \[-1, -1\], got 0; number each node after its"),
        ((-1, 2, 1), r"parents at 1 must be an earlier node, in \[-1, 0\], got 2"),  # a cycle
        ((-1, 0, 2), r"parents at 2 must be an earlier node, in \[-1, 1\], got 2"),  # its own parent
        ((-1, 7), r"parents at 1 must be .* got 7"),  # missing
        ((-1, -2), r"parents at 1 must be .* got -2"),
    ],
)
def test_what_is_no_tree_is_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        DraftTree(parents)


def test_trees_of_the_wrong_size_are_refused():
    DraftTree((-1, 0, 1), max_nodes=3)
    with pytest.raises(ValueError, match="parents must be of at most 2 nodes, got 3; prune the tree"):
        DraftTree((-1, 0, 1), max_nodes=2)
    with pytest.raises(ValueError, match="max_nodes must be an integer of at least 0, got -1"):
        DraftTree((), max_nodes=-1)
    with pytest.raises(ValueError, match="gamma must be an integer of at least 0, got -1; use 0"):
        chain(-1)
    for node in (-2, 6):
        with pytest.raises(ValueError, match=rf"node must be an integer in \[-1, 5\], got {node}; use -1"):
            BRANCHING.path(node)


# ---- reading it


def in_one_pass(model: Decoder, text: list[int], drafts: list[int], tree: DraftTree) -> torch.Tensor:
    """Tree attention: the text and all nodes behind it once, each node seeing the text and its ancestors."""
    size, length = len(tree), len(text)
    mask = torch.ones(length + size, length + size, dtype=torch.bool).tril()
    mask[length:, length:] = tree.ancestors()
    positions = torch.tensor([[*range(length), *(length - 1 + depth for depth in tree.depths)]])
    rope = Rope.of_pairs(*model.rope(positions))
    context = Context(rope, positions, mask[None], None, model.attention)
    x = model.model.embed_tokens(torch.tensor([[*text, *drafts]]))
    for index, layer in enumerate(model.model.layers):
        x = layer(x, index, context)
    return model.lm_head(model.model.norm(x))[0, length - 1 :]


@pytest.mark.parametrize("tree", [BRANCHING, chain(4), DraftTree((-1, -1, -1)), chain(0)], ids=len)
def test_every_node_is_read_as_the_end_of_its_own_path(model, tree):
    rng = random.Random(0)
    drafts = torch.tensor([[rng.randrange(VOCAB) for _ in range(len(tree))] for _ in PROMPTS]).long()
    logits = read_tree(model, PROMPTS, drafts, tree)
    assert logits.shape == (len(PROMPTS), len(tree) + 1, VOCAB)
    for row, (text, tokens) in enumerate(zip(PROMPTS, drafts.tolist(), strict=True)):
        for node in range(-1, len(tree)):
            path = torch.tensor([[*text, *(tokens[step] for step in tree.path(node))]])
            torch.testing.assert_close(logits[row, node + 1], model(path)[0, -1], atol=1e-5, rtol=1e-4)
        # The mask and the depths are what one pass over all nodes needs.
        torch.testing.assert_close(logits[row], in_one_pass(model, text, tokens, tree), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_read_is_refused(model):
    drafts = torch.zeros(1, 6, dtype=torch.long)
    read_tree(model, [[1] * (CONTEXT - 3)], drafts, BRANCHING)
    for length in (0, CONTEXT - 2):
        message = rf"texts' length at 0 must be in \[1, {CONTEXT - 3}\], got {length}; shorten it, or prune"
        with pytest.raises(ValueError, match=message):
            read_tree(model, [[1] * length], drafts, BRANCHING)
    with pytest.raises(ValueError, match=r"drafts must be of shape \(1, 6\), got \(1, 5\); give a token"):
        read_tree(model, [[1]], drafts[:, 1:], BRANCHING)


# ---- the greedy walk


def longest(best: list[int], drafts: list[int], tree: DraftTree) -> int:
    """The definition: the first of the longest paths on which every token is the likeliest at its parent."""
    good = [
        node
        for node in range(-1, len(tree))
        if all(drafts[step] == best[tree.parents[step] + 1] for step in tree.path(node))
    ]
    return max(good, key=lambda node: (len(tree.path(node)), -node))


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_is_the_longest_path_of_likeliest_tokens(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tree, batch, vocab_size = random_tree(rng, 8), 64, 2  # so few tokens that many siblings are alike
    p = torch.rand(batch, 9, vocab_size, generator=generator)
    drafts = torch.randint(vocab_size, (batch, 8), generator=generator)
    best = p.argmax(-1).tolist()
    verdict = walk(p, drafts, tree)
    expected = [longest(*row, tree) for row in zip(best, drafts.tolist(), strict=True)]
    assert verdict.last_nodes.tolist() == expected
    assert verdict.next_tokens.tolist() == [row[end + 1] for row, end in zip(best, expected, strict=True)]
    few = walk(p, drafts, tree, torch.full((batch,), 5))
    smaller = walk(p[:, :6], drafts[:, :5], DraftTree(tree.parents[:5]))
    assert few.last_nodes.tolist() == smaller.last_nodes.tolist()
    assert few.emitted(drafts, tree) == smaller.emitted(drafts, tree)


def test_the_longest_path_may_lie_below_the_second_of_two_siblings_alike():
    p = torch.eye(3)[[1, 2, 2, 0]][None]  # after the text token 1, after either sibling token 2
    verdict = walk(p, torch.tensor([[1, 1, 2]]), DraftTree((-1, -1, 1)))
    assert verdict.emitted(torch.tensor([[1, 1, 2]]), DraftTree((-1, -1, 1))) == [[1, 2, 0]]


def test_walking_from_step_to_step_writes_what_greedy_decoding_writes(model):
    """Two choices of another model at each node, three deep: some second choices have to be taken."""
    tree, wanted = DraftTree((-1, -1, 0, 0, 1, 1, 2, 2, 4, 4)), 6
    drafter, second = near(model, 0.05), 0
    greedy = decoding.generate(model, PROMPTS, max_new_tokens=wanted)
    for prompt, expected in zip(PROMPTS, greedy, strict=True):
        text = list(prompt)
        while len(text) < len(prompt) + wanted:
            tokens = propose(drafter, text, tree)
            verdict = walk(read_tree(model, [text], tokens, tree), tokens, tree)
            second += sum(node % 2 for node in tree.path(int(verdict.last_nodes)))
            text += verdict.emitted(tokens, tree)[0]
        assert text[len(prompt) :][:wanted] == expected.tokens
    assert second > 0


def propose(model: Decoder, text: list[int], tree: DraftTree) -> torch.Tensor:
    """At each node the likeliest token that no elder sibling has."""
    tokens: list[int] = []
    for node, parent in enumerate(tree.parents):
        path = [*text, *(tokens[step] for step in tree.path(parent))]
        ranked = model(torch.tensor([path]))[0, -1].argsort(descending=True).tolist()
        tokens.append(ranked[tree.parents[:node].count(parent)])
    return torch.tensor([tokens])


def test_a_walk_down_another_tree_is_refused():
    p, drafts = torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long)
    walk(p, drafts, chain(3))
    with pytest.raises(ValueError, match="tree must be of 3 nodes as drafts are, got 2; pass the tree in"):
        walk(p, drafts, chain(2))
    with pytest.raises(ValueError, match=r"p must be of shape \(2, 4\) and V, got \(2, 3, 5\); stack"):
        walk(p[:, 1:], drafts, chain(3))


# ---- a draft with a tree, and the loop


class TreeDrafter(LookupDrafter):
    """Lookup that says what its drafts are."""

    def __init__(self, shape):
        super().__init__(VOCAB)
        object.__setattr__(self, "shape", shape)

    def draft(self, history, num_drafts, processors=(), generator=None) -> Draft:
        found = super().draft(history, num_drafts, processors, generator)
        return Draft(found.tokens, found.num_tokens, found.q, self.shape(found.tokens.shape[1]))


def test_a_draft_needs_a_token_for_each_node_of_its_tree():
    tokens, counts = torch.zeros(2, 6, dtype=torch.long), torch.tensor([6, 3])
    assert Draft(tokens, counts, tree=BRANCHING).tree is BRANCHING
    message = r"tokens of a draft must be of 6 columns as its tree has nodes, got \(2, 5\); give a token"
    with pytest.raises(ValueError, match=message):
        Draft(tokens[:, 1:], counts, tree=BRANCHING)


def test_the_loop_takes_a_chain_and_refuses_what_branches(model):
    settings = {"max_new_tokens": 8}
    written = generate(model, PROMPTS, drafter=TreeDrafter(chain), **settings)
    expected = decoding.generate(model, PROMPTS, **settings)
    assert [row.tokens for row in written] == [row.tokens for row in expected]
    message = (
        r"tree of a draft must be a chain in this loop, got \(-1, -1.*; "
        "read it with read_tree, and judge it with walk or verify_tree"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, drafter=TreeDrafter(lambda size: DraftTree([-1] * size)), **settings)
