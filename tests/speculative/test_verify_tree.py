"""The acceptance rule down a tree: by hand, by exact enumeration, by chi-square, and with bugs planted.

Enumeration: probabilities are halves. A residual of halves has halves again, so however many siblings fall,
a draft stands or falls at half of the numbers, or at all or none of them: two numbers stand for all.
"""

from __future__ import annotations

import inspect
import itertools
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from llmcourse.speculative import DraftTree, TreeVerdict, chain, verify_drafts, verify_tree, walk
from llmcourse.speculative import verify_tree as exported
from tests.chi_square import holm, p_value
from tests.speculative.test_enumeration import Quarters
from tests.speculative.test_statistics import distributions, draw, normalised, text_law, uniforms

Text = tuple[int, ...]
PARTS, VOCAB = 2, 3
TREES = {
    "chain": chain(3),
    "two siblings": DraftTree((-1, -1)),
    "three siblings": DraftTree((-1, -1, -1)),
    "below the second": DraftTree((-1, -1, 1, 1)),
    "below both": DraftTree((-1, -1, 0, 1)),
    "depth first": DraftTree((-1, 0, 0, -1)),
}


# ---- by hand


def judged(tree: DraftTree, drafts: list[int], uniform: list[float]) -> list[int]:
    """p is 0.5, 0.3, 0.2 after the text and certain of token 2 after any node; q is 0.2, 0.6, 0.2."""
    p = torch.tensor([[[0.5, 0.3, 0.2], *[[0.0, 0.0, 1.0]] * len(drafts)]], dtype=torch.float64)
    q = torch.tensor([[[0.2, 0.6, 0.2]] * len(drafts)], dtype=torch.float64)
    found = torch.tensor([drafts])
    verdict = verify_tree(p, q, found, torch.tensor([uniform], dtype=torch.float64), tree)
    return verdict.emitted(found, tree)[0]


@pytest.mark.parametrize(
    ("drafts", "uniform", "emitted"),
    [
        ([0, 1], [0.99, 0.0, 0.0], [0, 2]),  # the elder sibling stands, the younger is not asked
        ([1, 0], [0.49, 0.0, 0.0], [1, 2]),  # p / q = 1/2
        ([1, 0], [0.51, 0.99, 0.0], [0, 2]),  # it falls; all that is left, (1, 0, 0), is the second's token
        ([1, 1], [0.51, 0.0, 0.99], [0]),  # nothing is left for the same token again, though p has 0.3
        ([1, 2], [0.51, 0.0, 0.99], [0]),  # p(2) = q(2), all of it spent by the first draft
    ],
)
def test_two_siblings(drafts, uniform, emitted):
    assert judged(DraftTree((-1, -1)), drafts, uniform) == emitted


def test_what_lies_below_a_fallen_node_is_not_asked():
    assert judged(DraftTree((-1, -1, 0)), [1, 1, 2], [0.51, 0.0, 0.0, 0.5]) == [0]
    assert judged(DraftTree((-1, -1, 0)), [0, 1, 2], [0.51, 0.0, 0.0, 0.5]) == [0, 2, 2]


# ---- against what is known


@pytest.mark.parametrize("gamma", [0, 1, 4])
def test_a_chain_is_judged_as_verify_drafts_judges_it(gamma):
    generator = torch.Generator().manual_seed(gamma)
    batch, vocab_size = 2000, 5
    q = distributions((batch, gamma, vocab_size), False, generator)
    p = 0.5 * distributions((batch, gamma + 1, vocab_size), True, generator)
    p += 0.5 * torch.cat((q, p[:, -1:] * 2), 1)
    drafts = torch.randint(vocab_size, (batch, gamma), generator=generator)
    uniform = torch.rand(batch, gamma + 1, dtype=torch.float64, generator=generator)
    for counts in (None, torch.randint(gamma + 1, (batch,), generator=generator)):
        ours = verify_tree(p, q, drafts, uniform, chain(gamma), counts)
        theirs = verify_drafts(p, q, drafts, uniform, counts)
        assert torch.equal(ours.last_nodes + 1, theirs.num_accepted)
        assert torch.equal(ours.next_tokens, theirs.next_tokens)
        assert ours.emitted(drafts, chain(gamma)) == theirs.emitted(drafts)
        assert gamma == 0 or len(theirs.num_accepted.unique()) == gamma + 1


