"""A grid of 2^bits evenly spaced numbers: what a range becomes when it is cut into steps.

    q = clamp(round(x / S) + Z),   x̃ = S (q − Z)          (Jacob et al. 2018, section 2.1)

Asymmetric: S = (high − low) / (2^bits − 1), Z = round(q_min − low / S). A range always reaches to 0, so that
0 is a point of the grid and Z is itself a code. Symmetric: Z = 0 and S = max|x| / ((2^bits − 1) / 2), so that
the grid of 2^bits points is as wide as the range; the two ends are half a step from their points. That is the
practice for weights (Frantar et al. 2023; compressed-tensors), where a step that is smaller by a fifteenth at
4 bits, and by a third at 2, is worth more than a largest number without an error; from 6 bits up the two
hardly differ. `narrow_range` leaves −2^(bits − 1) out: S = max|x| / (2^(bits − 1) − 1), the practice for
int8 activations (Dettmers et al. 2022).

S is rounded up to its dtype, so |x − x̃| ≤ S / 2 for each x of the range, up to the rounding of x / S itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.quantization.quantized_tensor import BITS

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


def code_range(bits: int, narrow_range: bool = False) -> tuple[int, int]:
    """The least and the largest code.

    Raises:
        ValueError: bits out of 2 to 8.
    """
    if type(bits) is not int or bits not in BITS:
        raise ValueError(
            f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}; 8 loses least, 2 saves most"
        )
    half = 2 ** (bits - 1)
    return narrow_range - half, half - 1


def scale_and_zero_point(
    low: Float[Tensor, "*groups"],
    high: Float[Tensor, "*groups"],
    bits: int,
    *,
    symmetric: bool = True,
    narrow_range: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "*groups"], Int[Tensor, "*groups"] | None]:
    """S and Z for the range of each group; a range that is 0 alone has S = 1, and Z = 0 or the nearest to it.

    Args:
        low, high: widened to reach to 0. Where they are not finite, nor is S.
        dtype: of the scales, which are positive; beyond its largest number they are infinite (`check_scale`).

    Raises:
        ValueError: bits out of 2 to 8, or a narrow range that is not symmetric.
    """
    least, most = code_range(bits, narrow_range)
    if narrow_range and not symmetric:
        raise ValueError(
            "narrow_range must be False for asymmetric codes, got True; they need no code of their own for 0"
        )
    low, high, steps = low.double().clamp(max=0), high.double().clamp(min=0), most - least
    widest = torch.maximum(-low, high)
    wide = widest / (steps / 2) if symmetric else high / steps - low / steps  # high − low might overflow
    scale = torch.where(widest == 0, 1, rounded_up(wide, dtype))
    if symmetric:
        return scale, None
    zero_point = (least - low / scale.double()).round().clamp(least, most)
    return scale, zero_point.to(torch.int8)


def rounded_up(wide: Float[Tensor, "*groups"], dtype: torch.dtype) -> Float[Tensor, "*groups"]:
    """The least positive number of the dtype that is not below `wide`, which is not below 0."""
    near = wide.to(dtype)
    short = (near.double() < wide) | (near == 0)
    # Positive floating-point numbers are ordered as their bits are, read as an integer.
    return (near.view(_INTEGERS[dtype.itemsize]) + short).view(dtype)


def check_scale(scale: Float[Tensor, "*groups"], widest: Float[Tensor, "*groups"], what: str = "x") -> None:
    """Raises ValueError where finite numbers, up to `widest` in a group, got a scale beyond its dtype."""
    beyond = scale.isinf()
    if beyond.any():
        raise ValueError(
            f"{what} must have scales within {scale.dtype}, got a magnitude of "
            f"{widest[beyond].max().item():.4g}, whose scale is not; take a wider dtype for scales, or scale "
            "the numbers down"
        )


def nearest_codes(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, ...],
    zero_point: Int[Tensor, ...] | None,
    bits: int,
    *,
    narrow_range: bool = False,
) -> Int[Tensor, "*shape"]:
    """clamp(round(x / S) + Z) in int8; ties go to the even number, and what is out of the range to its end.

    Args:
        x: without NaN.
        scale, zero_point: of a shape that broadcasts to that of x.
    """
    least, most = code_range(bits, narrow_range)
    q = (x.to(torch.promote_types(x.dtype, torch.float32)) / scale).round_()
    if zero_point is not None:
        q = q.add_(zero_point)
    return q.clamp_(least, most).to(torch.int8)


def values(
    codes: Int[Tensor, "*shape"],
    scale: Float[Tensor, ...],
    zero_point: Int[Tensor, ...] | None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*shape"]:
    """S (q − Z) in the dtype of the scales or the one given; saturates at the dtype's largest number.

    Only a number within 1 / 2^bits of that largest number, rounded away from 0, needs the last.
    """
    dtype = scale.dtype if dtype is None else dtype
    scale = scale.to(torch.promote_types(scale.dtype, dtype))
    q = codes.to(scale.dtype)
    if zero_point is not None:
        q = q - zero_point.to(q.dtype)
    limit = min(torch.finfo(dtype).max, torch.finfo(scale.dtype).max)
    return (scale * q).clamp_(-limit, limit).to(dtype)
