"""What the cases about codes are drawn from: numbers that lie near a code, far from the middle of two.

So no verdict turns on rounding, and none on which way a tie goes.
"""

from __future__ import annotations

import random

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises.kv_cache.drawn import normal
from llmcourse.grading.rules import LIBRARIES, Forbid

CLEAR = 0.002  # steps from the middle between two codes, where numbers are not made of codes
FARTHEST = 0.4  # of a step, that a number is away from its code
# The course's own is the answer to these exercises; grading holds references, and figures pass others on.
OWN_PARTS = ("quantization", "kernels", "grading", "figures")
OTHERS = ("torchao", "bitsandbytes", "auto_gptq", "gptqmodel", "optimum", "ao")
OBSERVERS = ("MinMaxObserver", "PerChannelMinMaxObserver", "HistogramObserver", "FakeQuantize")
FAKE = ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
REAL = ("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic")
OWN_WORK = Forbid(
    operations=(*REAL, *(f"{name}_cachemask" for name in FAKE)),
    names=(*LIBRARIES, *OTHERS, *OBSERVERS, *FAKE),
    parts=OWN_PARTS,
)


def power_of_two(bits: int) -> int:
    """The bits of an answer that knows 2, 4 and 8 alone."""
    return 1 << (bits.bit_length() - 1)


def largest(bits: int) -> int:
    """The largest code of a symmetric range: 127 for 8 bits."""
    return 2 ** (bits - 1) - 1


def offset(rng: random.Random, farthest: float = FARTHEST) -> float:
    """How far a number is from its code, in steps: never near 0, to either side."""
    return rng.choice((-1, 1)) * rng.uniform(0.25, farthest)


def near_codes(rng: random.Random, rows: int, columns: int, bits: int) -> Float[Tensor, "rows columns"]:
    """Numbers in steps, the first of each row that is the largest by magnitude exactly the largest code.

    The largest of a row is negative in at least every second row, and comes at a place of its own.
    """
    top, values = largest(bits), []
    for row in range(rows):
        codes = [rng.randint(1 - top, top - 1) for _ in range(columns)]
        numbers = [code + offset(rng) for code in codes]
        numbers[rng.randrange(columns)] = float(top if row % 2 else -top)
        values.append(numbers)
    return torch.tensor(values, dtype=torch.float64)


def rows_of(
    rng: random.Random, rows: int, columns: int, bits: int, spread: float = 8.0
) -> Float[Tensor, "rows columns"]:
    """The same in float32, each row by a scale of its own; no two scales are closer than a third."""
    exponents = [spread * place / max(rows - 1, 1) for place in range(rows)]
    rng.shuffle(exponents)
    scales = [rng.uniform(0.01, 0.012) * 1.5**exponent for exponent in exponents]
    return (near_codes(rng, rows, columns, bits) * torch.tensor(scales)[:, None].double()).float()


def hessian(rng: random.Random, columns: int, related: float = 1.0) -> Float[Tensor, "columns columns"]:
    """2 XᵀX of inputs whose neighbouring columns say much of each other, with a little on the diagonal.

    Args:
        related: how much of each column is what all have in common; 0 for none.
    """
    x = normal(rng, 8 * columns, columns, dtype=torch.float64)
    x = x + related * normal(rng, 8 * columns, 1, dtype=torch.float64)
    x = x * torch.tensor([rng.uniform(0.6, 1.6) for _ in range(columns)], dtype=torch.float64)
    gram = 2 * x.T @ x / len(x)
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)


def clear(steps: Float[Tensor, ...]) -> bool:
    """Whether none of these numbers, in steps, lies near the middle between two codes."""
    return bool(((steps - steps.floor() - 0.5).abs() > CLEAR).all())
