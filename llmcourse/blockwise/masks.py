"""Who sees whom when text is written in blocks: causal over what is finished, both ways inside a block.

A finished token sees the finished tokens up to itself, as in any causal model. A token of a block sees the
finished text before its block, and all of its own block (Wang et al. 2018, section 3, relaxed causal mask;
Arriola et al. 2025, section 3.2). Nothing finished ever sees a block, so what is finished is the same
whatever is being written after it: it may stay in a cache.

A token is described by two numbers, its position in the text and where its block starts: `FINISHED` for one
that is in none.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer

FINISHED = -1  # as the start of a block: no block, a token that stands
EMPTY = -2  # a slot that holds nothing yet: nobody sees it


def block_starts(
    length: int, sizes: Int[Tensor, " B"], firsts: Int[Tensor, " B"] | None = None
) -> Int[Tensor, "B L"]:
    """Where the block of each position starts, for rows that are cut into blocks of one size.

    Args:
        length: tokens of a row, at least 1.
        sizes: of the blocks of each row, at least 1.
        firsts: where the first block of each row starts, at least 1: a block continues a text. The tokens
            before it count as one block that starts at 0. None starts all at 1.

    Raises:
        ValueError: a number out of its range, or shapes that differ.
    """
    require_integer(1, "length", length, "give rows of one token or more")
    firsts = torch.ones_like(sizes) if firsts is None else firsts
    shape, remedy = tuple(sizes.shape), "give one for each size"
    require(tuple(firsts.shape) == shape, "firsts", f"of shape {shape}", tuple(firsts.shape), remedy)
    for name, values in (("sizes", sizes), ("firsts", firsts)):
        require(bool((values >= 1).all()), name, "at least 1", values.tolist(), "a block holds a token")
    offsets = torch.arange(length, device=sizes.device) - firsts[:, None]
    inside = firsts[:, None] + offsets.div(sizes[:, None], rounding_mode="floor") * sizes[:, None]
    return torch.where(offsets < 0, 0, inside)


def block_mask(
    positions: Int[Tensor, "B T"],
    starts: Int[Tensor, "B T"],
    key_positions: Int[Tensor, "B S"],
    key_starts: Int[Tensor, "B S"],
) -> Bool[Tensor, "B T S"]:
    """Which keys each query sees.

    Args:
        positions: of the queries in the text.
        starts: where the block of each query starts, or `FINISHED`.
        key_positions: of the keys.
        key_starts: where the block of each key starts, `FINISHED`, or `EMPTY` for a slot of a cache that
            is to be seen by nobody.
    """
    start, key_start = starts[..., None], key_starts[:, None]
    last = torch.where(start == FINISHED, positions[..., None], start - 1)  # of the finished text it sees
    text = (key_start == FINISHED) & (key_positions[:, None] <= last)
    return text | ((start >= 0) & (key_start == start))


def block_mask_by_definition(
    positions: Int[Tensor, "B T"],
    starts: Int[Tensor, "B T"],
    key_positions: Int[Tensor, "B S"],
    key_starts: Int[Tensor, "B S"],
) -> Bool[Tensor, "B T S"]:
    """The same, pair by pair: the slow truth."""
    rows = zip(positions.tolist(), starts.tolist(), key_positions.tolist(), key_starts.tolist(), strict=True)
    mask = torch.zeros(*positions.shape, key_positions.shape[1], dtype=torch.bool)
    for row, (position, start, key_position, key_start) in enumerate(rows):
        for query, own in enumerate(start):
            for key, other in enumerate(key_start):
                if other == EMPTY:
                    sees = False
                elif own == FINISHED:  # causal, and blind for blocks
                    sees = other == FINISHED and key_position[key] <= position[query]
                elif other == FINISHED:
                    sees = key_position[key] < own
                else:
                    sees = other == own
                mask[row, query, key] = sees
    return mask
