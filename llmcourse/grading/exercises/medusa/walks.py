"""Down a tree of drafts: the walk that is right, and those that 04.walk_tree must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

ROOT = -1  # the text, as a parent


def walk_tree(
    logits: Float[Tensor, "T V"], tokens: Int[Tensor, " N"], parents: Int[Tensor, " N"], length: int
) -> tuple[list[int], int, list[int]]:
    """Down the tree as long as a child holds what the target says."""
    return Walk()(logits, tokens, parents, length)


def children(wanted: int, node: int, tokens: list[int], parents: list[int]) -> list[int]:
    """Those of a node's children that hold the token."""
    pairs = enumerate(zip(tokens, parents, strict=True))
    return [child for child, (token, parent) in pairs if parent == node and token == wanted]


@dataclass(frozen=True)
class Walk:
    """The walk; the fields are what mutants get wrong.

    Args:
        follows: the nodes to go on to.
        most: how many nodes are followed.
        bonus: the row that the bonus token is read at, by the last node and the number of nodes.
        slots: what is kept, by the text's length, the path and the number of nodes.
    """

    follows: Callable = children
    most: int | None = None
    bonus: Callable = lambda node, count: node + 1
    slots: Callable = lambda length, path, count: [*range(length), *(length + node for node in path)]

    def __call__(self, logits, tokens, parents, length):
        best, tokens, parents = logits.argmax(-1).tolist(), tokens.tolist(), parents.tolist()
        path, node = [], ROOT
        while self.most is None or len(path) < self.most:
            found = self.follows(best[node + 1], node, tokens, parents)
            if not found:
                break
            node = found[0]
            path.append(node)
        return path, best[self.bonus(node, len(tokens))], self.slots(length, path, len(tokens))


def _from(path, logits, length):
    """All that is asked for, for another path."""
    last = path[-1] if path else ROOT
    slots = [*range(length), *(length + node for node in path)]
    return path, int(logits[last + 1].argmax()), slots


def _path_to(node, parents):
    path = []
    while node != ROOT:
        path.append(node)
        node = int(parents[node])
    return path[::-1]


def longest(logits, tokens, parents, length):
    paths = [_path_to(node, parents) for node in range(len(tokens))]
    return _from(max(paths, key=len, default=[]), logits, length)


def most_matches(logits, tokens, parents, length):
    """The path on which most tokens are what the target wants, wherever on it one fell."""
    best = logits.argmax(-1)
    paths = [[], *(_path_to(node, parents) for node in range(len(tokens)))]
    right = [sum(int(tokens[n] == best[parents[n] + 1]) for n in path) for path in paths]
    return _from(paths[right.index(max(right))], logits, length)


def over_a_fall(logits, tokens, parents, length):
    """To the deepest node that is right by itself."""
    best = logits.argmax(-1)
    nodes = [ROOT, *(n for n in range(len(tokens)) if tokens[n] == best[parents[n] + 1])]
    paths = [_path_to(node, parents) for node in nodes]
    return _from(max(paths, key=len), logits, length)


def own_row(logits, tokens, parents, length):
    best, path, node = logits.argmax(-1).tolist(), [], ROOT
    while True:
        below = [n for n, parent in enumerate(parents.tolist()) if parent == node]
        right = [n for n in below if best[n + 1] == tokens[n]]
        if not right:
            return _from(path, logits, length)
        node = right[0]
        path.append(node)


def first_branch(logits, tokens, parents, length):
    """Follows the likeliest guess of the heads alone, as a chain of drafts."""
    best, path, node = logits.argmax(-1).tolist(), [], ROOT
    while True:
        below = [n for n, parent in enumerate(parents.tolist()) if parent == node][:1]
        if not below or int(tokens[below[0]]) != best[node + 1]:
            return _from(path, logits, length)
        node = below[0]
        path.append(node)


def at_least_one(logits, tokens, parents, length):
    path, bonus, slots = walk_tree(logits, tokens, parents, length)
    return _from([0], logits, length) if not path and len(tokens) else (path, bonus, slots)


def bonus_last_for_none(logits, tokens, parents, length):
    path, bonus, slots = walk_tree(logits, tokens, parents, length)
    return path, bonus if path else int(logits[-1].argmax()), slots


def never_a_leaf(logits, tokens, parents, length):
    path, bonus, slots = walk_tree(logits, tokens, parents, length)
    leaf = bool(path) and path[-1] not in parents.tolist()
    return _from(path[:-1], logits, length) if leaf else (path, bonus, slots)


def needs_nodes(logits, tokens, parents, length):
    nodes = range(int(parents.max()) + 1)  # raises without any
    assert nodes is not None
    return walk_tree(logits, tokens, parents, length)


def cuts_in_place(logits, tokens, parents, length):
    result = walk_tree(logits, tokens, parents, length)
    tokens[: len(result[0])] = tokens[result[0]]
    return result


