"""From what the heads say to the tokens of a tree's nodes, and to the q that they were drawn from.

ranked   the node of rank r is the head's token of rank r: certain, q a point mass
drawn    the r-th node below a parent is the r-th draw from the head, without replacement: of its q the
         tokens of elder siblings are taken out, and the rest is renormalised

Both keep a text's distribution under `verify_tree`, which only asks that q be what was drawn from, and that
it depend on no later node. (Medusa proposes the ranked. Trees of tokens that are drawn are SpecInfer's, Miao
et al. 2024, section 4.3; without replacement Jeon et al. 2024, "Recursive Speculative Decoding".)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.decoding.sampling import pick
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.medusa.candidates import MedusaTree


def ranked(tree: MedusaTree, logits: Float[Tensor, "B K V"]) -> Draft:
    """The likeliest tokens of each head, as the tree names them."""
    tokens = tree.tokens(logits)
    return Draft(tokens, _all_nodes(tokens), None, tree.tree)


def drawn(
    tree: MedusaTree,
    logits: Float[Tensor, "B K V"],
    history: History,
    processors: Sequence[Processor],
    points: Float[Tensor, "B N"],
) -> Draft:
    """Tokens drawn from the heads' distributions; pure.

    Args:
        logits: what each head says, at least as many as the tree is deep.
        history, processors: the texts and the target's own settings. They see the text alone, not the nodes
            above one: heads do not either.
        points: numbers in [0, 1), one for each node.
    """
    tree.check_logits(logits)
    heads = [widen(apply(processors, widen(head), history)).softmax(-1) for head in logits.unbind(1)]
    tokens: list[Tensor] = []
    q: list[Tensor] = []
    for node, (choice, parent) in enumerate(zip(tree.choices, tree.tree.parents, strict=True)):
        elders = [tokens[other] for other in range(node) if tree.tree.parents[other] == parent]
        own = without(heads[len(choice) - 1], elders)
        q.append(own)
        tokens.append(pick(own, points[:, node]).to(logits.device))
    if not tokens:
        return ranked(tree, logits)
    stacked = torch.stack(tokens, 1)
    return Draft(stacked, _all_nodes(stacked), torch.stack(q, 1), tree.tree)


def without(q: Float[Tensor, "B V"], taken: Sequence[Int[Tensor, " B"]]) -> Float[Tensor, "B V"]:
    """q given that it is none of some tokens; if those have it all, any other token is as likely."""
    if not taken:
        return q
    columns = torch.stack(list(taken), 1)
    rest = q.scatter(1, columns, 0)
    total = rest.sum(-1, keepdim=True)
    others = torch.ones_like(q).scatter(1, columns, 0)
    return torch.where(total > 0, rest / total, others / others.sum(-1, keepdim=True))


def _all_nodes(tokens: Tensor) -> Int[Tensor, " B"]:
    return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
