"""Uniform numbers for rows that need unequally many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.sampling import Randomness


def uniform_by_row(generator: Randomness, counts: Sequence[int], width: int) -> Float[Tensor, "B T"]:
    """`counts[b]` numbers in [0, 1) for row b and one in the last of `width + 1` columns.

    They are on the generator's device.

    With a generator a row, a row takes no more numbers than these, so that its text does not depend on what
    it is batched with; the columns between them then hold zeros.
    """
    shape = (len(counts), width + 1)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    numbers = torch.zeros(shape, device=generator[0].device, dtype=torch.float64)
    for row, (count, own) in enumerate(zip(counts, generator, strict=True)):
        drawn = torch.rand(count + 1, generator=own, device=own.device, dtype=torch.float64)
        numbers[row, :count], numbers[row, -1] = drawn[:-1], drawn[-1]
    return numbers
