"""Candidate trees: which nodes, which tokens, the search for the best tree, and what is no tree."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from llmcourse.speculative import DraftTree
from llmcourse.speculative.medusa import (
    HeadsConfig,
    MedusaTree,
    expected_tokens,
    full,
    observed_tokens,
    rank_accuracies,
    search,
    sparse,
    stream,
    true_ranks,
    written_ranks,
)
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.tiny import tiny_decoder


def test_nodes_are_sorted_by_depth_and_rank():
    tree = MedusaTree([(1,), (0, 2), (0,), (0, 0, 1), (0, 0)])
    assert tree.choices == ((0,), (1,), (0, 0), (0, 2), (0, 0, 1))
    assert tree.tree == DraftTree((-1, -1, 0, 0, 2))
    assert (tree.depth, tree.widest, len(tree)) == (3, 3, 5)
    assert MedusaTree([]).tree == DraftTree(()) and MedusaTree([]).depth == 0


def test_a_full_tree_is_the_product():
    tree = full([3, 2])
    nodes = [(i,) for i in range(3)] + [(i, j) for i in range(3) for j in range(2)]
    assert tree.choices == tuple(nodes) and len(full([2, 2, 2])) == 14


@pytest.mark.parametrize(("num_heads", "width"), [(1, 5), (3, 4), (4, 4), (2, 1)])
def test_a_sparse_tree_holds_what_zipf_makes_likely(num_heads, width):
    every = [n for d in range(1, num_heads + 1) for n in itertools.product(range(width), repeat=d)]
    expected = {node for node in every if math.prod(rank + 1 for rank in node) <= width}
    assert set(sparse(num_heads, width).choices) == expected
    assert len(sparse()) == 44


def test_tokens_are_the_ranks_of_the_heads():
    logits = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    tree = full([3, 2, 2])
    tokens = tree.tokens(logits)
    order = logits.argsort(-1, descending=True)
    for node, choice in enumerate(tree.choices):
        assert torch.equal(tokens[:, node], order[:, len(choice) - 1, choice[-1]])
    assert MedusaTree([]).tokens(logits).shape == (3, 0)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            [(0, 0)],
            r"choices must be with the parent of each, got \(0, 0\); add \(0,\), or leave the node out",
        ),
        ([(0,), (1, 0)], r"with the parent of each, got \(1, 0\)"),
        ([(0,), (1,), (0,)], r"choices must be all different, got \(0,\); give each node once"),
        ([(0,), (-1,)], r"ranks must be at least 0, got \(-1,\)"),
        ([()], r"choices must be without the root, got \(\); the text itself is no node"),
        ([(i,) for i in range(1025)], "choices must be of at most 1024 nodes, got more; prune the tree"),
    ],
)
def test_what_is_no_tree_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        MedusaTree(choices)


@pytest.mark.parametrize("choices", ["ab", 3, [(0.5,)], [0], [("a",)], [(True,)]])
def test_what_is_of_the_wrong_kind_is_refused(choices):
    with pytest.raises(TypeError):
        MedusaTree(choices)


def test_trees_that_do_not_fit_the_heads_are_refused():
    config = HeadsConfig(2, 1, 8, 5)
    full([5, 5]).check(config)
    with pytest.raises(ValueError, match="depth of the tree must be at most 2, the number of heads, got 3"):
        full([1, 1, 1]).check(config)
    with pytest.raises(ValueError, match=r"ranks must be in \[0, 4\], got 5; a head has no more tokens"):
        full([6]).check(config)
    with pytest.raises(ValueError, match="depth of the tree must be at most 1"):
        full([1, 1]).tokens(torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match=r"ranks must be in \[0, 4\]"):
        full([6]).tokens(torch.zeros(1, 1, 5))


def test_sizes_are_refused_before_anything_is_made():
    for make in (lambda: full([10**6, 10**6]), lambda: sparse(4, 10**12), lambda: sparse(10**6, 2)):
        with pytest.raises(ValueError, match="such that at most 1024 nodes come"):
            make()
    for widths in ([0], [2, -1]):
        with pytest.raises(ValueError, match="widths must be an integer of at least 1"):
            full(widths)
    with pytest.raises(ValueError, match="widths must be of one head or more"):
        full([])
    with pytest.raises(ValueError, match="max_nodes must be an integer of at least 1, got 0"):
        MedusaTree([(0,)], max_nodes=0)


# ---- the search

TABLE = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.35, 0.0], [0.4, 0.1, 0.1]], dtype=torch.float64)


def every_tree(num_nodes: int):
    nodes = [n for depth in (1, 2, 3) for n in itertools.product(range(3), repeat=depth)]
    for chosen in itertools.combinations(nodes, num_nodes):
        if all(len(node) == 1 or node[:-1] in chosen for node in chosen):
            yield MedusaTree(chosen)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
def test_no_tree_of_its_size_is_expected_to_gain_more(num_nodes):
    best = max(expected_tokens(tree, TABLE) for tree in every_tree(num_nodes))
    found = search(TABLE, num_nodes)
    assert len(found) == num_nodes
    assert expected_tokens(found, TABLE) == pytest.approx(best, abs=1e-12)


def test_larger_trees_hold_the_smaller_ones_and_stop_where_nothing_is_likely():
    table = TABLE.clone()
    table[0] = torch.tensor([0.9, 0.05, 0.05])
    trees = [set(search(table, size).choices) for size in range(1, 30)]
    assert all(small <= large for small, large in itertools.pairwise(trees))
    assert len(trees[-1]) == 27  # 3 + 3·2 + 3·2·3
    assert (0, 1) in trees[1] and (0, 0) in trees[2], "the second head's second rank is the likelier one"
    assert len(trees[1]) == 2


def test_the_expectation_is_what_independent_heads_gain():
    """200,000 draws of each head's rank; 5 standard errors are a false alarm in two million."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.cat((TABLE, 1 - TABLE.sum(1, keepdim=True)), 1)
    ranks = torch.stack([row.multinomial(200_000, True, generator=generator) for row in rest], 1)
    tree = search(TABLE, 12)
    assert observed_tokens(tree, ranks) == pytest.approx(expected_tokens(tree, TABLE), abs=5 * 2.7e-3)
    torch.testing.assert_close(rank_accuracies(ranks, 3), TABLE, atol=6e-3, rtol=0)
    # Heads that are right together gain something else: the count knows, the product does not.
    together = ranks[:, :1].expand(-1, 3)
    alike = rank_accuracies(together, 3)
    assert abs(observed_tokens(tree, together) - expected_tokens(tree, alike)) > 0.1


