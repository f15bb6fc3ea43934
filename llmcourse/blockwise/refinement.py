"""What a pass may settle: the second dial, refinement of a block in several passes.

unmask   every pass settles its share of the block, the most confident guesses first, and nothing settled is
         touched again (MaskGIT, Chang et al. 2022, section 3.2; with one pass, all at once)
remask   the first pass guesses the whole block; each further one forgets the least confident and guesses
         them again, fewer each time (Mask-Predict, Ghazvininejad et al. 2019, section 3.1)

The first token of a block is the backbone's own and sees no mask: both settle it in the first pass, for good.
With one pass or two they are the same: a guess can first be taken back after the second.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding.errors import require

Refinement = Literal["unmask", "remask"]
REFINEMENTS: tuple[Refinement, ...] = ("unmask", "remask")


def require_refinement(refinement: object) -> None:
    """Refuses what is neither of the two."""
    names = " or ".join(map(repr, REFINEMENTS))
    require(refinement in REFINEMENTS, "refinement", names, repr(refinement), "use 'unmask'")


def settled_after(size: int, number: int, passes: int) -> int:
    """How many tokens of a block stand after pass `number`, from 1: ⌈size · number / passes⌉."""
    return math.ceil(size * number / passes)


def most_confident(
    confidence: Float[Tensor, "B n"], settled: Bool[Tensor, "B n"], count: int
) -> Bool[Tensor, "B n"]:
    """The places that stand when `count` do: those settled, the first, and the most confident of the rest.

    Args:
        confidence: of the guess at each place; of several equal ones the first is taken.
        settled: at most `count` places a row.
    """
    score = confidence.masked_fill(settled, math.inf)
    score[:, 0] = math.inf
    order = score.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(settled).scatter(1, order[:, :count], True)
