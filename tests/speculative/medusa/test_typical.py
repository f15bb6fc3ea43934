"""Typical acceptance by its definition, and how far its law is from the target's: by hand and by draws."""

from __future__ import annotations

import math
import random

import pytest
import torch

from llmcourse.decoding import History
from llmcourse.speculative import DraftTree, chain
from llmcourse.speculative.medusa import (
    TypicalAcceptance,
    first_token_law,
    full,
    total_variation,
    typical_walk,
)
from llmcourse.speculative.medusa.drafting import drawn, ranked, without
from tests.chi_square import holm, p_value
from tests.speculative.test_tree_drafts import random_tree

SETTINGS = TypicalAcceptance(epsilon=0.3, delta=0.5)


def distributions(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1)


def passes(p: list[float], token: int, settings: TypicalAcceptance) -> bool:
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    return p[token] > min(settings.epsilon, settings.delta * math.exp(-entropy))


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_longest_that_passes_and_the_likeliest_of_those(seed):
    rng, vocab_size = random.Random(seed), 4
    tree = random_tree(rng, 7)
    p = distributions(40, 8, vocab_size, seed=seed)
    drafts = torch.randint(vocab_size, (40, 7), generator=torch.Generator().manual_seed(seed))
    counts = torch.randint(8, (40,), generator=torch.Generator().manual_seed(seed))
    verdict = typical_walk(p, drafts, tree, SETTINGS, None, counts)
    lengths = set()
    for row in range(40):
        own, tokens = p[row].tolist(), drafts[row].tolist()

        def likelihood(node, own=own, tokens=tokens):
            return sum(math.log(own[tree.parents[step] + 1][tokens[step]]) for step in tree.path(node))

        good = [
            node
            for node in range(-1, int(counts[row]))
            if all(passes(own[tree.parents[step] + 1], tokens[step], SETTINGS) for step in tree.path(node))
        ]
        best = max(good, key=lambda node: (len(tree.path(node)), likelihood(node)))
        found = verdict.last_nodes[row].item()
        assert (
            tree.path(found)
            and (len(tree.path(found)), likelihood(found))
            == pytest.approx((len(tree.path(best)), likelihood(best)))
        ) or found == best == -1
        assert verdict.next_tokens[row] == p[row, found + 1].argmax()
        lengths.add(len(tree.path(found)))
    assert len(lengths) > 1


def test_the_bar_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0, 0, 0]], dtype=torch.float64)
    assert TypicalAcceptance(0.3, 0.4).bar(p).tolist() == pytest.approx([0.2, 0.3])  # δ/2, and ε
    tree, drafts = DraftTree((-1, -1)), torch.tensor([[2, 1]])
    certain = torch.tensor([[[0.5, 0.25, 0.25, 0.0]] * 3], dtype=torch.float64)
    verdict = typical_walk(certain, drafts, tree, TypicalAcceptance(0.9, 0.7), torch.tensor([0.0]))
    assert verdict.last_nodes.tolist() == [0], "exp(−H) is 0.3536, δ of it 0.2475: both pass"
    verdict = typical_walk(certain, drafts, tree, TypicalAcceptance(0.9, 0.8), torch.tensor([0.6]))
    assert verdict.last_nodes.tolist() == [-1] and verdict.next_tokens.tolist() == [1]


def test_the_law_of_the_first_token_and_its_distance():
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).expand(2, 3)[None]
    settings = TypicalAcceptance(0.09, 0.3)
    one = torch.ones(1, dtype=torch.float64)
    law = first_token_law(p, torch.tensor([[1]]), chain(1), settings, one)
    assert law.tolist() == [0, 1, 0] and total_variation(law, p[0, 0]) == pytest.approx(0.7)
    refused = first_token_law(p, torch.tensor([[2]]), chain(1), TypicalAcceptance(0.5, 1.0), one)
    assert torch.equal(refused, p[0, 0]), "what falls leaves the target's own law"
    with pytest.raises(ValueError, match="chances must be 1 numbers that sum to 1, got"):
        first_token_law(p, torch.tensor([[1]]), chain(1), settings, one / 2)
    with pytest.raises((ValueError, TypeError), match=r"q must be of shape \(3,\), got \(2,\)|parameter '?q"):
        total_variation(p[0, 0], p[0, 0, :2])


