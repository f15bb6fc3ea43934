"""Means over windows of text, and how far off they may be.

Tokens of one text depend on each other, and so would spreads over them deceive: they are taken over windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require


@dataclass(frozen=True)
class Estimate:
    """A mean over windows, and its standard error: s / √n.

    Attributes:
        mean: over all tokens; windows are of one length.
        error: how far off it may be, since other text would have given another.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Float[Tensor, " windows"]) -> Estimate:
        values = values.double()
        return cls(values.mean().item(), values.std().item() / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.error:.4f}"


def windows_of(domain: str, stream: Int[Tensor, " N"], length: int) -> list[Tensor]:
    """A domain's text in windows of one token more than is predicted; neighbours share it.

    What is left at the end and fills none is left out.

    Raises:
        ValueError: text that does not fill two, of which there would be no spread.
    """
    count = (len(stream) - 1) // length
    name, allowed = f"tokens of {domain!r}", f"at least {2 * length + 1}, two windows"
    require(count >= 2, name, allowed, len(stream), "give more text, or a smaller length")
    return [stream[start : start + length + 1] for start in range(0, count * length, length)]
