"""The acceptance rule: what a draft model proposed becomes text that the target might have drawn itself.

A draft x ~ q stands with probability min(1, p(x)/q(x)). The first that falls is replaced by a token from
what q left out, and what came after it is dropped; if none falls, the target adds a token of its own:

    p'(x) = max(0, p(x) − q(x)) / Σ_x' max(0, p(x') − q(x'))

A token comes out as an accepted draft with probability min(p, q) and as a correction with probability
p − min(p, q), together p: whatever q is, the text is distributed as the target's, and q only decides how
much of it comes for free. (Leviathan et al. 2023, section 2.3, algorithm 1, proof in appendix A.1; Chen et
al. 2023, algorithm 2 and theorem 1, found the same rule.)

Greedy decoding is the limit: where p is certain of one token, a draft stands if it is that token, and the
correction is that token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.sampling import in_float64, pick
from llmcourse.kernels.drafts import accept_certain
from llmcourse.speculative.arguments import check_shapes, check_values


@dataclass(frozen=True)
class Verdict:
    """What became of each row's drafts.

    Attributes:
        num_accepted: how many stand, counted from the first.
        next_tokens: the one token after them, from the target: a correction where a draft fell, a bonus
            where all of a row's drafts stand.
    """

    num_accepted: Int[Tensor, " B"]
    next_tokens: Int[Tensor, " B"]

    def emitted(self, drafts: Int[Tensor, "B G"]) -> list[list[int]]:
        """The text that each row gained, 1 to γ + 1 tokens; waits for the device."""
        rows = zip(drafts.tolist(), self.num_accepted.tolist(), self.next_tokens.tolist(), strict=True)
        return [[*row[:count], token] for row, count, token in rows]


def verify_drafts(
    p: Float[Tensor, "B T V"],  # T = G + 1
    q: Float[Tensor, "B G V"],
    drafts: Int[Tensor, "B G"],
    uniform: Float[Tensor, "B T"],
    num_drafts: Int[Tensor, " B"] | None = None,
    *,
    trusted: bool = False,
) -> Verdict:
    """How many drafts of each row stand, and the target's token after them; a pure function.

    Both sides are given as the distributions that tokens are really drawn from, after temperature,
    penalties and truncation (`distributions.processed`); either may hold zeros. In floating point a draft
    can fall although p ≤ q everywhere, where both sums are off 1 by a rounding error: then p' is p.

    Args:
        p: the target's distribution before each draft, and after the last.
        q: what each draft was drawn from; a point mass (`distributions.point_masses`) if it was certain.
        drafts: the proposed tokens.
        uniform: independent numbers in [0, 1): one for each draft, the last for the token after them.
        num_drafts: in [0, G], for rows with fewer drafts than others; None for G everywhere. What p, q and
            drafts hold past a row's own may be anything.
        trusted: leaves out the checks of values, for which a GPU must be waited for.

    Raises:
        ValueError: shapes that do not fit one another; unless trusted also a distribution that is negative
            or does not sum to 1, a draft outside the vocabulary or of probability 0 under q, numbers
            outside [0, 1), or counts outside [0, G].
    """
    check_shapes(p, q, drafts, uniform, num_drafts)
    batch, num_columns = drafts.shape
    if num_drafts is None:
        num_drafts = torch.full((batch,), num_columns, device=drafts.device)
    if not trusted:
        check_values(p, q, drafts, uniform, num_drafts)
    ours = torch.arange(num_columns, device=drafts.device) < num_drafts[:, None]  # (B, G)
    drafted = drafts.masked_fill(~ours, 0)[..., None]
    p_drafted, q_drafted = (in_float64(side.gather(2, drafted)[..., 0]) for side in (p[:, :-1], q))
    uniform = in_float64(uniform).to(p_drafted.device)
    stands = accepts(p_drafted, q_drafted, uniform[:, :-1]).to(ours.device) & ours
    num_accepted = stands.int().cumprod(-1).sum(-1)
    left = residual(*_where_the_text_goes_on(p, q, num_accepted, num_accepted < num_drafts))
    return Verdict(num_accepted, pick(left, uniform[:, -1]).to(drafts.device))


def verify_certain(
    best: Int[Tensor, "B T"],  # T = G + 1
    drafts: Int[Tensor, "B G"],
    num_drafts: Int[Tensor, " B"],
) -> Verdict:
    """`verify_drafts` where both sides are certain: a draft stands if it is the token that the target takes.

    It is what the rule comes to for two point masses, without a vocabulary of zeros around each.

    Args:
        best: the only token of the target's distribution before each draft, and after the last.
        drafts, num_drafts: as there.
    """
    ours = torch.arange(drafts.shape[1], device=drafts.device) < num_drafts[:, None]  # (B, G)
    return Verdict(*accept_certain(best, drafts.masked_fill(~ours, -1)))  # which is no token


def accepts(
    p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"], uniform: Float[Tensor, "*shape"]
) -> Bool[Tensor, "*shape"]:
    """Whether a draft stands, from its probability on both sides: u < p/q, true with min(1, p/q)."""
    return uniform * q < p


def residual(p: Float[Tensor, "B V"], q: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """p' ∝ max(0, p − q), what a rejected draft is replaced from; p where p ≤ q everywhere, as in p = q."""
    excess = (p - q).clamp(min=0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > 0, excess / total, p)


def _where_the_text_goes_on(
    p: Tensor, q: Tensor, num_accepted: Tensor, fell: Tensor
) -> tuple[Tensor, Tensor]:
    """Both distributions of each row's next token; no draft was drawn for a bonus, so there q is zero."""
    rows = torch.arange(len(p), device=p.device)
    target = in_float64(p[rows, num_accepted])
    if q.shape[1] == 0:
        return target, torch.zeros_like(target)
    draft = in_float64(q[rows, num_accepted.clamp(max=q.shape[1] - 1)])
    return target, draft.masked_fill_(~fell[:, None].to(draft.device), 0)  # (B, V)
