"""The tree for a budget of nodes, found greedily from how often each guess of each head is right.

With a_d(r) the share of calibration text on which head d has the true token at rank r, and heads right or
wrong apart from one another, a step that tries a tree gains on average

    E(tokens) = 1 + Σ_nodes Π_d a_d(r_d)

for exactly one path of all is true, and each of its nodes in the tree is a token gained. Adding the node
with the largest product, again and again, therefore gives the best tree of each size. (Cai et al. 2024,
section 2.3.3.) Heads are not right apart from one another: `observed_tokens` counts instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.loop import generate
from llmcourse.model import Decoder
from llmcourse.speculative.arguments import require_tensor
from llmcourse.speculative.medusa.candidates import MAX_NODES, MedusaTree, likeliest, product_of
from llmcourse.speculative.medusa.heads import MedusaHeads, check_fits


def search(accuracies: Float[Tensor, "K R"], num_nodes: int) -> MedusaTree:
    """The tree of so many nodes with the largest expected gain.

    Fewer come out where no further node has a chance above 0.

    Args:
        accuracies: `rank_accuracies` of calibration text: of each head, the shares of the ranks from 0 on.
        num_nodes: in [1, 1024].

    Raises:
        ValueError: shares that are none, or a number out of its range.
    """
    table = _checked(accuracies)
    require_integer(1, "num_nodes", num_nodes, "ask for one node or more")
    require(num_nodes <= MAX_NODES, "num_nodes", f"at most {MAX_NODES}", num_nodes, "ask for fewer")
    nodes = likeliest(table, num_nodes)
    remedy = "measure on more text, or train the heads"
    require(len(nodes) > 0, "accuracies of the first head", "above 0 somewhere", "none", remedy)
    return MedusaTree(nodes)


def expected_tokens(tree: MedusaTree, accuracies: Float[Tensor, "K R"]) -> float:
    """1 + Σ_nodes Π_d a_d(r_d): tokens a step gains, the target's own included, if heads err apart.

    Ranks past those measured count as never right.

    Raises:
        ValueError: shares that are none, or fewer heads than the tree is deep.
    """
    table = _checked(accuracies)
    deep = f"at most {len(table)}, the heads measured"
    require(tree.depth <= len(table), "depth of the tree", deep, tree.depth, "measure more heads")
    inside = [c for c in tree.choices if all(rank < len(table[0]) for rank in c)]
    return 1 + sum(product_of(choice, table) for choice in inside)


def observed_tokens(tree: MedusaTree, ranks: Int[Tensor, "P K"]) -> float:
    """What a step would have gained on average at these positions of a text, counted: no independence.

    Args:
        ranks: `true_ranks` of each position.

    Raises:
        ValueError: no positions, or fewer heads than the tree is deep.
    """
    _check_ranks(ranks)
    deep = f"at most {ranks.shape[1]}, the heads measured"
    require(tree.depth <= ranks.shape[1], "depth of the tree", deep, tree.depth, "measure more heads")
    gained = torch.ones(len(ranks), dtype=torch.long, device=ranks.device)
    for choice in tree.choices:
        path = torch.tensor(choice, device=ranks.device)
        gained += (ranks[:, : len(choice)] == path).all(-1)
    return gained.double().mean().item()


@torch.no_grad()
def true_ranks(model: Decoder, heads: MedusaHeads, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "P K"]:
    """At which rank each head has the token that really came, at all positions of texts: 0 is its likeliest.

    Head k at position t is asked for token t + 1 + k, so a text of T tokens has T − K − 1 positions.

    Raises:
        TypeError, ValueError: heads that do not fit, or texts too short for the last head.
    """
    check_fits(heads, model)
    require_tensor("tokens", tokens, whole=True)
    shape = tuple(tokens.shape)
    require(tokens.dim() == 2, "tokens", "of shape (B, T)", shape, "one text alone is torch.tensor([ids])")
    num_heads, length = heads.config.num_heads, shape[1]
    positions = length - num_heads - 1
    require(positions > 0, "tokens", f"longer than {num_heads + 1}", length, "give longer texts")
    hidden = model.hidden_states(tokens)[:, :positions]  # (B, P, C)
    ranks = []
    for number, head in enumerate(heads.heads, 1):  # one at a time: logits of all would be K times as large
        logits = model.lm_head(head(hidden))
        true = tokens[:, 1 + number : 1 + number + positions, None]
        own = logits.gather(-1, true)
        # Of tokens that are equally likely, as in 16 bits many are, one has each rank: the first comes first.
        before = (logits == own) & (torch.arange(logits.shape[-1], device=true.device) < true)
        ranks.append(((logits > own) | before).sum(-1))
    return torch.stack(ranks, -1).flatten(0, 1)


def written_ranks(
    model: Decoder, heads: MedusaHeads, prompts: Sequence[Sequence[int]], num_tokens: int = 64
) -> Int[Tensor, "P K"]:
    """`true_ranks` on what the backbone itself writes greedily: what heads must guess in greedy decoding.

    Args:
        num_tokens: of each text; texts that end earlier, and too early for the last head, are left out.

    Raises:
        TypeError, ValueError: as `decoding.generate`, or if all texts are too short.
    """
    check_fits(heads, model)
    rows = generate(model, prompts, max_new_tokens=num_tokens)
    long = [row for row in rows if len(row.tokens) > heads.config.num_heads]
    found = [ranks_behind(model, heads, row.prompt, row.tokens) for row in long]
    remedy = "write more than K tokens behind some prompt"
    require(len(found) > 0, "texts", "long enough for the last head", "none", remedy)
    return torch.cat(found)


def ranks_behind(
    model: Decoder, heads: MedusaHeads, prompt: Sequence[int], written: Sequence[int]
) -> Int[Tensor, "P K"]:
    """`true_ranks` in what was written behind a prompt, from the position on that gave the first token of it.

    Raises:
        TypeError, ValueError: as `true_ranks`.
    """
    tokens = torch.tensor([[*prompt, *written]], device=model.device)
    return true_ranks(model, heads, tokens)[len(prompt) - 1 :]


def rank_accuracies(ranks: Int[Tensor, "P K"], num_ranks: int = 10) -> Float[Tensor, "K R"]:
    """a_d(r): the share of positions at which head d has the true token at rank r, for r below `num_ranks`.

    Raises:
        ValueError: no positions, or no ranks.
    """
    _check_ranks(ranks)
    require_integer(1, "num_ranks", num_ranks, "measure the likeliest token at least")
    hits = ranks[..., None] == torch.arange(num_ranks, device=ranks.device)  # (P, K, R)
    return hits.double().mean(0)


def _check_ranks(ranks: Tensor) -> None:
    require_tensor("ranks", ranks, whole=True)
    shape = tuple(ranks.shape)
    good = ranks.dim() == 2 and min(shape) > 0
    require(good, "ranks", "of shape (P, K), none of them 0", shape, "take what true_ranks returns")


def _checked(accuracies: Tensor) -> Sequence[Sequence[float]]:
    """The shares as lists, if they are some."""
    require_tensor("accuracies", accuracies)
    shape, remedy = tuple(accuracies.shape), "take what rank_accuracies returns"
    good = accuracies.dim() == 2 and min(shape) > 0
    require(good, "accuracies", "of shape (K, R), none of them 0", shape, remedy)
    inside = bool(((accuracies >= 0) & (accuracies.sum(-1, keepdim=True) <= 1 + 1e-6)).all())
    require(inside, "accuracies", "shares of at most 1 for each head", accuracies.tolist(), remedy)
    return accuracies.tolist()