def test_ranks_are_counted_position_by_position():
    model = tiny_decoder()
    heads = tiny_heads(model, 2)
    tokens = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(0))
    ranks = true_ranks(model, heads, tokens)
    assert ranks.shape == (2 * 3, 2)
    for row, position, head in itertools.product(range(2), range(3), range(2)):
        hidden = model.hidden_states(tokens[row : row + 1, : position + 1])[0, -1]
        order = heads.logits(model, hidden)[head].argsort(descending=True).tolist()
        assert ranks[row * 3 + position, head] == order.index(tokens[row, position + 2 + head])


def test_on_the_backbone_s_own_text_a_greedy_step_gains_what_was_counted():
    """Ranks at the positions where steps begin decide what `stream` accepts there."""
    model, prompts = tiny_decoder(), [[1, 2, 3], [4]]
    heads, tree = tiny_heads(model, 2), full([20, 10])
    ranks = written_ranks(model, heads, prompts, 12)
    assert ranks.shape == (2 * (12 - 2), 2)
    steps = list(stream(model, heads, prompts[:1], tree=tree, max_new_tokens=12))
    begun = 0  # new tokens before the one that a step reads first
    for step in steps[1:-2]:
        path = tree.choices[step.paths[0][-1]] if step.paths[0] else ()
        own = tuple(ranks[begun].tolist())
        longest = next((own[:n] for n in (2, 1) if own[:n] in tree.choices), ())
        assert path == longest
        begun += len(path) + 1
    with pytest.raises(ValueError, match="texts must be long enough for the last head, got none"):
        written_ranks(model, heads, prompts, 2)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="accuracies must be shares of at most 1 for each head"):
        search(torch.tensor([[0.7, 0.6]]), 2)
    with pytest.raises(ValueError, match="accuracies must be shares"):
        search(torch.tensor([[-0.1, 0.6]]), 2)
    with pytest.raises(ValueError, match="accuracies must be shares"):
        search(torch.tensor([[torch.nan, 0.6]]), 2)
    with pytest.raises(ValueError, match="num_nodes must be an integer of at least 1, got 0"):
        search(TABLE, 0)
    with pytest.raises(ValueError, match="num_nodes must be at most 1024, got 1025"):
        search(TABLE, 1025)
    with pytest.raises(ValueError, match="accuracies of the first head must be above 0 somewhere, got none"):
        search(torch.zeros(2, 3), 5)
    with pytest.raises(ValueError, match="depth of the tree must be at most 3, the heads measured, got 4"):
        expected_tokens(full([1, 1, 1, 1]), TABLE)
    with pytest.raises(ValueError, match="tokens must be longer than 4, got 4; give longer texts"):
        true_ranks(tiny_decoder(), tiny_heads(tiny_decoder(), 3), torch.zeros(1, 4, dtype=torch.long))
    assert expected_tokens(full([9]), TABLE) == pytest.approx(1.8)  # ranks past those measured: never right


def test_of_equally_likely_tokens_the_lower_comes_first():
    logits = torch.zeros(1, 2, 200)
    logits[0, 0, 150], logits[0, 1, 7] = 1, -1
    tree = MedusaTree([(0,), (1,), (2,), (2, 0), (2, 6), (2, 7)])
    nodes = dict(zip(tree.choices, tree.tokens(logits)[0].tolist(), strict=True))
    assert [nodes[rank,] for rank in range(3)] == [150, 0, 1]
    assert [nodes[2, rank] for rank in (0, 6, 7)] == [0, 6, 8]
