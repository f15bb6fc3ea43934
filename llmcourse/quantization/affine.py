"""Rounding to the nearest of 2^bits evenly spaced numbers: quantize, dequantize, and what is lost by it.

    q = clamp(round(x / S) + Z),   x̃ = S (q − Z),   Δ = ‖X − X̃‖²

S and Z (see `grid`) are shared by a tensor, a channel, a token or a group: the fewer numbers share them, the
smaller the error and the more scales there are to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.quantization.grid import check_scale, code_range, nearest_codes, scale_and_zero_point, values
from llmcourse.quantization.quantized_tensor import QuantizedTensor, check_group_size
from llmcourse.quantization.ranges import RangeMethod, find_range

Granularity = Literal["tensor", "channel", "token", "group"]
GRANULARITIES = ("tensor", "channel", "token", "group")


@dataclass(frozen=True)
class AffineCodes:
    """A tensor in integer codes.

    Attributes:
        codes: q, int8, in the shape of the tensor.
        scale: S: `()` for a tensor, `(N,)` for the N channels, `(…, T)` for tokens, `(…, T, C / group_size)`
            for groups.
        zero_point: Z, int8, in the same shape; None for symmetric codes.
        bits: of a code.
    """

    codes: Int[Tensor, "*shape"]
    scale: Float[Tensor, "*groups"]
    zero_point: Int[Tensor, "*groups"] | None
    bits: int

    def dequantized(self, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
        """S (q − Z), in the dtype of the scales or the one given."""
        groups = self.codes.reshape(self.scale.numel(), -1)
        zero_point = None if self.zero_point is None else self.zero_point.reshape(-1, 1)
        return values(groups, self.scale.reshape(-1, 1), zero_point, dtype).view(self.codes.shape)

    @property
    def bits_per_number(self) -> float:
        """With scales and zero points, had the codes `bits` each."""
        held = [self.scale] if self.zero_point is None else [self.scale, self.zero_point]
        return self.bits + 8 * sum(tensor.nbytes for tensor in held) / self.codes.numel()


def quantize(
    x: Float[Tensor, "*shape"],
    *,
    bits: int = 8,
    symmetric: bool = True,
    granularity: Granularity = "tensor",
    group_size: int | None = None,
    range_method: RangeMethod = "minmax",
    percentile: float = 99.9,
    narrow_range: bool = False,
    scale_dtype: torch.dtype | None = None,
    name: str | None = None,
) -> AffineCodes:
    """The nearest codes of a tensor, with scales and zero points of its own.

    Args:
        bits: 2 to 8.
        symmetric: Z = 0, and the range is [−a, a]; else it is [low, high], widened to reach to 0.
        granularity: what shares a scale: the tensor; a channel, x[i] (of a weight `(N, K)` a row: what makes
            one output, a column in the lecture's notation Xw); a token, x[…, :]; a group, `group_size`
            neighbours of a token or of a weight's row.
        range_method: "minmax", "percentile" or "mse": see `ranges`.
        percentile: in (0, 100], for the method of that name.
        narrow_range: leaves the code −2^(bits − 1) out, for symmetric codes: see `grid`.
        scale_dtype: None is that of x, but fp32 at least.
        name: of the tensor, for errors.

    Raises:
        ValueError: no tensor, bits, a granularity or a range that do not exist, a group size that does not
            divide, no numbers at all, NaN or infinity, or scales beyond their dtype; the message has the
            name.
    """
    code_range(bits)
    require(isinstance(x, Tensor), "x", "a tensor", f"a {type(x).__name__}", "pass torch.tensor(x)")
    groups = _groups(x, granularity, group_size)
    what = _what(name)
    check_finite(x, what)
    groups = groups.to(torch.promote_types(x.dtype, torch.float32))
    dtype = groups.dtype if scale_dtype is None else scale_dtype
    shared = {"symmetric": symmetric, "narrow_range": narrow_range, "dtype": dtype}
    low, high = find_range(groups, bits, method=range_method, percentile=percentile, **shared)
    scale, zero_point = scale_and_zero_point(low, high, bits, **shared)
    check_scale(scale, torch.maximum(-low, high), what)
    columns = scale[:, None], None if zero_point is None else zero_point[:, None]
    codes = nearest_codes(groups, *columns, bits, narrow_range=narrow_range)
    shape = _scale_shape(x, granularity, group_size)
    zero_point = None if zero_point is None else zero_point.view(shape)
    return AffineCodes(codes.view(x.shape), scale.view(shape), zero_point, bits)


def dequantize(codes: AffineCodes, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """x̃ = S (q − Z), in the dtype of the scales or the one given."""
    return codes.dequantized(dtype)


def quantization_error(x: Float[Tensor, "*shape"], restored: Float[Tensor, "*shape"]) -> float:
    """Δ = ‖X − X̃‖², summed in fp64."""
    return (x.double() - restored.double()).square().sum().item()


def quantize_weight(
    w: Float[Tensor, "rows columns"],
    bits: int,
    group_size: int | None = None,
    symmetric: bool = True,
    range_method: RangeMethod = "minmax",
    name: str | None = None,
    *,
    percentile: float = 99.9,
    scale_dtype: torch.dtype | None = None,
) -> QuantizedTensor:
    """Rounds a weight to the nearest codes (RTN): what all other methods are compared with.

    Args:
        w: `(N, K)`, a row for each output, as in `nn.Linear`.
        group_size: of neighbouring columns that share a scale; None is a whole row.
        name: of the layer, for errors.
        scale_dtype: None is that of w, which a kernel reads. Codes are chosen for the scales in this dtype.

    Raises:
        ValueError: a weight that is no matrix in a floating-point dtype, and as `quantize`.
    """
    what, remedy = "w, the weight," if name is None else f"the weight of {name}", "pass that of an nn.Linear"
    require(isinstance(w, Tensor), what, "a tensor", f"a {type(w).__name__}", remedy)
    require(w.ndim == 2, what, "a matrix, (N, K)", f"shape {tuple(w.shape)}", remedy)
    require(w.is_floating_point(), what, "in a floating-point dtype", w.dtype, "convert it with w.float()")
    size = w.shape[1] if group_size is None else group_size
    dtype = w.dtype if scale_dtype is None else scale_dtype
    found = quantize(
        w,
        bits=bits,
        symmetric=symmetric,
        granularity="group",
        group_size=size,
        range_method=range_method,
        percentile=percentile,
        scale_dtype=dtype,
        name=name,
    )
    return QuantizedTensor(found.codes, found.scale, found.zero_point, bits, size)


def check_finite(x: Float[Tensor, "*shape"], what: str = "x") -> None:
    """Raises ValueError where there is NaN or infinity, and says what and where."""
    broken = ~x.isfinite()
    if not broken.any():
        return
    first = broken.nonzero()[0].tolist()
    place = f"[{', '.join(map(str, first))}]" if first else ""
    raise ValueError(
        f"{what} must be finite, got {x[tuple(first)].item()} at {place or 'its only number'}, one of "
        f"{int(broken.sum()):,} such numbers; no scale covers them: mend the weights, or what computed them"
    )


def _what(name: str | None) -> str:
    return "x" if name is None else f"the tensor of {name}"


def _groups(x: Tensor, granularity: str, group_size: int | None) -> Float[Tensor, "G n"]:
    """The numbers of a group in a row."""
    kinds = ", ".join(map(repr, GRANULARITIES))
    require(granularity in GRANULARITIES, "granularity", f"one of {kinds}", repr(granularity), "choose one")
    grouped = granularity == "group"
    remedy = "give the number of neighbours for granularity='group', and None for all others"
    require(
        (group_size is not None) == grouped, "group_size", "given for groups alone", repr(group_size), remedy
    )
    require(x.numel() > 0, "x", "at least one number", f"shape {tuple(x.shape)}", "leave out what is empty")
    if granularity == "tensor":
        return x.reshape(1, -1)
    require(x.ndim > 0, "x", "a tensor of rows", "one number", "use granularity='tensor'")
    if granularity == "channel":
        return x.reshape(x.shape[0], -1)
    if granularity == "token":
        return x.reshape(-1, x.shape[-1])
    check_group_size(group_size, x.shape[-1])
    return x.reshape(-1, group_size)


def _scale_shape(x: Tensor, granularity: str, group_size: int | None) -> tuple[int, ...]:
    if granularity == "tensor":
        return ()
    if granularity == "channel":
        return tuple(x.shape[:1])
    if granularity == "token":
        return tuple(x.shape[:-1])
    return (*x.shape[:-1], x.shape[-1] // group_size)
