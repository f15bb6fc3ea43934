"""Uniform numbers for rows that need unequally many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.sampling import Randomness


def uniform_by_row(generator: Randomness, counts: Sequence[int], width: int) -> Float[Tensor, "B T"]:
    """The first `counts[b]` of row b's `width` columns are in [0, 1); on the generator's device.

    With a generator a row, a row takes no more numbers than these, so that its text does not depend on what
    it is batched with; the other columns then hold zeros.
    """
    shape = (len(counts), width)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    numbers = torch.zeros(shape, device=generator[0].device, dtype=torch.float64)
    for row, (count, own) in enumerate(zip(counts, generator, strict=True)):
        numbers[row, :count] = torch.rand(count, generator=own, device=own.device, dtype=torch.float64)
    return numbers
