"""Masks of blocks: drawn by hand, against their definition, and with bad input."""

import pytest
import torch

from llmcourse.attention import causal_mask
from llmcourse.blockwise.masks import (
    EMPTY,
    FINISHED,
    block_mask,
    block_mask_by_definition,
    block_starts,
)

# Three finished tokens, then a block of two.
STARTS = [FINISHED, FINISHED, FINISHED, 3, 3]
DRAWN = """
x....
xx...
xxx..
xxxxx
xxxxx
"""


def drawn(picture: str) -> torch.Tensor:
    return torch.tensor([[mark == "x" for mark in line] for line in picture.split()])


def over(starts: list[int]) -> torch.Tensor:
    """The mask of one row whose tokens stand one after another."""
    positions, starts = torch.arange(len(starts))[None], torch.tensor([starts])
    return block_mask(positions, starts, positions, starts)[0]


def test_finished_text_is_causal_and_a_block_sees_both_ways():
    assert torch.equal(over(STARTS), drawn(DRAWN))


def test_text_without_a_block_is_plainly_causal():
    assert torch.equal(over([FINISHED] * 6), causal_mask(6, 6))


def test_nobody_sees_an_empty_slot_or_the_noisy_copy_of_another_block():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    starts = torch.tensor([[FINISHED] * 4 + [0, 1, 1, 3, EMPTY]])  # a text and its noisy copy
    mask = block_mask(positions[:, :8], starts[:, :8], positions, starts)[0]
    picture = "x........ xx....... xxx...... xxxx..... ....x.... x....xx.. x....xx.. xxx....x."
    assert torch.equal(mask, drawn(picture))


def test_the_fast_mask_is_the_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        draw = lambda low, size: torch.randint(low, 7, (2, size), generator=generator)  # noqa: E731
        query = draw(0, 9), draw(FINISHED, 9)
        key = draw(0, 11), draw(EMPTY, 11)
        assert torch.equal(block_mask(*query, *key), block_mask_by_definition(*query, *key))


def test_rows_are_cut_into_blocks_of_their_own_size():
    starts = block_starts(8, torch.tensor([1, 3, 20]), torch.tensor([1, 2, 4]))
    assert starts.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 2, 2, 2, 5, 5, 5],
        [0, 0, 0, 0, 4, 4, 4, 4],
    ]
    assert block_starts(5, torch.tensor([2])).tolist() == [[0, 1, 1, 3, 3]]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("length must be an integer of at least 1, got 0", (0, torch.tensor([2]))),
        ("sizes must be at least 1, got \\[2, 0\\]", (4, torch.tensor([2, 0]))),
        ("firsts must be at least 1, got \\[0\\]", (4, torch.tensor([2]), torch.tensor([0]))),
    ],
)
def test_blocks_that_are_none_are_refused(message, arguments):
    with pytest.raises((ValueError, TypeError), match=message):
        block_starts(*arguments)
