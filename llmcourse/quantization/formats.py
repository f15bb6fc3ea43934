"""Numbers of 8 and 4 bits whose points are not evenly spaced: FP8, NF4 and MXFP4, beside the integers.

    fp8_e4m3, fp8_e5m2   (−1)^s 2^(E − bias) (1 + M / 2^m)      Micikevicius et al. 2022, table 1
    nf4                  quantiles of a normal distribution      Dettmers et al. 2023 (QLoRA), section 3
    mxfp4                e2m1 in blocks of 32, scaled by 2^k     OCP Microscaling Formats 1.0, sections 5, 6.3

A format is the list of its points, one for each code; a number becomes the nearest point, times a scale that
a block of neighbours shares. Points lie close to each other near 0, where most weights are, and far apart at
the ends: small numbers keep their relative precision, which an integer grid does not give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.quantization.affine import check_finite
from llmcourse.quantization.grid import check_scale, rounded_up
from llmcourse.quantization.quantized_tensor import check_group_size


@dataclass(frozen=True)
class NumberFormat:
    """A list of points and how blocks are scaled to them.

    Attributes:
        name: of it.
        points: what each code from 0 stands for; NaN and infinity where it stands for no number.
        sign_bit: whether the highest bit of a code is a sign, and the others count up from 0; else points
            increase with the code.
        block_size: neighbours of a row that share a scale; None: a whole row.
        scale_kind: "absmax" scales a block's largest magnitude to the largest point, with scales in fp32;
            "power_of_2" scales it to that point's power of 2, with scales in e8m0, one byte each: what is
            beyond the largest point then becomes it.
    """

    name: str
    points: tuple[float, ...] = field(repr=False)
    sign_bit: bool
    block_size: int | None
    scale_kind: Literal["absmax", "power_of_2"]

    @property
    def bits(self) -> int:
        return (len(self.points) - 1).bit_length()

    @property
    def largest(self) -> float:
        """The largest magnitude that is a number."""
        return max(abs(point) for point in self.points if math.isfinite(point))

    def nearest(self, x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
        """The code of the nearest point, without a scale; ties go to the even code, and what lies beyond the
        last point to that point, where a cast to e5m2 makes it infinity.

        Args:
            x: without NaN.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.sign_bit:
            return _nearest(x, self.points).to(torch.uint8)
        half = len(self.points) // 2
        magnitudes = [point for point in self.points[:half] if math.isfinite(point)]
        return (_nearest(x.abs(), magnitudes) + half * x.signbit()).to(torch.uint8)

    def values(
        self, codes: UInt8[Tensor, "*shape"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*shape"]:
        """The points of codes."""
        return torch.tensor(self.points, dtype=dtype, device=codes.device)[codes.int()]

    def encode(
        self, x: Float[Tensor, "*rows K"], block_size: int | None = None, name: str | None = None
    ) -> FormatCodes:
        """The nearest codes, each block with a scale of its own.

        Args:
            block_size: another than the format's.
            name: of the tensor, for errors.

        Raises:
            ValueError: a block size that does not divide K, no numbers, NaN or infinity, a scale beyond fp32.
        """
        require(
            x.numel() > 0, "x", "at least one number", f"shape {tuple(x.shape)}", "leave out what is empty"
        )
        what = "x" if name is None else f"the tensor of {name}"
        check_finite(x, what)
        size = block_size or self.block_size or x.shape[-1]
        check_group_size(size, x.shape[-1])
        blocks = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, size))
        widest = blocks.abs().amax(-1)
        scale = self._scale(widest)
        if self.scale_kind == "absmax":
            check_scale(scale, widest, what)
        codes = self.nearest(blocks / scale[..., None].to(blocks.dtype))
        return FormatCodes(codes.flatten(-2), scale, self)

    def _scale(self, widest: Float[Tensor, "*blocks"]) -> Tensor:
        """Of blocks with these largest magnitudes, fp32 or e8m0; 1 where that is 0."""
        if self.scale_kind == "absmax":
            scale = rounded_up(widest.double() / self.largest, torch.float32)
            return torch.where(widest == 0, 1, scale)
        # frexp has the mantissa in [0.5, 1): floor(log2 x) is its exponent less 1.
        exponent = torch.frexp(widest).exponent - math.frexp(self.largest)[1]
        power = torch.ldexp(torch.ones_like(widest), exponent.clamp(-127, 127))
        return torch.where(widest == 0, 1, power).to(torch.float8_e8m0fnu)