@pytest.mark.parametrize("seed", range(10))
def test_the_greedy_walk_is_the_limit(seed):
    """Where p is certain, whatever q and the numbers: the path of that token, if no siblings are alike."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tree, batch, vocab_size = DraftTree((-1, -1, -1, 0, 0, 1, 3, 3)), 200, 4
    p = torch.eye(vocab_size)[torch.randint(vocab_size, (batch, len(tree) + 1), generator=generator)]
    drafts = torch.tensor([distinct(tree, vocab_size, rng) for _ in range(batch)])
    q = torch.rand(batch, len(tree), vocab_size, generator=generator).softmax(-1)
    uniform = torch.rand(batch, len(tree) + 1, generator=generator)
    ours, greedy = verify_tree(p, q, drafts, uniform, tree), walk(p, drafts, tree)
    assert torch.equal(ours.last_nodes, greedy.last_nodes)
    assert torch.equal(ours.next_tokens, greedy.next_tokens)
    assert len(greedy.last_nodes.unique()) > 5


def distinct(tree: DraftTree, vocab_size: int, rng: random.Random) -> list[int]:
    orders = {parent: rng.sample(range(vocab_size), vocab_size) for parent in (-1, *tree.parents)}
    return [orders[parent].pop() for parent in tree.parents]


# ---- by enumeration


class Halves(Quarters):
    """The same with halves."""

    parts = PARTS

    def weight(self, text: Text) -> int:
        """The probability of a text, times 2 to the power of its length."""
        product = 1
        for position, token in enumerate(text):
            product *= self.weights(text[:position])[token]
        return product


def drawn_alike(drafter: Halves, text: Text, elder: Text, before: Text) -> list[int]:
    return drafter.weights(text)


def without_replacement(drafter: Halves, text: Text, elder: Text, before: Text) -> list[int]:
    """What elder siblings have is at zero, the rest renormalised; the first free token if nothing is left."""
    weights = [0 if token in elder else share for token, share in enumerate(drafter.weights(text))]
    if not any(weights):
        weights[min({*range(VOCAB)} - {*elder})] = PARTS
    return [share * PARTS // sum(weights) for share in weights]


def certain(drafter: Halves, text: Text, elder: Text, before: Text) -> list[int]:
    """The likeliest, the second likeliest, … as Medusa's heads propose."""
    ranked = sorted(range(VOCAB), key=lambda token: (-drafter.weights(text)[token], token))
    return [PARTS * (token == ranked[len(elder)]) for token in range(VOCAB)]


def by_all_before(drafter: Halves, text: Text, elder: Text, before: Text) -> list[int]:
    return drafter.weights(before)


WAYS = {way.__name__: way for way in (drawn_alike, without_replacement, certain, by_all_before)}
Check = Callable[..., TreeVerdict]


def proposals(tree: DraftTree, drafter: Halves, way: Callable) -> list[tuple[Text, list[list[int]], int]]:
    """All drafts that can be: their tokens, q of each node, and the product of the chosen shares."""
    found: list[tuple[Text, list[list[int]], int]] = [((), [], 1)]
    for node, parent in enumerate(tree.parents):
        siblings = [other for other in range(node) if tree.parents[other] == parent]
        longer = []
        for tokens, q, chance in found:
            text, elder = (tuple(tokens[i] for i in nodes) for nodes in (tree.path(parent), siblings))
            weights = way(drafter, text, elder, tokens)
            longer += [((*tokens, t), [*q, weights], chance * weights[t]) for t in range(VOCAB) if weights[t]]
        found = longer
    return found


