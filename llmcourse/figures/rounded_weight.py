"""A weight rounded to few bits, and all that a picture of it shows: levels, what is clipped, the error.

What a step costs is told in decibels, 10 log₁₀(Σw² / Σ(w − w̃)²): a bit halves the step, which is 6 dB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmcourse.quantization.affine import AffineCodes, quantization_error, quantize
from llmcourse.quantization.quantized_tensor import BITS
from llmcourse.quantization.ranges import RANGE_METHODS

GRANULARITIES = {  # what shares a scale, and the columns of a group
    "tensor": ("tensor", None),
    "channel": ("channel", None),
    "group of 128": ("group", 128),
    "group of 64": ("group", 64),
    "group of 32": ("group", 32),
}
MOST_NUMBERS = 3 * 2**13  # of a weight: few enough that no operation on them waits for other threads
SCALES = torch.float16
BEYOND = 0.5 + 2**-6  # steps from the last level: what is farther is clipped; a little for rounded scales


@dataclass(frozen=True)
class RoundingInputs:
    """How a weight is rounded.

    Attributes:
        bits: of a code, 2 to 8.
        granularity: of `GRANULARITIES`.
        range_method: "minmax", "percentile" or "mse".
        percentile: in (0, 100], which one of these three looks at.
    """

    bits: int = 4
    symmetric: bool = True
    granularity: str = "channel"
    range_method: str = "minmax"
    percentile: int | float = 99.0


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """What is left of a weight.

    Attributes:
        weight: what was rounded, (N, K).
        restored: w̃, in the same shape.
        codes: with scales of 16 bits.
        clipped: which numbers lay beyond the ends of their range.
    """

    weight: Float[Tensor, "N K"]
    restored: Float[Tensor, "N K"]
    codes: AffineCodes
    clipped: Bool[Tensor, "N K"]

    @property
    def error(self) -> float:
        """‖W − W̃‖²."""
        return quantization_error(self.weight, self.restored)

    @property
    def snr_db(self) -> float:
        """∞ without any error."""
        error = self.error
        return 10 * math.log10(self.weight.double().square().sum().item() / error) if error else math.inf

    @property
    def share_clipped(self) -> float:
        return self.clipped.double().mean().item()

    @property
    def bits_per_weight(self) -> float:
        """With scales and zero points."""
        return self.codes.bits_per_number

    @property
    def usage(self) -> Float[Tensor, " codes"]:
        """How often each code is taken, from the least on; adds up to 1."""
        half = 2 ** (self.codes.bits - 1)
        counts = torch.bincount(self.codes.codes.flatten().long() + half, minlength=2 * half)
        return counts.double() / counts.sum()

    @property
    def entropy_bits(self) -> float:
        """Of the codes, −Σ p log₂ p: below `bits`, where some codes are hardly taken."""
        return -torch.special.xlogy(self.usage, self.usage).sum().item() / math.log(2) + 0.0

    @functools.cached_property
    def typical(self) -> int:
        """The index of the group whose scale is the median one."""
        return int(self.codes.scale.flatten().argsort()[self.codes.scale.numel() // 2])

    @property
    def step(self) -> float:
        """The distance of two levels, in the group of the median."""
        return self.codes.scale.flatten()[self.typical].item()

    @property
    def levels(self) -> list[float]:
        """All values that a number may have, in the group of the median."""
        zero = 0 if self.codes.zero_point is None else int(self.codes.zero_point.flatten()[self.typical])
        half = 2 ** (self.codes.bits - 1)
        return [self.step * (q - zero) for q in range(-half, half)]


def round_weight(weight: Float[Tensor, "N K"], inputs: RoundingInputs) -> RoundedWeight:
    """Rounds a weight.

    Raises:
        ValueError: a setting out of its range, a group size that does not divide K, or NaN or infinity.
    """
    if inputs.granularity not in GRANULARITIES:
        known = ", ".join(GRANULARITIES)
        raise ValueError(f"granularity must be one of {known}, got {inputs.granularity!r}")
    granularity, group_size = GRANULARITIES[inputs.granularity]
    codes = quantize(
        weight,
        bits=inputs.bits,
        symmetric=inputs.symmetric,
        granularity=granularity,
        group_size=group_size,
        range_method=inputs.range_method,
        percentile=inputs.percentile,
        scale_dtype=SCALES,
    )
    return RoundedWeight(weight, codes.dequantized(weight.dtype), codes, _clipped(weight, codes))


def _clipped(weight: Float[Tensor, "N K"], codes: AffineCodes) -> Bool[Tensor, "N K"]:
    places = weight.reshape(codes.scale.numel(), -1) / codes.scale.to(weight.dtype).view(-1, 1)
    if codes.zero_point is not None:
        places = places + codes.zero_point.view(-1, 1)
    half = 2 ** (codes.bits - 1)
    return ((places < -half - BEYOND) | (places > half - 1 + BEYOND)).view_as(weight)


def fitting(columns: int) -> list[str]:
    """The granularities that a weight of so many columns can have, from coarse to fine."""
    return [name for name, (_, size) in GRANULARITIES.items() if size is None or columns % size == 0]


def trade_offs(weight: Float[Tensor, "N K"], symmetric: bool) -> dict[str, list[tuple[float, float]]]:
    """What 2 to 8 bits cost and bring under min–max: (bits a weight, SNR in dB), by granularity.

    Granularities that do not fit the columns are left out.
    """
    found = {}
    for name in fitting(weight.shape[1]):
        each = (round_weight(weight, RoundingInputs(bits, symmetric, name)) for bits in BITS)
        found[name] = [(one.bits_per_weight, one.snr_db) for one in each]
    return found


def some_rows(weight: Float[Tensor, "N K"], most: int = MOST_NUMBERS) -> Float[Tensor, "n K"]:
    """Rows at even distances, as many as `most` numbers are, but one at least; in fp32.

    The first is moved to the row with the largest magnitude: the range of a tensor is that of all rows.
    """
    rows, columns = weight.shape
    count = min(rows, max(1, most // columns))
    taken, widest = torch.arange(count) * rows // count, int(weight.detach().abs().amax(1).argmax())
    if widest not in taken:
        taken[0] = widest
    return weight.detach()[taken.to(weight.device)].float().cpu()


def linear_weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of all linear layers by their names, or matrices that already have names.

    Raises:
        TypeError: neither a model nor named matrices.
        ValueError: there are none, or one is no matrix.
    """
    if not isinstance(model, nn.Module | Mapping):
        found = type(model).__name__
        raise TypeError(
            f"model must be a Decoder or {{name: matrix}}, got {found}; take pretrained.load(…)[0]"
        )
    if isinstance(model, nn.Module):
        layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        found = {name.removeprefix("model."): layer.weight for name, layer in layers.items()}
    else:
        found = dict(model)
    if not found:
        raise ValueError("model must have at least 1 linear layer, got none; give {name: matrix}")
    for name, weight in found.items():
        if weight.ndim != 2 or not weight.numel():
            raise ValueError(f"{name} must be a matrix, got shape {tuple(weight.shape)}")
    return found


def in_words(rounded: RoundedWeight, inputs: RoundingInputs) -> str:
    """The figures in one line."""
    return (
        f"‖W − W̃‖² {rounded.error:.4g} · SNR {rounded.snr_db:.1f} dB · "
        f"{rounded.bits_per_weight:.4g} bits a weight with scales · {rounded.share_clipped:.2%} clipped"
    )


CLIPPING = dict(zip(("min–max: nothing", "percentile", "least squared error"), RANGE_METHODS, strict=True))
