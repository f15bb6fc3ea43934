"""Drafts that branch: several ways in which a text may go on, read by the target in one pass.

A chain is lost from its first wrong token on. A tree proposes a second choice beside it, with drafts of its
own below: node i is a token that may follow its parent's, and each path from the root, which is the text so
far, is a draft. In tree attention a node sees the text and its own ancestors, and stands at its depth behind
the text, whatever lies beside it. (SpecInfer, Miao et al. 2024, section 4; Medusa, Cai et al. 2024,
section 2.1.2.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from numbers import Integral
from operator import index

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.decoding.source import UncachedLogits
from llmcourse.model import Decoder

ROOT = -1


@dataclass(frozen=True)
class DraftTree:
    """Which draft follows which. Parents stand before their children, so the first n nodes are a tree too.

    Attributes:
        parents: of each node, the node before it on its path; -1 for those that follow the text itself.
        max_nodes: refuse a larger tree; None for any size. Only looked at when the tree is made.

    Raises:
        TypeError: a parent that is no integer.
        ValueError: a parent that is not an earlier node, as in a cycle, or more nodes than allowed.
    """

    parents: Sequence[int]
    max_nodes: InitVar[int | None] = None

    def __post_init__(self, max_nodes: int | None):
        object.__setattr__(self, "parents", _indices(self.parents))
        if max_nodes is not None:
            require_integer(0, "max_nodes", max_nodes, "use None for any size")
            allowed = f"of at most {max_nodes} nodes"
            require(len(self) <= max_nodes, "parents", allowed, len(self), "prune the tree, or allow more")
        remedy = "number each node after its parent, and give -1 to those that follow the text"
        for node, parent in enumerate(self.parents):
            earlier = f"an earlier node, in [-1, {node - 1}]"
            require(ROOT <= parent < node, f"parents at {node}", earlier, parent, remedy)

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it, as drafts of a step did so far."""
        return self.parents == tuple(range(ROOT, len(self) - 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """How many tokens behind the text's last one each node stands: 1 for the root's children."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to this one; none for the root, -1.

        Raises:
            ValueError: no node of the tree.
        """
        last, remedy = len(self) - 1, "use -1 for the root"
        allowed, inside = f"an integer in [-1, {last}]", lambda number: ROOT <= number <= last
        require_number(inside, "node", allowed, node, remedy, kind=Integral)
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return tuple(reversed(nodes))

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """From the root to every leaf, in the leaves' order: the chains that the tree stands for."""
        return tuple(self.path(node) for node in range(len(self)) if node not in self.parents)

    def ancestors(self, device: torch.device | str = "cpu") -> Bool[Tensor, "N N"]:
        """Which nodes each node sees, itself among them: the tree's part of the mask of tree attention.

        To the left of it belong columns of True, for the text that all nodes see.
        """
        mask = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                mask[node] |= mask[parent]
        return mask.to(device)


def _indices(parents: object) -> tuple[int, ...]:
    try:
        return tuple(map(index, parents))
    except TypeError as error:
        remedy = "give the parent of each node, as [-1, 0, 0]; chain(n) has n nodes in a row"
        raise TypeError(f"parents must be a list of integers, got {parents!r:.40}; {remedy}") from error


def chain(gamma: int) -> DraftTree:
    """The tree without branches: γ drafts, one after the other.

    Raises:
        ValueError: γ is no integer of at least 0.
    """
    require_integer(0, "gamma", gamma, "use 0 for no drafts")
    return DraftTree(range(ROOT, gamma - 1))


def read_tree(
    model: Decoder, texts: Sequence[Sequence[int]], drafts: Int[Tensor, "B N"], tree: DraftTree
) -> Float[Tensor, "B T V"]:  # T = N + 1
    """The logits after each text and after each of its nodes: the slow truth of tree attention.

    Every node is a text of its own, its path written behind the text, and the model reads them all without
    a cache: N + 1 texts where tree attention reads one.

    Args:
        texts: at least a token each; they may differ in length.
        drafts: the token at each node.

    Returns:
        At 0 the logits after the text, at i + 1 those after node i, as `walk` and `verify_tree` take them.

    Raises:
        ValueError: drafts of another shape, an empty text, one that leaves the tree too little of the
            context, or a token outside the vocabulary.
    """
    shape = (len(texts), len(tree))
    remedy = "give a token for every node of every text's tree"
    require(tuple(drafts.shape) == shape, "drafts", f"of shape {shape}", tuple(drafts.shape), remedy)
    most = model.config.max_position_embeddings - max(tree.depths, default=0)
    for row, text in enumerate(texts):
        remedy = "shorten it, or prune the tree's deepest nodes"
        require(1 <= len(text) <= most, f"texts' length at {row}", f"in [1, {most}]", len(text), remedy)
    paths = [tree.path(node) for node in range(ROOT, len(tree))]
    rows = [
        [*text, *(tokens[node] for node in path)]
        for text, tokens in zip(texts, drafts.tolist(), strict=True)
        for path in paths
    ]
    logits = UncachedLogits(model).start(rows, max(map(len, rows)))
    return logits.unflatten(0, (len(texts), len(paths)))
