"""04.medusa_candidates: from what the heads say to the nodes of a tree and its mask."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.grading.compare import Close, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises import inputs
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

Choice = tuple[int, ...]
ROOT = -1

ASKS = r"""
Medusa needs no second model. When the target writes a token, $K$ small heads on the same hidden state guess
what follows *that* token: the first head the token right behind it, the second the one after, and so on. Each
head has a second and a third choice too, so the guesses make a **tree**, and one pass reads all of it (Cai et
al. 2024, section 2.1.2; chapter 4, *Candidates as a tree*).

A node is named by ranks, of which 0 is the likeliest: `(1,)` is the first head's second choice, and `(1, 0)`
below it the second head's first. The last rank says which token a node holds, and the number of ranks says
which head guessed it. The node without its last rank is its **parent**.

Write `medusa_candidates(logits, choices, length)`.

- `logits`: `float32` tensor of shape `(K, V)`: what each head says, the first head first. No two logits of
  a head are equal.
- `choices`: a list of nodes, at least one, each a tuple of ranks; in **any order**. None has more than $K$
  ranks.
- `length`: how many tokens the text has, at least 1. They stand at the positions 0 to `length - 1`.
- returns `(tokens, parents, positions, mask)`, tensors in which node $i$ is the one at place $i$ when all
  $N$ nodes are sorted: those with fewer ranks first, and those with as many by their ranks, `(0, 1)` before
  `(1, 0)`.
  - `tokens`: `int64`, shape `(N,)`: the token of each node.
  - `parents`: `int64`, shape `(N,)`: where the parent of each node stands, -1 for nodes that follow the
    text.
  - `positions`: `int64`, shape `(N,)`: nodes of one rank take the position behind the text, their children
    the next, and so on.
  - `mask`: `bool`, shape `(N, S)` with `S = length + N`: which keys each node sees, those of the text and
    then those of the nodes. It sees all of the text, its own ancestors and itself, and nothing else.

Raise a `ValueError` where the parent of a node is not in `choices`.

