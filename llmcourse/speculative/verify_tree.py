"""The acceptance rule down a tree of drafts: a second choice is judged by what the first one left over.

At a node the children are tried in their order against what is left of the target's distribution there.
With r₀ = p, child i with token x_i ~ q_i stands with probability min(1, r_{i−1}(x_i) / q_i(x_i)), and its own
children are next. Where it falls, it takes its share with it:

    r_i(x) = max(0, r_{i−1}(x) − q_i(x)) / Σ_x' max(0, r_{i−1}(x') − q_i(x'))

Where no child stands, the target's own token is drawn from the last r. Each round leaves the distribution as
it is, by the argument of `verify`, so that all of them do. (SpecInfer, Miao et al. 2024, section 4.3.)
A chain is the tree with one round at each node, and `verify_drafts` its verdict.

Greedy decoding needs no chance: `walk` goes where the target goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llmcourse.decoding.errors import require
from llmcourse.decoding.sampling import greedy, in_float64, pick
from llmcourse.speculative.arguments import check_shapes, check_values, require_tensor
from llmcourse.speculative.tree import ROOT, DraftTree
from llmcourse.speculative.verify import accepts, residual


@dataclass(frozen=True)
class TreeVerdict:
    """What became of each row's tree.

    Attributes:
        last_nodes: where the accepted path ends; -1 where no draft stands.
        next_tokens: the one token after it, from the target.
    """

    last_nodes: Int[Tensor, " B"]
    next_tokens: Int[Tensor, " B"]

    def emitted(self, drafts: Int[Tensor, "B N"], tree: DraftTree) -> list[list[int]]:
        """The text that each row gained, its path and a token; waits for the device."""
        rows = zip(drafts.tolist(), self.last_nodes.tolist(), self.next_tokens.tolist(), strict=True)
        return [[*(row[node] for node in tree.path(last)), token] for row, last, token in rows]


def walk(
    p: Float[Tensor, "B T V"],  # T = N + 1
    drafts: Int[Tensor, "B N"],
    tree: DraftTree,
    num_drafts: Int[Tensor, " B"] | None = None,
) -> TreeVerdict:
    """Greedy: the longest path whose tokens are all the target's likeliest, and its likeliest after it.

    The text is the one that greedy decoding of the target writes. Siblings may hold the same token: the
    longest path below any of them is taken, the first of equally long ones.

    Args:
        p: the target's distribution, or its logits, after the text and after each node.
        drafts: the token at each node.
        num_drafts: in [0, N], for rows that use only the first nodes of the tree; None for all.

    Raises:
        ValueError: shapes that do not fit one another, or a tree of another size.
    """
    require_tensor("p", p)
    require_tensor("drafts", drafts, whole=True)
    require(drafts.dim() == 2, "drafts", "of shape (B, N)", tuple(drafts.shape), "give a token for each node")
    batch, num_nodes = drafts.shape
    wanted, remedy = (batch, num_nodes + 1), "stack the target's after the text and after each node"
    good = p.dim() == 3 and tuple(p.shape[:2]) == wanted and p.shape[2] > 0
    require(good, "p", f"of shape {wanted} and V", tuple(p.shape), remedy)
    require(not p.isnan().any(), "p", "no NaN", "one or more", "check the target's logits")
    _check_size(tree, num_nodes)
    if num_drafts is not None:
        require_tensor("num_drafts", num_drafts, whole=True)
        found, remedy = tuple(num_drafts.shape), "count the nodes of each row"
        require(found == (batch,), "num_drafts", f"of shape ({batch},)", found, remedy)
        inside = bool(((num_drafts >= 0) & (num_drafts <= num_nodes)).all())
        require(inside, "num_drafts", f"in [0, {num_nodes}]", num_drafts.tolist(), remedy)
    best, device = greedy(p), drafts.device  # (B, T)
    before = torch.tensor(tree.parents, dtype=torch.long, device=device) + 1  # where p has each node's parent
    follows = drafts == best[:, before]
    if num_drafts is not None:
        follows &= torch.arange(num_nodes, device=device) < num_drafts[:, None]
    stands = (follows[:, None] | ~tree.ancestors(device)).all(-1)  # (B, N): the whole path does
    lengths = stands * torch.tensor(tree.depths, dtype=torch.long, device=device)
    last = pad(lengths, (1, 0)).argmax(-1) + ROOT  # the root, of length 0, is always there
    return TreeVerdict(last, best.gather(1, last[:, None] + 1)[:, 0])


def verify_tree(
    p: Float[Tensor, "B T V"],  # T = N + 1
    q: Float[Tensor, "B N V"],
    drafts: Int[Tensor, "B N"],
    uniform: Float[Tensor, "B T"],
    tree: DraftTree,
    num_drafts: Int[Tensor, " B"] | None = None,
    *,
    trusted: bool = False,
) -> TreeVerdict:
    """Which path of each row's tree stands, and the target's token after it: the text is the target's.

    Both sides are the distributions that tokens are really drawn from, as `verify_drafts` takes them, those
    of p after the penalties of a node's own path.

    Args:
        p: the target's distribution after the text, and after each node.
        q: what each node's token was drawn from. It may depend on the tokens of all nodes before it, but on
            none after it: siblings drawn alike all have the same q; those drawn without replacement have
            their elder siblings' tokens at zero and the rest renormalised; the k likeliest of a head are
            certain, each a point mass (`distributions.point_masses`).
        drafts: the token at each node.
        uniform: independent numbers in [0, 1): one for each node, the last for the token after them.
        tree: which node follows which.
        num_drafts: in [0, N], for rows that use only the first nodes of the tree; None for all. What p, q
            and drafts hold past a row's own may be anything.
        trusted: leaves out the checks of values, for which a GPU must be waited for.

    Raises:
        ValueError: as `verify_drafts`, or a tree of another size.
    """
    check_shapes(p, q, drafts, uniform, num_drafts)
    batch, num_nodes = drafts.shape
    _check_size(tree, num_nodes)
    if num_drafts is None:
        num_drafts = torch.full((batch,), num_nodes, device=drafts.device)
    if not trusted:
        check_values(p, q, drafts, uniform, num_drafts)
    left = in_float64(p[:, 0])
    tokens, uniform, counts = (values.to(left.device) for values in (drafts, uniform, num_drafts))
    uniform, here = in_float64(uniform), torch.full_like(counts, ROOT)
    # Along a path and among siblings the numbers of the nodes grow: one pass meets them in their order.
    for node, parent in enumerate(tree.parents):
        tried = (here == parent) & (node < counts)
        q_node, token = in_float64(q[:, node]), tokens[:, node].masked_fill(~tried, 0)[:, None]
        left_token, q_token = (side.gather(1, token)[:, 0] for side in (left, q_node))
        stands = tried & accepts(left_token, q_token, uniform[:, node])
        left = torch.where((tried & ~stands)[:, None], residual(left, q_node), left)
        left = torch.where(stands[:, None], in_float64(p[:, node + 1]), left)
        here = here.masked_fill(stands, node)
    return TreeVerdict(here.to(drafts.device), pick(left, uniform[:, -1]).to(drafts.device))


def _check_size(tree: DraftTree, num_nodes: int) -> None:
    remedy = "pass the tree in which they were proposed"
    require(isinstance(tree, DraftTree), "tree", "a DraftTree", type(tree).__name__, remedy)
    require(len(tree) == num_nodes, "tree", f"of {num_nodes} nodes as drafts are", len(tree), remedy)
