"""Typical acceptance: a draft stands if the target finds it likely enough. Lossy: the text's law changes.

    x stands if  p(x) > min(ε, δ exp(−H(p))),      H(p) = −Σ p ln p

Where the target is sure, H is small and the bar is ε; where it is not, many tokens pass. The longest path
whose nodes all stand is taken, the likeliest of equally long ones, and the target's own token comes after
it. (Cai et al. 2024, section 2.3.1; Hewitt et al. 2022, section 4, has the bar, to truncate sampling.)

What is drafted and passes is taken with certainty, however much else passes: so what the drafts favour comes
more often than p says. `first_token_law` computes the law that comes out, `total_variation` its distance
from p, and `decoding.reread` what the target thinks of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llmcourse.decoding.errors import require, require_number
from llmcourse.decoding.sampling import greedy, pick
from llmcourse.speculative.arguments import check_distributions, require_tensor
from llmcourse.speculative.tree import ROOT, DraftTree
from llmcourse.speculative.verify_tree import TreeVerdict


@dataclass(frozen=True)
class TypicalAcceptance:
    """The bar that a draft's probability must pass; the defaults are those of the paper's experiments.

    Attributes:
        epsilon: ε in (0, 1]: no token likelier than that is refused.
        delta: δ in (0, 1]: the share of exp(−H), the probability of a typical token, that is enough.

    Raises:
        ValueError: a number out of its range.
    """

    epsilon: int | float = 0.09
    delta: int | float = 0.3

    def __post_init__(self):
        for name in ("epsilon", "delta"):
            remedy = "use 0.09 and 0.3; for no loss leave typical acceptance out"
            require_number(lambda x: 0 < x <= 1, name, "in (0, 1]", getattr(self, name), remedy)

    def bar(self, p: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
        """min(ε, δ exp(−H(p)))."""
        entropy = torch.special.entr(p).sum(-1)
        return (self.delta * torch.exp(-entropy)).clamp(max=self.epsilon)


def typical_walk(
    p: Float[Tensor, "B T V"],  # T = N + 1
    drafts: Int[Tensor, "B N"],
    tree: DraftTree,
    settings: TypicalAcceptance,
    uniform: Float[Tensor, " B"] | None = None,
    num_drafts: Int[Tensor, " B"] | None = None,
) -> TreeVerdict:
    """The longest path whose nodes all pass the bar, and a token of the target's after it. Lossy.

    Args:
        p: the target's distribution after the text and after each node.
        drafts: the token at each node.
        uniform: numbers in [0, 1) that the token after the path is drawn with; None for the likeliest.
        num_drafts: in [0, N], for rows that use only the first nodes; None for all.

    Raises:
        ValueError: shapes that do not fit one another, or no distributions.
    """
    _check(p, drafts, tree)
    device = drafts.device
    before = torch.tensor(tree.parents, dtype=torch.long, device=device) + 1  # where p has each node's parent
    likely = p[:, before].gather(2, drafts[..., None])[..., 0]  # (B, N)
    passes = likely > settings.bar(p)[:, before]
    if num_drafts is not None:
        passes &= torch.arange(len(tree), device=device) < num_drafts[:, None]
    ancestors = tree.ancestors(device)
    stands = (passes[:, None] | ~ancestors).all(-1)  # (B, N)
    depths = torch.tensor(tree.depths, dtype=p.dtype, device=device)
    # Of equally long paths the likeliest: a share below 1 of a step decides among them.
    path_likelihood = likely.clamp(min=0).log().nan_to_num(neginf=-1e9) @ ancestors.T.to(p.dtype)
    lengths = stands * depths
    longest = lengths.amax(-1, keepdim=True) if len(tree) else lengths
    scores = path_likelihood.masked_fill(~stands | (lengths < longest), -torch.inf)
    # Where nothing stands the root, first in the row, is the best of what is left.
    last = pad(scores, (1, 0), value=torch.finfo(p.dtype).min).argmax(-1) + ROOT
    at_end = p[torch.arange(len(p), device=device), last + 1]
    next_tokens = greedy(at_end) if uniform is None else pick(at_end, uniform)
    return TreeVerdict(last, next_tokens.to(device))


def first_token_law(
    p: Float[Tensor, "E T V"],
    drafts: Int[Tensor, "E N"],
    tree: DraftTree,
    settings: TypicalAcceptance,
    chances: Float[Tensor, " E"],
) -> Float[Tensor, " V"]:
    """The law of the first token of a step under typical acceptance, exactly: by enumeration.

    Args:
        p: for each of E ways in which drafting may come out, the target's distributions as
            `typical_walk` takes them.
        chances: the probability of each way; with ranked drafts there is one, of chance 1.

    Raises:
        ValueError: chances that do not sum to 1, or shapes that do not fit.
    """
    remedy = "enumerate all drafts that can be"
    good = tuple(chances.shape) == (len(p),) and abs(float(chances.sum()) - 1) < 1e-6
    require(good, "chances", f"{len(p)} numbers that sum to 1", chances.tolist(), remedy)
    verdict = typical_walk(p, drafts, tree, settings)
    law = torch.zeros_like(p[0, 0])
    for row, last in enumerate(verdict.last_nodes.tolist()):
        if last == ROOT:
            law += chances[row] * p[row, 0]
        else:
            law[drafts[row, tree.path(last)[0]]] += chances[row]
    return law


def total_variation(p: Float[Tensor, "*B V"], q: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """½ Σ |p − q|: the largest difference in the probability of any event; 0 for what is lossless.

    Raises:
        ValueError: shapes that differ.
    """
    remedy = "compare laws over one vocabulary"
    require(p.shape == q.shape, "q", f"of shape {tuple(p.shape)}", tuple(q.shape), remedy)
    return (p - q).abs().sum(-1) / 2


def _check(p: Tensor, drafts: Tensor, tree: DraftTree) -> None:
    require_tensor("p", p)
    require_tensor("drafts", drafts, whole=True)
    shape, size = tuple(p.shape), len(tree)
    require(p.dim() == 3 and min(shape) > 0, "p", "of shape (B, N + 1, V), none of them 0", shape, "stack it")
    remedy = "give a token for each node, and the target's after the text and after each"
    require(shape[1] == size + 1, "p", f"of {size + 1} positions for {size} nodes", shape[1], remedy)
    wanted, found = (shape[0], size), tuple(drafts.shape)
    require(found == wanted, "drafts", f"of shape {wanted}", found, remedy)
    inside = bool(((drafts >= 0) & (drafts < shape[2])).all())
    require(inside, "drafts", f"in [0, {shape[2] - 1}]", drafts.tolist(), "use heads of this model")
    check_distributions("p", p, torch.ones(shape[:2], dtype=torch.bool, device=p.device))
