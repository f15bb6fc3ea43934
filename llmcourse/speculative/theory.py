"""How much speculation gains, from how often drafts stand and what they cost.

    E(tokens a step) = 1 + α + … + α^γ = (1 − α^(γ+1)) / (1 − α)
    speed-up = E(tokens a step) / (γ c + v(γ + 1))

α is the chance that a draft stands, as if each were independent of the others; c what one draft costs and
v(n) what verifying takes in a pass over n tokens, both in one-token passes of the target. Where that pass is
bound by memory v is 1, and the second line is theorem 3.8 of Leviathan et al. 2023; large batches are bound
by arithmetic, v grows, and speculation loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.speculative.arguments import check_distributions, require_tensor

VerifyCost = Callable[[int], float]


def constant(num_tokens: int) -> float:
    """What a pass over a few tokens costs where reading the weights is all that takes time."""
    return 1.0


def acceptance(p: Float[Tensor, "*B V"], q: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """The chance that a draft from q stands: β = Σ_x min(p(x), q(x)), whose mean over texts is α.

    One minus half the L1 distance of p and q (Leviathan et al. 2023, theorem 3.5 and corollary 3.6).

    Raises:
        ValueError: shapes that differ, or a distribution that is negative or does not sum to 1.
    """
    for name, side in (("p", p), ("q", q)):
        require_tensor(name, side)
    shape, found, remedy = tuple(p.shape), tuple(q.shape), "give a distribution of q for each of p"
    require(
        len(shape) > 0 and found == shape, "q", f"of shape {shape} as p, with a vocabulary", found, remedy
    )
    for name, side in (("p", p), ("q", q)):
        check_distributions(name, side, torch.ones(shape[:-1], dtype=torch.bool, device=side.device))
    return torch.minimum(p, q).sum(-1)


def expected_tokens(alpha: int | float, gamma: int) -> float:
    """Tokens that a step of γ drafts brings on average: between 1 and γ + 1.

    (1 − α^(γ+1)) / (1 − α)      (Leviathan et al. 2023, section 3.1, equation 1)

    Args:
        alpha: the chance that a draft stands, in [0, 1].
        gamma: drafts a step; 0 is decoding without speculation.

    Raises:
        ValueError: an argument out of its range.
    """
    _check_acceptance("alpha", alpha)
    require_integer(0, "gamma", gamma, "use 0 for decoding without drafts")
    return expected_tokens_by_position([alpha] * gamma)


def expected_tokens_by_position(alphas: Sequence[int | float]) -> float:
    """The same where each draft has a chance of its own, given that those before it stand: 1 + α₁ + α₁α₂ + …

    Later drafts fall more often, being read on from guesses; the mean α then promises too much.

    Raises:
        ValueError: a chance outside [0, 1].
    """
    expected, reached = 1.0, 1.0
    for index, alpha in enumerate(alphas):
        _check_acceptance(f"alphas[{index}]", alpha)
        reached *= alpha
        expected += reached
    return expected


def speed_up(alpha: int | float, gamma: int, c: int | float, verify_cost: VerifyCost = constant) -> float:
    """How many times faster than one token a pass: below 1 where drafts cost more than they bring.

    (1 − α^(γ+1)) / ((1 − α)(γ c + v(γ + 1)))      (Leviathan et al. 2023, theorem 3.8, where v is 1)

    Args:
        alpha: the chance that a draft stands, in [0, 1].
        gamma: drafts a step; with 0 nothing is drafted and nothing gained.
        c: a draft's cost in one-token passes of the target, at least 0 (definition 3.7).
        verify_cost: v(n), of a pass over n tokens in the same unit; `constant` or what was measured.

    Raises:
        ValueError: an argument out of its range, or a pass that costs nothing.
    """
    tokens = expected_tokens(alpha, gamma)
    remedy = "give v(n), such as `constant`"
    require(callable(verify_cost), "verify_cost", "a function of the tokens", repr(verify_cost), remedy)
    allowed = "at least 0 and finite"
    require_number(
        lambda cost: 0 <= cost < math.inf, "c", allowed, c, "divide a draft's time by a target pass"
    )
    cost, allowed = verify_cost(gamma + 1), "positive and finite"
    remedy = "measure a pass in units of a one-token pass"
    require_number(lambda cost: 0 < cost < math.inf, f"verify_cost({gamma + 1})", allowed, cost, remedy)
    return tokens / (gamma * c + cost)


def best_draft_length(
    alpha: int | float, c: int | float, longest: int, verify_cost: VerifyCost = constant
) -> int:
    """The γ in [0, longest] of the largest speed-up, the smaller of two; 0 means that drafting does not pay.

    With v = 1 drafting pays if and only if α > c, and then at least by (1 + α)/(1 + c) (Leviathan et al.
    2023, section 3.5 and corollary 3.9).

    Raises:
        ValueError: an argument out of its range.
    """
    require_integer(0, "longest", longest, "use 0 to never draft")
    return max(range(longest + 1), key=lambda gamma: speed_up(alpha, gamma, c, verify_cost))


def _check_acceptance(name: str, value: object) -> None:
    remedy = "divide the drafts that stood by those that were judged"
    require_number(lambda share: 0 <= share <= 1, name, "in [0, 1]", value, remedy)
