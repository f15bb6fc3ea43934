"""One signature for everything that changes logits between the model and the choice of a token.

A processor takes logits and the texts so far and returns logits. Penalties shift them, temperature
stretches them, truncation sets some to -inf; a list of processors is applied from left to right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require_number
from llmcourse.decoding.history import History


@runtime_checkable
class Processor(Protocol):
    """Anything with this signature can stand in the list; it must leave its input as it was."""

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]: ...


def apply(
    processors: Sequence[Processor], logits: Float[Tensor, "B V"], history: History
) -> Float[Tensor, "B V"]:
    """The logits after all processors, first to last; the input is left as it was.

    An empty list returns the input itself, not a copy.

    Raises:
        TypeError: a processor returned something else than logits of the shape that it was given.
    """
    for processor in processors:
        before, logits = logits, processor(logits, history)
        good = isinstance(logits, Tensor) and logits.is_floating_point()
        if not good or logits.shape != before.shape:
            found = (
                f"{logits.dtype} of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else repr(logits)
            )
            raise TypeError(f"{processor} must return logits of shape {tuple(before.shape)}, got {found}")
    return logits


def widen(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
    """At least fp32: probabilities of a large vocabulary need more than 8 or 11 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Temperature:
    """Divides logits by τ: below 1 the distribution sharpens, above 1 it flattens.

    p_i ∝ exp(l_i / τ)      (Ackley, Hinton and Sejnowski 1985)

    Raises:
        ValueError: the temperature is not positive and finite.
    """

    temperature: float

    def __post_init__(self):
        allowed = "positive and finite"
        remedy = "use 0 in SamplingParams for greedy search, 1.0 to leave logits as they are"
        require_number(lambda t: 0 < t < math.inf, "temperature", allowed, self.temperature, remedy)

    def __call__(self, logits: Float[Tensor, "B V"], history: History) -> Float[Tensor, "B V"]:
        return logits / self.temperature
