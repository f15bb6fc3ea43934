"""04.walk_tree: the path of a tree that stands, the bonus token, and what the cache keeps."""

from __future__ import annotations

import operator
import random

import torch

from llmcourse.grading.compare import Exact, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.medusa import drawn as trees
from llmcourse.grading.exercises.medusa import walks
from llmcourse.grading.exercises.medusa.walks import ROOT, walk_tree
from llmcourse.grading.exercises.speculative import drawn
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation

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
    "a draft of token 0": (
        "Token 0 is a token like any other, though 0 counts as false: a draft of it may be what is wanted."
    ),
    "a single node": (
        "A tree may have one node. It is node 0, it stands here, and the bonus token is what follows it."
    ),
    "nothing stands": "Where no draft is what the target wants, the path is empty; the bonus token is there.",
    "a whole branch stands": "From a leaf there is no way on: the bonus token is what follows the leaf.",
    "right behind one that fell": (
        "A node is what the target wants after its parent, but the parent fell: nobody will ever ask."
    ),
    "a cousin holds the token": (
        "The right token at the right level is not enough: only children of the last node that stands count."
    ),
    "not level by level": (
        "A node comes behind its parent, and no more is said of the order: its children need not be "
        "neighbours, and deeper nodes may come before them. Look at all nodes."
    ),
    "no nodes": "Without nodes a pass is an ordinary step: an empty path, one token, the text's slots.",
}


def cases(rng: random.Random) -> list[Case]:
    def grown(least=3, most=6, heir=-1):
        return trees.grown(rng, rng.randint(least, most), heir)

    def case(label, depth, tree=grown, wrong=(), apart=(), with_0=False, **said):
        """A tree in which a path of so many nodes stands.

        Args:
            tree: draws the parents of its nodes.
            with_0: whether some nodes hold token 0.
            said: further arguments of `said_along`.
        """

        def draw():
            parents = tree()
            tokens = trees.words(rng, parents, with_0)
            wanted = trees.said_along(rng, tokens, parents, depth, **said)
            logits = torch.stack([trees.favouring(rng, token) for token in wanted])
            arguments = {"logits": logits, "tokens": torch.tensor(tokens, dtype=torch.int64)}
            parents = torch.tensor(parents, dtype=torch.int64)
            return arguments | {"parents": parents, "length": rng.randint(3, 6)}

        return Case(drawn.telling(draw, walk_tree, wrong, apart), label)

    def any_order():
        return trees.in_any_order(rng, grown())

    def from_0():
        return grown(least=4, heir=0)

    def deep():
        return grown(least=4)

    whole = rng.randint(6, 8)
    return [
        case("a branch stands in part", 2, wrong=walks.DOUBTED, apart=walks.TOLD, begins=bool),
        case(
            "node 0 stands",
            rng.randint(2, 3),
            from_0,
            (walks.false_at_0, walks.again_from_0),
            begins=operator.not_,
        ),
        case("a draft of token 0", rng.randint(2, 3), deep, (walks.token_0_is_none,), with_0=True),
        case("nothing stands", 0, wrong=(walks.at_least_one, walks.bonus_last_for_none)),
        case("a whole branch stands", whole, lambda: grown(whole, whole), walks.WHOLE),
        case("a single node", 1, lambda: [ROOT], (walks.bonus_after_0,)),
        case("right behind one that fell", 1, wrong=(walks.over_a_fall, walks.most_matches), trap=True),
        case("a cousin holds the token", 2, wrong=walks.OF_A_LEVEL, cousin=True),
        case("not level by level", 2, any_order, (walks.in_one_piece, walks.up_to_the_next_level)),
        case("no nodes", 0, list),
    ]


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
        Mutant("takes the longest path", walks.longest, "a branch stands in part", LONGEST),
        Mutant("judges a node by its own row", walks.own_row, "a branch stands in part", OWN_ROW),
        Mutant("looks at tokens, not at parents", walks.any_parent, "a branch stands in part", ANY_PARENT),
        Mutant("reads the bonus token a row early", walks.bonus_row, "a branch stands in part", BONUS_ROW),
        Mutant(
            "reads the bonus token after the text", walks.bonus_text, "a branch stands in part", BONUS_TEXT
        ),
        Mutant(
            "reads the bonus token after the last node",
            walks.bonus_last,
            "a branch stands in part",
            BONUS_LAST,
        ),
        Mutant("keeps slots in a row", walks.slots_in_a_row, "a branch stands in part", SLOTS_IN_A_ROW),
        Mutant("keeps all slots", walks.all_slots, "a branch stands in part", ALL_SLOTS),
        Mutant("forgets the text", walks.slots_of_path, "a branch stands in part", NO_TEXT),
        Mutant("keeps a slot for the bonus token", walks.bonus_slot, "a branch stands in part", BONUS_SLOT),
        Mutant("keeps a slot behind the path", walks.bonus_behind, "a branch stands in part", BONUS_SLOT),
        Mutant("takes the slot before a node's", walks.slots_early, "a branch stands in part", SLOT_BESIDE),
        Mutant("takes the slot behind a node's", walks.slots_late, "a branch stands in part", SLOT_BESIDE),
        Mutant("follows one draft", walks.one_draft, "a branch stands in part", ONE_DRAFT),
        Mutant("follows eldest children alone", walks.first_branch, "a branch stands in part"),
        Mutant("takes node 0 for none", walks.false_at_0, "node 0 stands"),
        Mutant("begins again behind node 0", walks.again_from_0, "node 0 stands"),
        Mutant("takes token 0 for none", walks.token_0_is_none, "a draft of token 0"),
        Mutant("always takes a draft", walks.at_least_one, "nothing stands"),
        Mutant("reads the last row where nothing stands", walks.bonus_last_for_none, "nothing stands"),
        Mutant("stops before a leaf", walks.never_a_leaf, "a whole branch stands"),
        Mutant("goes four levels down", walks.four_levels, "a whole branch stands"),
        Mutant("does not look at the last node", walks.not_the_last_node, "a whole branch stands"),
        Mutant("reads the bonus token of the text behind node 0", walks.bonus_after_0, "a single node"),
        Mutant("drops an axis of one node", walks.squeezed, "a single node"),
        Mutant("passes over a fall", walks.over_a_fall, "right behind one that fell"),
        Mutant("counts what is right anywhere", walks.most_matches, "right behind one that fell"),
        Mutant("takes children for neighbours", walks.in_one_piece, "not level by level"),
        Mutant("stops at the next level", walks.up_to_the_next_level, "not level by level"),
        Mutant("needs a node", walks.needs_nodes, "no nodes"),
        Mutant("moves tokens in its input", walks.cuts_in_place, NoMutation().name),
    ),
)
