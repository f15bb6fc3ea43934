"""04.walk_tree: the path of a tree that stands, the bonus token, and what the cache keeps."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.compare import Exact, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.medusa import drawn as trees
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

ROOT = -1  # the text, as a parent

ASKS = r"""
The target has read the text and, in the same pass, all nodes of a tree of drafts. Greedy verification goes
down from the text: of the nodes that follow it, the one **stands** that holds the target's likeliest token
there; of that node's children, again the one that holds the target's likeliest token after it; and so on,
until none does. What the target would have written there comes last, for nothing: the **bonus** token. So
the text is the one that the target alone writes greedily (chapter 4, *Three verdicts, and the clock*).

All keys of the pass are in the cache now. Those of nodes off the path have to go: nobody wrote these
tokens.

Write `walk_tree(logits, tokens, parents, length)`.

- `logits`: `float32` tensor of shape `(N + 1, V)` for $N$ nodes: row 0 is what the target says after the
  text, row $i + 1$ what it says after node $i$. Each row has one largest number.
- `tokens`: `int64` tensor of shape `(N,)`: the token of each node. Two children of one node never hold the
  same, nodes elsewhere may.
- `parents`: `int64` tensor of shape `(N,)`: the parent of each node, a node before it, or -1 for the text
  itself.
- `length`: how many tokens the text has. They lie in the slots 0 to `length - 1` of the cache, node $i$ in
  slot `length + i`.
- returns `(path, bonus, slots)`: the nodes that stand, from the text on, a list; the token after them, an
  int; and the slots that are kept, those of the text and of the path, a list that rises. The bonus token
  has not been read, and has no slot yet.

A tree may have any number of levels. There may be a single node, or none at all, $N = 0$.