```python
>>> logits = torch.tensor([[0.1, 3.0, 2.0, 0.5], [4.0, 0.3, 0.2, 1.0]])
>>> tokens, parents, positions, mask = medusa_candidates(logits, [(0,), (1,), (0, 1), (1, 0)], length=2)
>>> tokens, parents, positions
(tensor([1, 2, 3, 0]), tensor([-1, -1, 0, 1]), tensor([2, 2, 3, 3]))
>>> mask.int()
tensor([[1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 1]], dtype=torch.int32)
```
"""

HINTS = (
    "Sort first, on a copy: sorted(choices, key=lambda c: (len(c), c)). Everything else follows from the "
    "tuple of a node: its head, its rank, its parent c[:-1], its depth.",
    "logits.argsort(dim=-1, descending=True) has all ranks of all heads: the token of node c stands there at "
    "[len(c) - 1, c[-1]]. A dict from tuples to places gives the parents.",
    "Node c sees node a if c[:len(a)] == a: then a lies on its path, or is c itself. To the left of these "
    "columns belong `length` columns of True.",
)

SIBLINGS = (
    "A node sees others that are not on its path. A mask that is causal by number, or by depth, mixes "
    "branches: no text has both of two siblings in it."
)
BY_INDEX = (
    "Positions count the nodes here. Siblings stand for the same place in the text, so they have the same "
    "position: the one behind the text, plus the depth of the parent."
)
FIRST_HEAD = "Every token is one of the first head's. A node with two ranks was guessed by the second head."
FIRST_RANK = "The first rank of a node says which branch it is in; its token is the one of its **last** rank."
NO_TEXT = "The nodes do not see the text. They follow it: `length` columns of True belong to the left."
NOT_ITSELF = "A node that does not see itself: its own key is written in the same pass, and it looks at it."
DESCENDANTS = "The mask is the wrong way round: rows are nodes that look, columns what they see."
TOO_FAR = (
    "The positions are one too high, or too low: the text ends at length - 1, so nodes of one rank stand at "
    "length."
)
BY_PATH = (
    "The nodes come branch by branch here. Sort by the number of ranks first: all of one rank, then all of "
    "two."
)
HINTS_AT = {
    "four levels": "A node sees all of its ancestors, not its parent alone.",
    "ranks left out": (
        "Not every rank is in the tree. Node (2,) holds the third choice also where (1,) is not a node: "
        "ranks are to be looked up, siblings not to be counted."
    ),
    "nodes in any order": "Sort the nodes; places of parents are places in the sorted order.",
    "a single node": "A tree may have one node: tokens has shape (1,), the mask (1, length + 1).",
    "a deep node without its parent": (
        "Every parent has to be there, whatever its depth: (0, 1) where (0, 1, 2) is a node. Look up all, "
        "and raise a ValueError where one is missing."
    ),
    "many heads and high ranks": (
        "There may be more than four heads, and ranks up to V - 1: rank all tokens of a head, and go up to "
        "the first ancestor, however many there are. Ranks are numbers, not texts: 12 comes after 2, and "
        "(1,) is no ancestor of (12, 0)."
    ),
    "an orphan deeper still": (
        "Every parent has to be there, at whatever depth: look up node[:-1] for each node."
    ),
    "a node without its parent": (
        "Nobody would have written the token that this node follows. Look up every parent, and raise a "
        "ValueError where it is missing."
    ),
}


def medusa_candidates(
    logits: Float[Tensor, "K V"], choices: list[Choice], length: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"], Bool[Tensor, "N S"]]:
    """The nodes of a tree in order, and what each sees."""
    return Build()(logits, choices, length)


def by_depth(choices: list[Choice]) -> list[Choice]:
    return sorted(choices, key=lambda choice: (len(choice), choice))


def on_path(node: Choice, other: Choice) -> bool:
    """Whether a node sees another: its ancestors and itself."""
    return node[: len(other)] == other


@dataclass(frozen=True)
class Build:
    """How the nodes are made; the fields are what mutants get wrong.

    Args:
        order: of the nodes.
        head, rank: whose guess the token of a node is, and which; the rank may look at all nodes.
        position: by the text's length, the node and its place.
        sees: whether a node sees another, each with its place.
        sees_text: what is seen of the text.
        checks: whether the parent of a node has to be there.
    """

    order: Callable = by_depth
    head: Callable = lambda node: len(node) - 1
    rank: Callable = lambda node, nodes: node[-1]
    position: Callable = lambda length, node, place: length + len(node) - 1
    sees: Callable = lambda node, other, place, other_place: on_path(node, other)
    sees_text: bool = True
    descending: bool = True
    checks: Callable = lambda node: len(node) > 1

    def __call__(self, logits, choices, length):
        nodes = self.order(choices)
        places = {node: place for place, node in enumerate(nodes)}
        if any(self.checks(node) and node[:-1] not in places for node in nodes):
            raise ValueError("the parent of a node is missing")
        ranked = logits.argsort(dim=-1, descending=self.descending)
        tokens = torch.stack([ranked[self.head(node), self.rank(node, nodes)] for node in nodes])
        parents = [places.get(node[:-1], ROOT) for node in nodes]
        positions = [self.position(length, node, place) for place, node in enumerate(nodes)]
        below = [[self.sees(node, other, *where) for other, where in row] for node, row in _pairs(nodes)]
        text = torch.full((len(nodes), length), self.sees_text)
        mask = torch.cat((text, torch.tensor(below)), 1)
        return tokens, torch.tensor(parents), torch.tensor(positions), mask


def _pairs(nodes):
    for place, node in enumerate(nodes):
        yield node, [(other, (place, other_place)) for other_place, other in enumerate(nodes)]


def cases(rng: random.Random) -> list[Case]:
    def case(label, levels, changed=lambda nodes: nodes, wrong=(), apart=(), raises=None, vocab=8):
        def draw():
            heads = levels + rng.randint(0, 1)
            nodes = changed(_tree(rng, levels))
            logits = inputs.logits(rng, heads, vocab + rng.randint(0, 2))
            return {"logits": logits, "choices": nodes, "length": rng.randint(1, 5)}

        arguments = draw() if raises else drawn.telling(draw, medusa_candidates, wrong, apart)
        return Case(arguments, label, raises=raises)

    def gaps(nodes):
        ranks = sorted(rng.sample(range(1, 7), 3))
        return by_depth([tuple(ranks[rank] for rank in node) for node in nodes])

    def high(nodes):
        """Ranks of one digit and of two, whose order is another as texts, and paths that are one text."""
        ranks = (1, 2, 12)
        return by_depth([tuple(ranks[rank] for rank in node) for node in nodes])

    def shuffled(nodes):
        return rng.sample(nodes, len(nodes))

    def orphaned(nodes, ranks=1):
        """Without a node of so many ranks that has children."""
        parents = [node for node in nodes if any(other[:-1] == node for other in nodes)]
        nodes.remove(rng.choice([node for node in parents if len(node) == ranks]))
        return nodes

    deep = rng.randint(6, 7)
    return [
        case("two levels", 2, wrong=DOUBTED, apart=TOLD),
        case("four levels", 4, wrong=(_parent_alone, _parent_by_root)),
        case("ranks left out", 2, gaps, wrong=(_counts_siblings,)),
        case("nodes in any order", 3, shuffled, wrong=(_as_given, _by_length, _parents_come_first)),
        case("a single node", 1, lambda nodes: [rng.choice(nodes)], wrong=(_squeezed,)),
        case("many heads and high ranks", deep, high, wrong=HIGH, vocab=13),
        case("a node without its parent", 3, orphaned, raises=ValueError),
        case("a deep node without its parent", 4, lambda nodes: orphaned(nodes, 2), raises=ValueError),
        case(
            "an orphan deeper still",
            deep,
            lambda nodes: orphaned(nodes, deep - 1),
            raises=ValueError,
            vocab=10,
        ),
    ]


def _tree(rng: random.Random, levels: int) -> list[Choice]:
    """Nodes in order, of so many levels, the ranks below a node without gaps; no more than a dozen or so."""
    last = [(rank,) for rank in range(rng.randint(2, 3))]
    nodes = list(last)
    for level in range(1, levels):
        most = 3 if level == 1 else 1
        last = [(*node, rank) for n, node in enumerate(last) for rank in range(rng.randint(n == 0, most))]
        nodes += last
    return nodes


_by_number = Build(sees=lambda node, other, place, other_place: other_place <= place)
_by_level = Build(sees=lambda node, other, place, other_place: len(other) < len(node) or place == other_place)
_by_index = Build(position=lambda length, node, place: length + place)
_too_far = Build(position=lambda length, node, place: length + len(node))
_first_head = Build(head=lambda node: 0)
_first_rank = Build(rank=lambda node, nodes: node[0])
_no_text = Build(sees_text=False)
_not_itself = Build(sees=lambda node, other, *places: node != other and on_path(node, other))
_descendants = Build(sees=lambda node, other, *places: on_path(other, node))
_by_path = Build(order=sorted)
_least_likely = Build(descending=False)
_parent_alone = Build(sees=lambda node, other, *places: other in (node, node[:-1]))
_as_given = Build(order=list)
_unchecked = Build(checks=lambda node: False)
_checks_two_ranks = Build(checks=lambda node: len(node) == 2)
_checks_above_two_ranks = Build(checks=lambda node: len(node) > 2)
_checks_up_to_three_ranks = Build(checks=lambda node: 1 < len(node) <= 3)
_three_ancestors = Build(
    sees=lambda node, other, *places: on_path(node, other) and len(node) - len(other) <= 3
)
_as_text = Build(order=lambda choices: sorted(choices, key=lambda choice: (len(choice), str(choice))))
_by_length = Build(order=lambda choices: sorted(choices, key=len))
_begins_alike = Build(sees=lambda node, other, *places: _digits(node).startswith(_digits(other)))
_counts_siblings = Build(
    rank=lambda node, nodes: sum(other[:-1] == node[:-1] and other < node for other in nodes)
)


def _digits(node):
    return "".join(map(str, node))


def _parents_by_text(logits, choices, length):
    tokens, _, *rest = medusa_candidates(logits, choices, length)
    places = {_digits(node): place for place, node in enumerate(by_depth(choices))}
    above = [_digits(node[:-1]) for node in by_depth(choices)]
    return tokens, torch.tensor([places.get(name, ROOT) for name in above]), *rest


def _parents_come_first(logits, choices, length):
    """Looks for a parent among the nodes that were given before."""
    if any(len(node) > 1 and node[:-1] not in choices[:place] for place, node in enumerate(choices)):
        raise ValueError("the parent of a node is missing")
    return medusa_candidates(logits, choices, length)


def _sorts_in_place(logits, choices, length):
    choices.sort(key=lambda choice: (len(choice), choice))
    return medusa_candidates(logits, choices, length)


def _seven_likeliest(logits, choices, length):
    """Ranks no more than seven tokens of each head."""
    likeliest = logits.topk(7).indices
    tokens = [likeliest[len(node) - 1, node[-1]] for node in by_depth(choices)]  # raises for rank 7
    return torch.stack(tokens), *medusa_candidates(logits, choices, length)[1:]


def _parent_by_root(logits, choices, length):
    """The first node a level above that has the same first rank."""
    nodes, (tokens, _, *rest) = by_depth(choices), medusa_candidates(logits, choices, length)
    named = [(len(node), node[0]) for node in nodes]
    above = [(size - 1, first) for size, first in named]
    return tokens, torch.tensor([named.index(name) if name in named else ROOT for name in above]), *rest


def _squeezed(logits, choices, length):
    """Takes away every axis of length 1."""
    return tuple(part.squeeze() for part in medusa_candidates(logits, choices, length))


def _without_an_orphan(logits, choices, length):
    """Leaves out what has no parent, and goes on."""
    kept = []
    for node in by_depth(choices):
        if len(node) == 1 or node[:-1] in kept:
            kept.append(node)
    return medusa_candidates(logits, kept, length)


TOLD = (
    *(_by_number, _by_level, _by_index, _too_far, _first_head, _first_rank, _no_text, _not_itself),
    *(_descendants, _by_path),
)
DOUBTED = (_least_likely,)
HIGH = (_three_ancestors, _as_text, _begins_alike, _parents_by_text)

EXERCISE = Exercise(
    name="04.medusa_candidates",
    function="medusa_candidates",
    title="A tree of guesses",
    points=10,
    minutes=20,
    level=3,
    asks=ASKS,
    signature="medusa_candidates(logits, choices, length)",
    cases=cases,
    reference=medusa_candidates,
    comparison=Parts(
        {
            "tokens": Close(axes=("node",)),
            "parents": Close(axes=("node",)),
            "positions": Close(axes=("node",)),
            "mask": Close(axes=("node", "column")),
        }
    ),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("lets a node see all before it", _by_number, "two levels", SIBLINGS),
        Mutant("lets a node see all that are less deep", _by_level, "two levels", SIBLINGS),
        Mutant("counts positions by node", _by_index, "two levels", BY_INDEX),
        Mutant("leaves a position out", _too_far, "two levels", TOO_FAR),
        Mutant("asks the first head alone", _first_head, "two levels", FIRST_HEAD),
        Mutant("takes a node's first rank", _first_rank, "two levels", FIRST_RANK),
        Mutant("hides the text", _no_text, "two levels", NO_TEXT),
        Mutant("hides a node from itself", _not_itself, "two levels", NOT_ITSELF),
        Mutant("lets a node see its descendants", _descendants, "two levels", DESCENDANTS),
        Mutant("goes branch by branch", _by_path, "two levels", BY_PATH),
        Mutant("takes the least likely", _least_likely, "two levels"),
        Mutant("lets a node see its parent alone", _parent_alone, "four levels"),
        Mutant("finds a parent by its first rank", _parent_by_root, "four levels"),
        Mutant("counts siblings instead of ranks", _counts_siblings, "ranks left out"),
        Mutant("takes the nodes as given", _as_given, "nodes in any order"),
        Mutant("sorts by the number of ranks alone", _by_length, "nodes in any order"),
        Mutant("looks for a parent in front", _parents_come_first, "nodes in any order"),
        Mutant("takes an orphan for a child of the text", _unchecked, "a node without its parent"),
        Mutant("leaves an orphan out", _without_an_orphan, "a node without its parent"),
        Mutant("looks for no parent of one rank", _checks_above_two_ranks, "a node without its parent"),
        Mutant("looks for parents of one rank alone", _checks_two_ranks, "a deep node without its parent"),
        Mutant("looks for parents of one and two ranks", _checks_up_to_three_ranks, "an orphan deeper still"),
        Mutant("ranks seven tokens", _seven_likeliest, "many heads and high ranks"),
        Mutant("lets a node see three ancestors", _three_ancestors, "many heads and high ranks"),
        Mutant("sorts ranks as texts", _as_text, "many heads and high ranks"),
        Mutant("finds a parent by its text", _parents_by_text, "many heads and high ranks"),
        Mutant("compares paths as texts", _begins_alike, "many heads and high ranks"),
        Mutant("drops an axis of one node", _squeezed, "a single node"),
        Mutant("sorts its input", _sorts_in_place, NoMutation().name),
    ),
)