def test_the_enumerated_law_is_that_of_draws():
    """20,000 draws of drafts from a head and of the token after them; a false alarm once in 10,000."""
    p, q = distributions(2, 5, seed=3), distributions(5, seed=4)
    tree, settings, count = chain(1), TypicalAcceptance(0.2, 0.4), 20_000
    ways = torch.arange(5)[:, None]
    law = first_token_law(p.expand(5, 2, 5), ways, tree, settings, q)
    generator = torch.Generator().manual_seed(0)
    drafts = q.multinomial(count, True, generator=generator)[:, None]
    uniform = torch.rand(count, dtype=torch.float64, generator=generator)
    verdict = typical_walk(p.expand(count, 2, 5), drafts, tree, settings, uniform)
    first = torch.tensor([row[0] for row in verdict.emitted(drafts, tree)])
    assert p_value(first.numpy(), law.numpy()) > 1e-4
    assert p_value(first.numpy(), p[0].numpy()) < 1e-4, "and it is not the target's"
    assert total_variation(law, p[0]) > 0.02


@pytest.mark.parametrize("number", [0, -0.1, 1.1, float("nan"), float("inf"), True])
def test_settings_out_of_range_are_refused(number):
    for name in ("epsilon", "delta"):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\], got"):
            TypicalAcceptance(**{name: number})


def test_what_does_not_fit_is_refused():
    p, drafts, tree = distributions(2, 4, 5), torch.zeros(2, 3, dtype=torch.long), chain(3)
    typical_walk(p, drafts, tree, SETTINGS)
    with pytest.raises(ValueError, match="p must be of 4 positions for 3 nodes, got 3"):
        typical_walk(p[:, 1:], drafts, tree, SETTINGS)
    with pytest.raises(ValueError, match=r"drafts must be of shape \(2, 3\), got \(2, 2\)"):
        typical_walk(p, drafts[:, 1:], tree, SETTINGS)
    with pytest.raises(ValueError, match="drafts must be in"):
        typical_walk(p, drafts + 5, tree, SETTINGS)
    with pytest.raises(ValueError, match=r"p's sum at .* must be 1 within 0\.001"):
        typical_walk(p * 2, drafts, tree, SETTINGS)


# ---- drafting


def test_drawn_siblings_are_different_and_q_is_what_they_were_drawn_from():
    tree, count = full([2, 2]), 20_000
    logits = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0)).expand(count, 2, 4)
    history = History(
        torch.zeros(count, 1, dtype=torch.long), torch.ones(count).long(), torch.ones(count).long()
    )
    points = torch.rand(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draft = drawn(tree, logits, history, [], points)
    first, second = draft.tokens[:, 0], draft.tokens[:, 1]
    assert (first != second).all()
    whole = draft.q.double() / draft.q.double().sum(-1, keepdim=True)
    found = [p_value(first.numpy(), whole[0, 0].numpy())]
    for elder in range(4):
        own = first == elder
        q = whole[own, 1]
        assert torch.equal(q, q[:1].expand_as(q)) and q[0, elder] == 0 and q[0].sum() == pytest.approx(1)
        found.append(p_value(second[own].numpy(), q[0].numpy()))
    assert holm(found).min() > 1e-4
    certain = ranked(tree, logits)
    assert certain.q is None and torch.equal(certain.tokens, tree.tokens(logits))


def test_where_elders_have_it_all_any_other_token_is_as_likely():
    q = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.5, 0.3]])
    assert without(q, []) is q
    left = without(q, [torch.tensor([1, 1])])
    torch.testing.assert_close(left, torch.tensor([[0.5, 0.0, 0.5], [0.4, 0.0, 0.6]]))
