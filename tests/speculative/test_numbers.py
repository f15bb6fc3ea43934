"""Uniform numbers for ragged rows."""

from __future__ import annotations

import torch

from llmcourse.speculative.numbers import uniform_by_row


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_one_generator_fills_the_table():
    expected = torch.rand(2, 4, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(uniform_by_row(seeded(0), [1, 3], 4), expected)


def test_a_row_takes_what_it_needs_and_no_more():
    generators = [seeded(0), seeded(1), seeded(2)]
    numbers = uniform_by_row(generators, [1, 3, 0], 3)
    first, third = (torch.rand(2, generator=seeded(seed), dtype=torch.float64) for seed in (0, 2))
    assert numbers[0].tolist() == [first[0], 0, 0]
    assert numbers[1].tolist() == torch.rand(3, generator=seeded(1), dtype=torch.float64).tolist()
    assert numbers[2].tolist() == [0, 0, 0]
    assert torch.rand(1, generator=generators[0], dtype=torch.float64) == first[1]
    assert torch.rand(1, generator=generators[2], dtype=torch.float64) == third[0]