def again_from_0(logits, tokens, parents, length):
    """Takes a path that ends at node 0 for one that is empty, for as many turns as there are nodes."""
    best, path = logits.argmax(-1).tolist(), []
    for _ in range(len(tokens)):
        node = path[-1] if path and path[-1] else ROOT
        found = children(best[node + 1], node, tokens.tolist(), parents.tolist())
        if not found:
            break
        path.append(found[0])
    return _from(path, logits, length)


def squeezed(logits, tokens, parents, length):
    """Takes away every axis of length 1."""
    zip(tokens.squeeze().tolist(), parents.squeeze().tolist(), strict=True)  # raises for one number
    return walk_tree(logits, tokens, parents, length)


def _but_0(wanted, node, tokens, parents):
    """`if not child: break`, as if 0 were none."""
    return [child for child in children(wanted, node, tokens, parents) if child]


def _but_token_0(wanted, node, tokens, parents):
    """`while wanted:`, as if token 0 were none."""
    return children(wanted, node, tokens, parents) if wanted else []


def _but_the_last(wanted, node, tokens, parents):
    """Looks one node short of the last."""
    return children(wanted, node, tokens[:-1], parents[:-1])


def _a_level_below(wanted, node, tokens, parents):
    """Nodes one level deeper that hold the token, whoever their parent is."""
    depths = [len(_path_to(other, parents)) for other in range(len(tokens))]
    below = 1 + (0 if node == ROOT else depths[node])
    return [n for n, token in enumerate(tokens) if token == wanted and depths[n] == below]


def _a_level_below_in_the_branch(wanted, node, tokens, parents):
    """Of these, those that stem from the same child of the text."""
    found = _a_level_below(wanted, node, tokens, parents)
    stem = _path_to(node, parents)[:1]
    return [other for other in found if _path_to(other, parents)[: len(stem)] == stem]


def _any_parent_of(wanted, node, tokens, parents):
    """Nodes after this one that hold the token, whoever their parent is."""
    return [other for other in range(node + 1, len(tokens)) if tokens[other] == wanted]


def _in_one_piece_from_the_first(wanted, node, tokens, parents):
    """Takes the children of a node for neighbours."""
    first = parents.index(node) if node in parents else 0
    siblings = range(first, first + parents.count(node))
    return [child for child in siblings if tokens[child] == wanted]


def _of_the_next_level(wanted, node, tokens, parents):
    """Looks for children up to the first node that is deeper than they are."""

    def depth(other):
        return 0 if other == ROOT else 1 + depth(parents[other])

    deeper = [other for other in range(node + 1, len(parents)) if depth(other) > depth(node) + 1]
    end = min(deeper, default=len(parents))
    return [child for child in children(wanted, node, tokens, parents) if child < end]


in_one_piece = Walk(follows=_in_one_piece_from_the_first)
up_to_the_next_level = Walk(follows=_of_the_next_level)
false_at_0 = Walk(follows=_but_0)
token_0_is_none = Walk(follows=_but_token_0)
not_the_last_node = Walk(follows=_but_the_last)
next_level = Walk(follows=_a_level_below)
next_level_of_the_branch = Walk(follows=_a_level_below_in_the_branch)
four_levels = Walk(most=4)
bonus_after_0 = Walk(bonus=lambda node, count: (node or ROOT) + 1)
any_parent = Walk(follows=_any_parent_of)
one_draft = Walk(most=1)
bonus_row = Walk(bonus=lambda node, count: max(0, node))
bonus_text = Walk(bonus=lambda node, count: 0)
bonus_last = Walk(bonus=lambda node, count: count)
slots_in_a_row = Walk(slots=lambda length, path, count: list(range(length + len(path))))
all_slots = Walk(slots=lambda length, path, count: list(range(length + count)))
slots_of_path = Walk(slots=lambda length, path, count: [length + node for node in path])
slots_early = Walk(slots=lambda length, path, count: [*range(length), *(length + n - 1 for n in path)])
slots_late = Walk(slots=lambda length, path, count: [*range(length), *(length + n + 1 for n in path)])
bonus_behind = Walk(
    slots=lambda length, path, count: [
        *range(length),
        *(length + n for n in path),
        length + (path[-1] if path else ROOT) + 1,
    ]
)
bonus_slot = Walk(
    slots=lambda length, path, count: [*range(length), *(length + n for n in path), length + count]
)

TOLD = (
    *(longest, own_row, bonus_row, bonus_text, bonus_last, slots_in_a_row, all_slots),
    *(slots_of_path, slots_early, slots_late, bonus_slot, bonus_behind, one_draft, any_parent),
)
DOUBTED = (first_branch,)
OF_A_LEVEL = (next_level, next_level_of_the_branch)
WHOLE = (never_a_leaf, four_levels, not_the_last_node)
