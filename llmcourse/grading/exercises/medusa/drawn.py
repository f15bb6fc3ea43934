"""What the cases about trees are drawn from: parents, tokens, and what the target wants along a path."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises import inputs

ROOT = -1  # the text, as a parent
VOCAB = 16


def grown(rng: random.Random, levels: int, heir: int = -1) -> list[int]:
    """Parents of a tree, level by level; the last node of each level but the deepest has two children.

    Args:
        heir: which node of each level that is instead, 0 for the first.
    """
    parents, last = [], [ROOT]
    for level in range(levels):
        new = []
        for node in last:
            count = 3 if level == 0 else 2 if node == last[heir] else rng.randint(0, 1)
            new += [node] * count
        last = range(len(parents), len(parents) + len(new))
        parents += new
    return parents


def in_any_order(rng: random.Random, parents: list[int]) -> list[int]:
    """The parents of the same tree, its nodes branch by branch or as it comes, each behind its parent."""
    branch_by_branch = rng.random() < 0.5
    ready, order = [ROOT], []
    while ready:
        node = ready.pop(-1 if branch_by_branch else rng.randrange(len(ready)))
        order.append(node)
        ready += [child for child, parent in enumerate(parents) if parent == node]
    places = {node: place for place, node in enumerate(order, ROOT)}  # of the text: -1
    return [places[parents[node]] for node in order[1:]]


def words(rng: random.Random, parents: list[int], with_0: bool) -> list[int]:
    """A token for each node: none twice below a parent; a few in all, so that branches share them.

    Args:
        with_0: whether 0 is one of the few.
    """
    few, tokens = rng.sample(range(1, VOCAB), 6), []
    few[:1] = [0] if with_0 else few[:1]
    for node, parent in enumerate(parents):
        taken = {tokens[other] for other in range(node) if parents[other] == parent}
        tokens.append(rng.choice([token for token in few if token not in taken]))
    return tokens


def said_along(
    rng: random.Random,
    tokens: list[int],
    parents: list[int],
    depth: int,
    trap: bool = False,
    cousin: bool = False,
    begins: Callable[[int], bool] = lambda node: True,
) -> list[int]:
    """What the target wants after the text and each node, so that a path of so many nodes stands.

    Args:
        trap: whether nodes off the path have a child that they would go on to.
        cousin: whether what follows the path is held by a grandchild of its last node's parent, if there is
            one that tells.
        begins: whether a node may be the first of the path.
    """

    def below(node):
        return [child for child, parent in enumerate(parents) if parent == node]

    def no_child(node):
        held = {tokens[child] for child in below(node)}
        return rng.choice([token for token in range(VOCAB) if token not in held])

    wanted = [no_child(node) for node in range(ROOT, len(tokens))]
    for node in range(len(tokens)) if trap else ():
        if below(node):
            wanted[node + 1] = tokens[rng.choice(below(node))]
    node, goal = ROOT, end(rng, parents, depth, begins)
    for child in goal:
        wanted[node + 1], node = tokens[child], child
    wanted[node + 1] = no_child(node)
    siblings = below(parents[node]) if cousin else []
    held = {tokens[child] for other in siblings if other != node for child in below(other)}
    if telling := sorted(held - {tokens[child] for child in below(node)}):
        wanted[node + 1] = rng.choice(telling)
    return wanted


def end(rng: random.Random, parents: list[int], depth: int, begins: Callable[[int], bool]) -> list[int]:
    """A path of so many nodes, from the text's child on, that can go on unless it is the longest of all.

    Args:
        begins: whether a node may be the first of the path.
    """
    paths = [[]]
    for node, parent in enumerate(parents):
        paths.append([*next((path for path in paths if path and path[-1] == parent), []), node])
    deepest = depth == max(map(len, paths))
    ends = [path for path in paths if len(path) == depth and all(map(begins, path[:1]))]
    return rng.choice([path for path in ends if not path or deepest or path[-1] in parents])


def favouring(rng: random.Random, token: int) -> Float[Tensor, " V"]:
    """Logits with their peak at a token."""
    low = rng.choice([other for other in range(VOCAB) if other != token])
    return torch.tensor(inputs.placed(rng, inputs.falling(rng, VOCAB), token, low), dtype=torch.float32)
