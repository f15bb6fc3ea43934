"""Which range of a group's numbers the grid should cover: all, most, or the one that loses least.

A wide range has long steps, a short one clips what lies beyond. Min–max clips nothing; a percentile clips a
fixed share; the MSE-optimal range is found by trying shorter ones: min ‖x − x̃(r)‖² over r ranges of
[r · low, r · high] (as in Frantar et al. 2023, whose code shrinks ranges so; Nagel et al. 2021, section 3.1).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.quantization.grid import nearest_codes, scale_and_zero_point, values

RangeMethod = Literal["minmax", "percentile", "mse"]
RANGE_METHODS = ("minmax", "percentile", "mse")
MSE_RATIOS = tuple(1 - step / 64 for step in range(56))  # 1 down to 0.14: 2 bits want a third of the maximum
_CHUNK = 2**22  # numbers that are tried at a time: a handful of copies of them is held

Ends = tuple[Float[Tensor, " G"], Float[Tensor, " G"]]


def min_max(x: Float[Tensor, "G n"]) -> Ends:
    """The least and the largest number of each group: nothing is clipped."""
    return x.amin(1), x.amax(1)


def percentile_range(x: Float[Tensor, "G n"], percentile: float = 99.9, *, symmetric: bool = True) -> Ends:
    """The range of the middle `percentile` per cent of each group, or of so many of the least magnitudes.

    Between two numbers of the sorted group it interpolates linearly. Where it would be 0 alone, and clip all
    of a group that is not 0 throughout, min–max stands in.

    Args:
        percentile: in (0, 100]; 100 is min–max.
        symmetric: [−a, a] for the percentile a of |x|.

    Raises:
        ValueError: a percentile out of its range.
    """
    require_number(
        lambda p: 0 < p <= 100, "percentile", "in (0, 100]", percentile, "use 99.9, or 100 for all numbers"
    )
    if symmetric:
        high = _at(x.abs().sort(1).values, percentile)
        low = -high
    else:
        ordered = x.sort(1).values
        low, high = _at(ordered, (100 - percentile) / 2), _at(ordered, (100 + percentile) / 2)
    nothing = (low >= 0) & (high <= 0)
    least, most = min_max(x)
    return torch.where(nothing, least, low), torch.where(nothing, most, high)


def _at(ordered: Float[Tensor, "G n"], percentile: float) -> Float[Tensor, " G"]:
    position = (ordered.shape[1] - 1) * percentile / 100
    below = min(int(position), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below].lerp(ordered[:, above], position - below)


def mse_range(
    x: Float[Tensor, "G n"],
    bits: int,
    *,
    symmetric: bool = True,
    narrow_range: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Ends:
    """Of the ranges `MSE_RATIOS` times min–max, the one with the least ‖x − x̃‖² for each group.

    The error is that of the scales as they will be stored, in `dtype`; min–max is among the ranges, and wins
    a tie, so no group ends up worse than by it.
    """
    settings = {"symmetric": symmetric, "narrow_range": narrow_range, "dtype": dtype}
    pieces = [_best(piece, bits, settings) for piece in x.split(max(1, _CHUNK // x.shape[1]))]
    low, high = zip(*pieces, strict=True)
    return torch.cat(low), torch.cat(high)


def _best(x: Float[Tensor, "G n"], bits: int, settings: dict) -> Ends:
    low, high = min_max(x)
    unit = scale_and_zero_point(low, high, bits, **settings)[0][
        :, None
    ]  # squares neither over- nor underflow
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for ratio in MSE_RATIOS:
        error = _squared_error(x, ratio * low, ratio * high, bits, settings, unit)
        best = torch.where(error < least, ratio, best)
        least = torch.minimum(error, least)
    return best * low, best * high


def _squared_error(
    x: Tensor, low: Tensor, high: Tensor, bits: int, settings: dict, unit: Tensor
) -> Float[Tensor, " G"]:
    scale, zero_point = scale_and_zero_point(low, high, bits, **settings)
    scale, zero_point = scale[:, None], None if zero_point is None else zero_point[:, None]
    codes = nearest_codes(x, scale, zero_point, bits, narrow_range=settings["narrow_range"])
    return ((x - values(codes, scale, zero_point, x.dtype)) / unit).square_().sum(1)


def find_range(
    x: Float[Tensor, "G n"],
    bits: int,
    *,
    method: str = "minmax",
    percentile: float = 99.9,
    symmetric: bool = True,
    narrow_range: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Ends:
    """The range of each group by the named method; the other arguments are those of the functions above.

    Raises:
        ValueError: no such method, or a percentile out of its range.
    """
    methods = ", ".join(map(repr, RANGE_METHODS))
    require(method in RANGE_METHODS, "range_method", f"one of {methods}", repr(method), "choose one")
    if method == "percentile":
        return percentile_range(x, percentile, symmetric=symmetric)
    if method == "mse":
        return mse_range(x, bits, symmetric=symmetric, narrow_range=narrow_range, dtype=dtype)
    return min_max(x)