@dataclass(frozen=True)
class FormatCodes:
    """A tensor in the codes of a format.

    Attributes:
        codes: uint8, one a byte whatever the bits are, in the shape of the tensor `(…, K)`.
        scale: `(…, K / block_size)`, fp32 or e8m0.
        format: of the codes.
    """

    codes: UInt8[Tensor, "*shape"]
    scale: Tensor
    format: NumberFormat

    def decoded(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
        """Points times scales; saturates at the dtype's largest number."""
        wide = torch.promote_types(dtype, torch.float32)
        points = self.format.values(self.codes, wide).unflatten(-1, (self.scale.shape[-1], -1))
        limit = torch.finfo(dtype).max
        scaled = (points * self.scale.to(wide)[..., None]).clamp_(-limit, limit)
        return scaled.flatten(-2).to(dtype)

    @property
    def bits_per_number(self) -> float:
        """With scales."""
        return self.format.bits + 8 * self.scale.nbytes / self.codes.numel()


def _nearest(x: Tensor, points: list[float] | tuple[float, ...]) -> Tensor:
    """The index of the nearest of increasing points, the even one of two that are equally near."""
    at = torch.tensor(points, dtype=torch.float64)
    middles = ((at[:-1] + at[1:]) / 2).to(x)
    below, above = torch.bucketize(x, middles), torch.bucketize(x, middles, right=True)
    return torch.where(below % 2 == 0, below, above)  # they differ at a tie alone


def _float_points(exponent_bits: int, mantissa_bits: int, bias: int) -> list[float]:
    """All of them as if no code stood for infinity or NaN: those with the sign bit 0, then those with 1."""
    fractions = 2**mantissa_bits
    points = []
    for code in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, fraction = divmod(code, fractions)
        mantissa = fraction / fractions + (exponent > 0)
        points.append(mantissa * 2.0 ** (max(exponent, 1) - bias))
    return points + [-point for point in points]


def _e4m3() -> tuple[float, ...]:
    """All ones is NaN; there is no infinity, and so the largest number is 1.75 · 2^8."""
    points = _float_points(4, 3, 7)
    points[0x7F] = points[0xFF] = math.nan
    return tuple(points)


def _e5m2() -> tuple[float, ...]:
    """As in IEEE 754, the largest exponent stands for infinity and NaN."""
    points = _float_points(5, 2, 15)
    for sign in (0, 0x80):
        points[sign + 0x7C] = -math.inf if sign else math.inf
        points[sign + 0x7D : sign + 0x80] = [math.nan] * 3
    return tuple(points)


def _nf4() -> tuple[float, ...]:
    """Quantiles of N(0, 1) at even steps from a tail of ½ (1/32 + 1/30) to the middle: 8 above 0, 7 below.

    Divided by the largest, so that they span [−1, 1].
    """
    outer = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(outer, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(outer, 0.5, 8, dtype=torch.float64)[:-1])
    points = torch.cat((below, torch.zeros(1, dtype=torch.float64), above.flip(0)))
    return tuple((points / above.max()).tolist())


FP8_E4M3 = NumberFormat("fp8_e4m3", _e4m3(), True, None, "absmax")
FP8_E5M2 = NumberFormat("fp8_e5m2", _e5m2(), True, None, "absmax")
NF4 = NumberFormat("nf4", _nf4(), False, 64, "absmax")
MXFP4 = NumberFormat("mxfp4", tuple(_float_points(2, 1, 1)), True, 32, "power_of_2")
FORMATS = {known.name: known for known in (FP8_E4M3, FP8_E5M2, NF4, MXFP4)}


def number_format(name: str) -> NumberFormat:
    """A format by its name.

    Raises:
        ValueError: there is none of this name.
    """
    names = ", ".join(map(repr, FORMATS))
    require(
        name in FORMATS, "format", f"one of {names}", repr(name), "integers of 2 to 8 bits are `quantize`'s"
    )
    return FORMATS[name]