```python
>>> logits = torch.nn.functional.one_hot(torch.tensor([1, 0, 2, 1, 0])).float()     # likeliest after each
>>> tokens, parents = torch.tensor([1, 2, 2, 0]), torch.tensor([-1, -1, 0, 0])
>>> walk_tree(logits, tokens, parents, length=3)      # node 0 holds 1; then 0 is wanted, which node 3 holds
([0, 3], 0, [0, 1, 2, 3, 6])
```
"""

HINTS = (
    "Keep one number, the node at which you are; -1 is the text. The target's word after node i is row i + 1 "
    "of the logits, which fits -1 as well.",
    "In a loop: wanted = int(logits[node + 1].argmax()). Look for a node whose parent is `node` and whose "
    "token is `wanted`. If there is one, go there; if not, `wanted` is the bonus token.",
    "The slots: [*range(length), *(length + node for node in path)].",
)

LONGEST = (
    "That is a long path, but not one that stands: some node on it is not what the target would have "
    "written. Of the paths only those count whose every token is the target's."
)
OWN_ROW = (
    "A node was judged by what the target says after it. Whether a node stands is said after its **parent**: "
    "row parent + 1."
)
BONUS_ROW = (
    "The bonus token is read at the wrong row. Row 0 is the text, so what follows node i is in row i + "
    "1, and the bonus follows the last node that stands."
)
BONUS_TEXT = (
    "That bonus token follows the text, not the path. Where drafts stand, ask after the last of them."
)
BONUS_LAST = "That bonus token follows the last node of the tree, which need not be the last that stands."
SLOTS_IN_A_ROW = (
    "As many slots are kept as there are tokens, but not the ones that hold them: node i lies in slot "
    "length + i, whatever its depth."
)
ALL_SLOTS = "All slots are kept, those of fallen nodes among them: later tokens would look at them."
NO_TEXT = "The slots of the text are kept too: 0 to length - 1, and those of the path behind them."
SLOT_BESIDE = "A slot beside a node's own: node i lies in slot length + i, whatever its depth."
BONUS_SLOT = "A slot is kept for the bonus token, which has not been read: the cache does not hold it."
ONE_DRAFT = "Only one node was followed. Its children are next, as long as one of them stands."
ANY_PARENT = (
    "The node that was taken holds the right token, but behind another node: the same token may be "
    "guessed in several branches. Only children of the last node that stands count."
)
HINTS_AT = {
    "node 0 stands": (
        "Node 0 is a node like any other, though 0 counts as false: ask whether there is no node with "
        "`is None` or `== -1`, not with `not node`."
    ),
    "a single node": (
        "A tree may have one node. It is node 0, it stands here, and the bonus token is what follows it."
    ),
    "nothing stands": "Where no draft is what the target wants, the path is empty; the bonus token is there.",
    "a whole branch stands": "From a leaf there is no way on: the bonus token is what follows the leaf.",
    "right behind one that fell": (
        "A node is what the target wants after its parent, but the parent fell: nobody will ever ask."
    ),
    "not level by level": (
        "A node comes behind its parent, and no more is said of the order: its children need not be "
        "neighbours, and deeper nodes may come before them. Look at all nodes."
    ),
    "no nodes": "Without nodes a pass is an ordinary step: an empty path, one token, the text's slots.",
}


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


def cases(rng: random.Random) -> list[Case]:
    def grown(least=3, most=6, heir=-1):
        return trees.grown(rng, rng.randint(least, most), heir)

    def case(label, depth, tree=grown, wrong=(), apart=(), trap=False, begins=lambda node: True):
        """A tree in which a path of so many nodes stands.

        Args:
            tree: draws the parents of its nodes.
            trap: whether some nodes are right behind one that fell.
            begins: whether a node may be the first of the path.
        """

        def draw():
            parents = tree()
            tokens = trees.words(rng, parents)
            wanted = trees.said_along(rng, tokens, parents, depth, trap, begins)
            logits = torch.stack([trees.favouring(rng, token) for token in wanted])
            arguments = {"logits": logits, "tokens": torch.tensor(tokens, dtype=torch.int64)}
            parents = torch.tensor(parents, dtype=torch.int64)
            return arguments | {"parents": parents, "length": rng.randint(3, 6)}

        return Case(drawn.telling(draw, walk_tree, wrong, apart), label)

    def any_order():
        return trees.in_any_order(rng, grown())

    def from_0():
        return grown(least=4, heir=0)

    whole = rng.randint(5, 7)
    return [
        case("a branch stands in part", 2, wrong=DOUBTED, apart=TOLD, begins=bool),
        case("node 0 stands", rng.randint(2, 3), from_0, (_false_at_0, _again_from_0), begins=operator.not_),
        case("nothing stands", 0, wrong=(_at_least_one,)),
        case("a whole branch stands", whole, lambda: grown(whole, whole), (_never_a_leaf, _four_levels)),
        case("a single node", 1, lambda: [ROOT], (_bonus_after_0,)),
        case("right behind one that fell", 1, wrong=(_over_a_fall, _most_matches), trap=True),
        case("not level by level", 2, any_order, (_in_one_piece, _up_to_the_next_level)),
        case("no nodes", 0, list),
    ]


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


def _longest(logits, tokens, parents, length):
    paths = [_path_to(node, parents) for node in range(len(tokens))]
    return _from(max(paths, key=len, default=[]), logits, length)


def _most_matches(logits, tokens, parents, length):
    """The path on which most tokens are what the target wants, wherever on it one fell."""
    best = logits.argmax(-1)
    paths = [[], *(_path_to(node, parents) for node in range(len(tokens)))]
    right = [sum(int(tokens[n] == best[parents[n] + 1]) for n in path) for path in paths]
    return _from(paths[right.index(max(right))], logits, length)


def _over_a_fall(logits, tokens, parents, length):
    """To the deepest node that is right by itself."""
    best = logits.argmax(-1)
    nodes = [ROOT, *(n for n in range(len(tokens)) if tokens[n] == best[parents[n] + 1])]
    paths = [_path_to(node, parents) for node in nodes]
    return _from(max(paths, key=len), logits, length)


def _own_row(logits, tokens, parents, length):
    best, path, node = logits.argmax(-1).tolist(), [], ROOT
    while True:
        below = [n for n, parent in enumerate(parents.tolist()) if parent == node]
        right = [n for n in below if best[n + 1] == tokens[n]]
        if not right:
            return _from(path, logits, length)
        node = right[0]
        path.append(node)


def _first_branch(logits, tokens, parents, length):
    """Follows the likeliest guess of the heads alone, as a chain of drafts."""
    best, path, node = logits.argmax(-1).tolist(), [], ROOT
    while True:
        below = [n for n, parent in enumerate(parents.tolist()) if parent == node][:1]
        if not below or int(tokens[below[0]]) != best[node + 1]:
            return _from(path, logits, length)
        node = below[0]
        path.append(node)


def _at_least_one(logits, tokens, parents, length):
    path, bonus, slots = walk_tree(logits, tokens, parents, length)
    return _from([0], logits, length) if not path and len(tokens) else (path, bonus, slots)


def _never_a_leaf(logits, tokens, parents, length):
    path, bonus, slots = walk_tree(logits, tokens, parents, length)
    leaf = bool(path) and path[-1] not in parents.tolist()
    return _from(path[:-1], logits, length) if leaf else (path, bonus, slots)


def _needs_nodes(logits, tokens, parents, length):
    nodes = range(int(parents.max()) + 1)  # raises without any
    assert nodes is not None
    return walk_tree(logits, tokens, parents, length)


def _cuts_in_place(logits, tokens, parents, length):
    result = walk_tree(logits, tokens, parents, length)
    tokens[: len(result[0])] = tokens[result[0]]
    return result


def _again_from_0(logits, tokens, parents, length):
    """Takes a path that ends at node 0 for one that is empty, for as many turns as there are nodes."""
    best, path = logits.argmax(-1).tolist(), []
    for _ in range(len(tokens)):
        node = path[-1] if path and path[-1] else ROOT
        found = children(best[node + 1], node, tokens.tolist(), parents.tolist())
        if not found:
            break
        path.append(found[0])
    return _from(path, logits, length)


def _squeezed(logits, tokens, parents, length):
    """Takes away every axis of length 1."""
    zip(tokens.squeeze().tolist(), parents.squeeze().tolist(), strict=True)  # raises for one number
    return walk_tree(logits, tokens, parents, length)


def _but_0(wanted, node, tokens, parents):
    """`if not child: break`, as if 0 were none."""
    return [child for child in children(wanted, node, tokens, parents) if child]


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


_in_one_piece = Walk(follows=_in_one_piece_from_the_first)
_up_to_the_next_level = Walk(follows=_of_the_next_level)
_false_at_0 = Walk(follows=_but_0)
_four_levels = Walk(most=4)
_bonus_after_0 = Walk(bonus=lambda node, count: (node or ROOT) + 1)
_any_parent = Walk(follows=_any_parent_of)
_one_draft = Walk(most=1)
_bonus_row = Walk(bonus=lambda node, count: max(0, node))
_bonus_text = Walk(bonus=lambda node, count: 0)
_bonus_last = Walk(bonus=lambda node, count: count)
_slots_in_a_row = Walk(slots=lambda length, path, count: list(range(length + len(path))))
_all_slots = Walk(slots=lambda length, path, count: list(range(length + count)))
_slots_of_path = Walk(slots=lambda length, path, count: [length + node for node in path])
_slots_early = Walk(slots=lambda length, path, count: [*range(length), *(length + n - 1 for n in path)])
_slots_late = Walk(slots=lambda length, path, count: [*range(length), *(length + n + 1 for n in path)])
_bonus_behind = Walk(
    slots=lambda length, path, count: [*Walk.slots(length, path, count), length + [ROOT, *path][-1] + 1]
)
_bonus_slot = Walk(slots=lambda length, path, count: [*Walk.slots(length, path, count), length + count])

TOLD = (
    *(_longest, _own_row, _bonus_row, _bonus_text, _bonus_last, _slots_in_a_row, _all_slots),
    *(_slots_of_path, _slots_early, _slots_late, _bonus_slot, _bonus_behind, _one_draft, _any_parent),
)
DOUBTED = (_first_branch,)

EXERCISE = Exercise(
    name="04.walk_tree",
    function="walk_tree",
    title="The path that stands",
    points=10,
    minutes=20,
    level=4,
    asks=ASKS,
    signature="walk_tree(logits, tokens, parents, length)",
    cases=cases,
    reference=walk_tree,
    comparison=Parts({"path": Exact("node"), "bonus": Exact(), "slots": Exact("slot")}),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes the longest path", _longest, "a branch stands in part", LONGEST),
        Mutant("judges a node by its own row", _own_row, "a branch stands in part", OWN_ROW),
        Mutant("looks at tokens, not at parents", _any_parent, "a branch stands in part", ANY_PARENT),
        Mutant("reads the bonus token a row early", _bonus_row, "a branch stands in part", BONUS_ROW),
        Mutant("reads the bonus token after the text", _bonus_text, "a branch stands in part", BONUS_TEXT),
        Mutant(
            "reads the bonus token after the last node", _bonus_last, "a branch stands in part", BONUS_LAST
        ),
        Mutant("keeps slots in a row", _slots_in_a_row, "a branch stands in part", SLOTS_IN_A_ROW),
        Mutant("keeps all slots", _all_slots, "a branch stands in part", ALL_SLOTS),
        Mutant("forgets the text", _slots_of_path, "a branch stands in part", NO_TEXT),
        Mutant("keeps a slot for the bonus token", _bonus_slot, "a branch stands in part", BONUS_SLOT),
        Mutant("keeps a slot behind the path", _bonus_behind, "a branch stands in part", BONUS_SLOT),
        Mutant("takes the slot before a node's", _slots_early, "a branch stands in part", SLOT_BESIDE),
        Mutant("takes the slot behind a node's", _slots_late, "a branch stands in part", SLOT_BESIDE),
        Mutant("follows one draft", _one_draft, "a branch stands in part", ONE_DRAFT),
        Mutant("follows eldest children alone", _first_branch, "a branch stands in part"),
        Mutant("takes node 0 for none", _false_at_0, "node 0 stands"),
        Mutant("begins again behind node 0", _again_from_0, "node 0 stands"),
        Mutant("always takes a draft", _at_least_one, "nothing stands"),
        Mutant("stops before a leaf", _never_a_leaf, "a whole branch stands"),
        Mutant("goes four levels down", _four_levels, "a whole branch stands"),
        Mutant("reads the bonus token of the text behind node 0", _bonus_after_0, "a single node"),
        Mutant("drops an axis of one node", _squeezed, "a single node"),
        Mutant("passes over a fall", _over_a_fall, "right behind one that fell"),
        Mutant("counts what is right anywhere", _most_matches, "right behind one that fell"),
        Mutant("takes children for neighbours", _in_one_piece, "not level by level"),
        Mutant("stops at the next level", _up_to_the_next_level, "not level by level"),
        Mutant("needs a node", _needs_nodes, "no nodes"),
        Mutant("moves tokens in its input", _cuts_in_place, NoMutation().name),
    ),
)
