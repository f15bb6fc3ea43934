"""Candidate trees: which guesses of the heads are tried together.

A node is named by ranks: (0,) is the first head's likeliest token, (1, 0) the second head's likeliest behind
the first's second, and so on down (Cai et al. 2024, section 2.1.2). The heads do not see one another's
choices: node (1, 0) and node (0, 0) hold the same token, behind different ones.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.kernels.ranked_drafts import ranked_tokens
from llmcourse.speculative.arguments import require_tensor
from llmcourse.speculative.medusa.heads import HeadsConfig, check_depth
from llmcourse.speculative.tree import ROOT, DraftTree

Choice = tuple[int, ...]
MAX_NODES = 1024  # of a tree: a mask of a million entries; many more are a slip, not a plan


@dataclass(frozen=True)
class MedusaTree:
    """Some of the combinations of the heads' guesses, as a `DraftTree`.

    Attributes:
        choices: the nodes, in any order when made; then by depth, and siblings by rank, so that elders are
            the likelier ones.
        max_nodes: refuse a larger tree. Only looked at when the tree is made.

    Raises:
        TypeError: a node that is no tuple of integers.
        ValueError: a node without its parent, one given twice, an empty one, a rank below 0, or more nodes
            than allowed.
    """

    choices: Sequence[Choice]
    max_nodes: InitVar[int] = MAX_NODES

    def __post_init__(self, max_nodes: int):
        require_integer(1, "max_nodes", max_nodes, "allow one node or more")
        choices = _as_choices(self.choices, max_nodes)
        there = set(choices)
        remedy = "give each node once"
        require(len(there) == len(choices), "choices", "all different", _first_twice(choices), remedy)
        for choice in choices:
            parent = choice[:-1]
            remedy = f"add {parent}, or leave the node out"
            require(not parent or parent in there, "choices", "with the parent of each", choice, remedy)
        object.__setattr__(self, "choices", tuple(sorted(choices, key=lambda c: (len(c), c))))

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def depth(self) -> int:
        """How many heads it uses."""
        return max(map(len, self.choices), default=0)

    @property
    def widest(self) -> int:
        """How many of a head's likeliest tokens it uses at most."""
        return max(self.ranks, default=-1) + 1

    @property
    def heads(self) -> list[int]:
        """Of each node, the head whose guess it is, from 0 on."""
        return [len(choice) - 1 for choice in self.choices]

    @property
    def ranks(self) -> list[int]:
        """Of each node, which of that head's guesses it is, from 0 on."""
        return [choice[-1] for choice in self.choices]

    @cached_property
    def tree(self) -> DraftTree:
        """Which node follows which."""
        numbers = {choice: number for number, choice in enumerate(self.choices)}
        return DraftTree([numbers.get(choice[:-1], ROOT) for choice in self.choices])

    def check(self, config: HeadsConfig) -> None:
        """Refuses a tree that these heads cannot fill.

        Raises:
            ValueError: deeper than there are heads, or a rank past the vocabulary.
        """
        check_depth(self.depth, config)
        last, remedy = config.vocab_size - 1, "a head has no more tokens than the vocabulary"
        require(self.widest <= last + 1, "ranks", f"in [0, {last}]", self.widest - 1, remedy)

    def check_logits(self, logits: Tensor) -> None:
        """`check`, by what the heads said; raises ValueError also for another shape than (B, K, V)."""
        require_tensor("logits", logits)
        shape = tuple(logits.shape)
        good = logits.dim() == 3 and min(shape[1:]) > 0
        require(good, "logits", "of shape (B, K, V)", shape, "stack what each head says")
        self.check(HeadsConfig(shape[1], 1, 1, shape[2]))

    def tokens(self, logits: Float[Tensor, "B K V"]) -> Int[Tensor, "B N"]:
        """The token at each node: of head d, at depth d, the one of the node's last rank.

        Of tokens that are equally likely the lower has the lower rank.

        Args:
            logits: what each head says.

        Raises:
            ValueError: fewer heads than the tree is deep, or a vocabulary of fewer tokens than its ranks.
        """
        self.check_logits(logits)
        if not len(self):
            return torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
        best = ranked_tokens(logits[:, : self.depth], self.widest)  # (B, depth, widest)
        return best[:, self.heads, self.ranks]


def require_tree(tree: object) -> None:
    """Raises TypeError for what is no tree, such as a list of its nodes."""
    if not isinstance(tree, MedusaTree):
        found = type(tree).__name__
        raise TypeError(f"tree must be a MedusaTree, got {found}; make one with full, sparse or search")