def emitted_texts(
    tree: DraftTree, target: Halves, drafter: Halves, way: Callable, check: Check = verify_tree, columns=None
) -> Counter[Text]:
    """How much of all drafts and uniform numbers leads to each text of a step, in whole numbers.

    Args:
        columns: more nodes than `tree` has hang in the row's tree, and are not the row's own.
    """
    size = len(tree)
    columns = size if columns is None else columns
    drafts, q, chances = zip(*proposals(tree, drafter, way), strict=True)
    texts = [[tuple(tokens[i] for i in tree.path(node)) for node in range(-1, size)] for tokens in drafts]
    p = torch.tensor([[target.weights(text) for text in row] for row in texts]) / PARTS
    q = torch.tensor(q) / PARTS
    spare = columns - size
    p, q = (torch.nn.functional.pad(side, (0, 0, 0, spare), value=torch.nan) for side in (p, q))
    tokens = torch.nn.functional.pad(torch.tensor(drafts), (0, spare), value=-1)
    grid = torch.tensor([*itertools.product((0.25, 0.75), repeat=size + 1)], dtype=torch.float64)
    uniform = torch.cat((grid[:, :-1], torch.zeros(len(grid), spare), grid[:, -1:]), 1)
    each = [side.repeat_interleave(len(grid), 0) for side in (p, q, tokens)]
    counts = torch.full((len(each[0]),), size)
    whole = DraftTree((*tree.parents, *[-1] * spare))
    verdict = check(*each, uniform.repeat(len(drafts), 1), whole, counts)
    found = Counter()
    for row, text in enumerate(verdict.emitted(each[2], whole)):
        found[tuple(text)] += chances[row // len(grid)]
    return found


def continued(found: Counter[Text], target: Halves, length: int) -> dict[Text, Fraction]:
    """The distribution of texts of one length, if the target goes on where a step ended."""
    law, whole = Counter(), found.total()
    for text, share in found.items():
        for rest in itertools.product(range(VOCAB), repeat=length - len(text)):
            chance = Fraction(target.weight(text + rest), max(1, target.weight(text)) * PARTS ** len(rest))
            law[text + rest] += Fraction(share, whole) * chance
    return {text: chance for text, chance in law.items() if chance}


def is_lossless(tree: DraftTree, target: Halves, drafter: Halves, way: Callable, **settings) -> bool:
    length = max(tree.depths) + 1
    texts = itertools.product(range(VOCAB), repeat=length)
    law = {t: Fraction(target.weight(t), PARTS**length) for t in texts if target.weight(t)}
    return continued(emitted_texts(tree, target, drafter, way, **settings), target, length) == law


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_text_of_a_step_is_distributed_as_the_targets(tree, way):
    for seed in range(12):
        assert is_lossless(tree, Halves(f"p {seed}"), Halves(f"q {seed}"), way)


def test_rows_that_use_the_first_nodes_look_at_those_alone():
    for seed in range(6):
        models = Halves(f"p {seed}"), Halves(f"q {seed}")
        assert is_lossless(DraftTree((-1, -1, 0)), *models, drawn_alike, columns=5)


@pytest.mark.parametrize("num_siblings", [1, 2, 3])
def test_as_many_drafts_stand_as_can(num_siblings):
    """Each of k siblings drawn alike stands with Σ min(r, q), r being what those before it left."""
    for seed in range(20):
        target, drafter = Halves(f"p {seed}"), Halves(f"q {seed}")
        left, q = ([Fraction(share, PARTS) for share in model.weights(())] for model in (target, drafter))
        none = Fraction(1)
        for _ in range(num_siblings):
            none *= 1 - sum(map(min, left, q))
            excess = [max(Fraction(0), ours - theirs) for ours, theirs in zip(left, q, strict=True)]
            left = [share / sum(excess) for share in excess] if sum(excess) else left
        found = emitted_texts(DraftTree([-1] * num_siblings), target, drafter, drawn_alike)
        kept = sum(share for text, share in found.items() if len(text) == 2)
        assert Fraction(kept, found.total()) == 1 - none


# ---- planted bugs


SIDES = "for side in (left, q_node)"
P_HERE = "in_float64(p)[torch.arange(batch), here + 1]"
BUGS = {
    "a child judged against p": (SIDES, f"for side in ({P_HERE}, q_node)"),
    "q not removed": ("residual(left, q_node)", "left"),
    "only the last q removed": ("residual(left, q_node)", f"residual({P_HERE}, q_node)"),
    "q removed of nodes not tried": ("(tried & ~stands)", "(~stands)"),
    "nodes tried whatever their parent": ("(here == parent) & (node < counts)", "node < counts"),
    "p of the node before": ("p[:, node + 1]", "p[:, node]"),
    "elder sibling's q": ("in_float64(q[:, node])", "in_float64(q[:, max(0, node - 1)])"),
    "one number for all": ("uniform[:, node])", "uniform[:, 0])"),
}


def planted(bug: str) -> Check:
    """The real function with one thing wrong."""
    right, wrong = BUGS[bug]
    source = inspect.getsource(exported)
    assert source.count(right) == 1
    names = dict(vars(inspect.getmodule(inspect.unwrap(exported))))
    exec(source.replace(right, wrong), names)

    def trusting(*arguments, **settings) -> TreeVerdict:
        return names["verify_tree"](*arguments, **settings | {"trusted": True})

    return trusting


@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_changes_the_distribution(bug):
    """Laws are exact, so that one pair of models, tree and way of drafting convicts it."""
    trees, check = (TREES["below the second"], TREES["below both"]), planted(bug)
    assert not all(
        is_lossless(tree, Halves(f"p {seed}"), Halves(f"q {seed}"), way, check=check)
        for seed, tree, way in itertools.product(range(12), trees, (drawn_alike, certain))
    )


# ---- by chi-square

FALSE_ALARM_RATE = 1e-4
NUM_STEPS = 50_000
LARGER = DraftTree((-1, -1, -1, 0, 1, 1, 4))


def texts(
    seed: int, vocab_size: int, replaced: bool, check: Check = verify_tree
) -> tuple[Tensor, np.ndarray]:
    """Cells of texts as long as the deepest path and a token, and their law; models of first order."""
    torch_generator = torch.Generator().manual_seed(seed)
    length = max(LARGER.depths) + 1
    p = distributions((length, vocab_size, vocab_size), seed % 2 == 1, torch_generator)
    q = 0.5 * p + 0.5 * distributions((length, vocab_size, vocab_size), False, torch_generator)
    generator = np.random.Generator(np.random.SFC64(seed))
    start = torch.zeros(NUM_STEPS, dtype=torch.long)
    drafts, p_rows, q_rows = [], [p[0][start]], []
    for node, parent in enumerate(LARGER.parents):
        depth, previous = LARGER.depths[node], start if parent < 0 else drafts[parent]
        own = q[depth - 1][previous]
        for elder in range(node):
            if LARGER.parents[elder] == parent and not replaced:
                own = own.scatter(1, drafts[elder][:, None], 0)
        own = normalised(own + 1e-12)
        points = uniforms(generator, NUM_STEPS)[:, None]
        drafts.append((own.cumsum(1) <= points).sum(1).clamp(max=vocab_size - 1))
        q_rows.append(own)
        p_rows.append(p[depth][drafts[-1]])
    drafts = torch.stack(drafts, 1)
    uniform = uniforms(generator, NUM_STEPS, len(LARGER) + 1)
    sides = torch.stack(p_rows, 1), torch.stack(q_rows, 1), drafts
    verdict = check(*sides, uniform, LARGER, trusted=True)
    paths = [LARGER.path(node) for node in range(-1, len(LARGER))]
    nodes = torch.tensor([[*path, *[0] * (length - len(path))] for path in paths])[verdict.last_nodes + 1]
    depths = torch.tensor([len(path) for path in paths])[verdict.last_nodes + 1]
    accepted = drafts.gather(1, nodes)
    cells, previous = start, start
    for position, table in enumerate(p):
        drawn = draw(table, previous, generator)
        previous = torch.where(position < depths, accepted[:, position], drawn)
        previous = torch.where(position == depths, verdict.next_tokens, previous)
        cells = cells * vocab_size + previous
    return cells, text_law(p)


CASES = [(seed, vocab_size, seed % 3 == 0) for seed, vocab_size in enumerate((3, 4, 5, 3, 4, 5))]


def test_texts_follow_the_targets_law():
    """Six p-values, corrected together: a false alarm once in 10,000 runs with fresh seeds."""
    found = [p_value(cells.numpy(), law) for cells, law in itertools.starmap(texts, CASES)]
    assert holm(found).min() > FALSE_ALARM_RATE


@pytest.mark.parametrize("bug", ["a child judged against p", "q not removed"])
def test_planted_bugs_are_rejected(bug):
    cells, law = texts(*CASES[4], check=planted(bug))
    assert p_value(cells.numpy(), law) < FALSE_ALARM_RATE


# ---- what is refused


GOOD = {
    "p": torch.full((1, 3, 2), 0.5),
    "q": torch.full((1, 2, 2), 0.5),
    "drafts": torch.tensor([[0, 1]]),
    "uniform": torch.full((1, 3), 0.5),
    "tree": DraftTree((-1, -1)),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tree": chain(3)}, "tree must be of 2 nodes as drafts are, got 3; pass the tree in which they"),
        ({"q": torch.full((1, 2, 2), 0.4)}, r"q's sum at \[0, 0\] must be 1 within 0.001, got 0.8"),
        ({"drafts": torch.tensor([[0, 2]])}, r"drafts at \[0, 1\] must be in \[0, 1\], got 2"),
        ({"uniform": torch.ones(1, 3)}, r"uniform at \[0, 0\] must be in \[0, 1\), got 1"),
        ({"num_drafts": torch.tensor([3])}, r"num_drafts at \[0\] must be in \[0, 2\], got 3"),
    ],
)
def test_what_cannot_be_judged_is_refused(wrong, message):
    verify_tree(**GOOD)
    with pytest.raises(ValueError, match=message):
        verify_tree(**GOOD | wrong)


def test_arguments_are_left_as_they_were():
    before = {name: value.clone() for name, value in GOOD.items() if name != "tree"}
    verify_tree(**GOOD)
    assert all(torch.equal(GOOD[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_drafts": torch.tensor([3])}, r"num_drafts must be in \[0, 2\], got \[3\]"),
        ({"num_drafts": torch.tensor([-5])}, r"num_drafts must be in \[0, 2\], got \[-5\]"),
        ({"p": torch.full((1, 3, 4), torch.nan)}, "p must be no NaN"),
    ],
)
def test_a_walk_refuses_what_cannot_be(change, message):
    given = {"p": torch.zeros(1, 3, 4), "drafts": torch.zeros(1, 2, dtype=torch.long), "tree": chain(2)}
    with pytest.raises((ValueError, TypeError), match=message):
        walk(**given | change)