def full(widths: Sequence[int], max_nodes: int = MAX_NODES) -> MedusaTree:
    """The Cartesian product of the likeliest tokens of each head: w₁ + w₁w₂ + w₁w₂w₃ + … nodes.

    Args:
        widths: how many of each head, at least 1.

    Raises:
        ValueError: no widths, one below 1, or more nodes than allowed; nothing is made then.
    """
    listed = isinstance(widths, Sequence) and not isinstance(widths, str)
    require(listed, "widths", "a list", repr(widths), "pass one as [width]")
    require(len(widths) > 0, "widths", "of one head or more", tuple(widths), "give a number for each head")
    for width in widths:
        require_integer(1, "widths", width, "leave out the heads that are not used")
    size = sum(itertools.accumulate(widths, lambda a, b: a * b))
    require(
        size <= max_nodes, "widths", f"such that at most {max_nodes} nodes come", size, "use smaller ones"
    )
    levels = [range(width) for width in widths]
    depths = range(1, len(widths) + 1)
    nodes = [node for depth in depths for node in itertools.product(*levels[:depth])]
    return MedusaTree(nodes, max_nodes)


def sparse(num_heads: int = 4, width: int = 4, max_nodes: int = MAX_NODES) -> MedusaTree:
    """A tree for heads of which nothing is known: all nodes with Π (rank + 1) ≤ width.

    It is what is likeliest if a head's token of rank r is right with a chance in proportion to 1 / (r + 1)
    (Zipf's law); `search` knows better. With 4 heads, width 4 gives 44 nodes.

    Raises:
        ValueError: a number below 1, or more nodes than allowed.
    """
    require_integer(1, "num_heads", num_heads, "use one head or more")
    require_integer(1, "width", width, "use 1 for a chain")
    allowed = f"such that at most {max_nodes} nodes come"
    require(width <= max_nodes, "width", allowed, width, "lower it")
    nodes, last = [], [((), 1)]
    for _ in range(num_heads):
        last = [((*node, r), size * (r + 1)) for node, size in last for r in range(width // size)]
        nodes += [node for node, _ in last]
        require(
            len(nodes) <= max_nodes, "width", f"such that at most {max_nodes} nodes come", width, "lower it"
        )
    return MedusaTree(nodes, max_nodes)


def likeliest(accuracies: Sequence[Sequence[float]], num_nodes: int) -> list[Choice]:
    """The nodes with the largest products of accuracies, each after its parent; see `search`."""
    found: list[Choice] = []
    # A child is never likelier than its parent, so that the best of all nodes is the best of those at hand.
    heap = [(-chance, 1, (rank,)) for rank, chance in enumerate(accuracies[0]) if chance > 0]
    heapq.heapify(heap)
    while heap and len(found) < num_nodes:
        chance, depth, node = heapq.heappop(heap)
        found.append(node)
        if depth < len(accuracies):
            children = enumerate(accuracies[depth])
            for rank, own in children:
                if own > 0:
                    heapq.heappush(heap, (chance * own, depth + 1, (*node, rank)))
    return found


def product_of(choice: Choice, accuracies: Sequence[Sequence[float]]) -> float:
    """The chance that all of a node's path is right, if heads are right or wrong apart from one another."""
    return math.prod(accuracies[depth][rank] for depth, rank in enumerate(choice))


def _as_choices(choices: object, max_nodes: int) -> list[Choice]:
    remedy = "give tuples of ranks, as [(0,), (1,), (0, 0)]"
    if not isinstance(choices, Iterable) or isinstance(choices, str):
        raise TypeError(f"choices must be a list of tuples, got {choices!r:.40}; {remedy}")
    found = list(itertools.islice(choices, max_nodes + 1))
    allowed = f"of at most {max_nodes} nodes"
    require(len(found) <= max_nodes, "choices", allowed, "more", "prune the tree, or raise max_nodes")
    for node in found:
        whole = isinstance(node, Sequence) and all(
            isinstance(rank, Integral) and not isinstance(rank, bool) for rank in node
        )
        if not whole or isinstance(node, str):
            raise TypeError(f"choices must be tuples of integers, got {node!r:.40}; {remedy}")
        require(len(node) > 0, "choices", "without the root", "()", "the text itself is no node")
        require(min(node) >= 0, "ranks", "at least 0", tuple(node), "0 is a head's likeliest token")
    return [tuple(map(int, node)) for node in found]


def _first_twice(choices: Sequence[Choice]) -> Choice | None:
    seen: set[Choice] = set()
    for choice in choices:
        if choice in seen:
            return choice
        seen.add(choice)
    return None
