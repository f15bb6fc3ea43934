"""A matrix in integer codes, with a scale and perhaps a zero point for each group of columns of a row.

    x ≈ S (q − Z)   with q and Z in [−2^(bits − 1), 2^(bits − 1) − 1]

The sign of Z is that of the field (Jacob et al. 2018, section 2.1: r = S (q − Z)). Groups cut a row into
pieces of `group_size` neighbours; one group as long as the row is a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class QuantizedTensor:
    """What a method of quantization leaves of a weight.

    Attributes:
        codes: q, int8, one a byte whatever `bits` is (packing is a matter of storage).
        scale: S, of each row's groups, positive, in a floating-point dtype.
        zero_point: Z, int8; None where it is 0 everywhere, that is for symmetric ranges.
        bits: of a code.
        group_size: columns of a group.

    Raises:
        ValueError: bits out of 2 to 8, a group size that does not divide the columns, tensors that do not
            fit each other, or dtypes that are none of these.
    """

    codes: Int[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    zero_point: Int[Tensor, "rows groups"] | None
    bits: int
    group_size: int

    def __post_init__(self):
        if type(self.bits) is not int or self.bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits!r}")
        rows, columns = self.codes.shape
        check_group_size(self.group_size, columns)
        expected = (rows, columns // self.group_size)
        for name in ("scale", "zero_point"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != expected:
                raise ValueError(
                    f"{name} must have shape {expected}, one for each row's groups of {self.group_size} "
                    f"columns, got {tuple(given.shape)}"
                )
        if not self.scale.is_floating_point():
            raise ValueError(f"scale must be in a floating-point dtype, got {self.scale.dtype}")
        for name in ("codes", "zero_point"):
            given = getattr(self, name)
            if given is not None and given.dtype != torch.int8:
                raise ValueError(f"{name} must be in int8, got {given.dtype}; codes of {BITS[-1]} bits fit")

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.codes.shape)

    def dequantized(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """S (q − Z), computed in the dtype of the scales or the one given."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        q = self.codes.unflatten(1, (-1, self.group_size)).to(scale.dtype)
        if self.zero_point is not None:
            q = q - self.zero_point[..., None].to(q.dtype)
        return (scale[..., None] * q).flatten(1)


def check_group_size(group_size: int, columns: int) -> None:
    """Raises ValueError unless groups of this size cut `columns` evenly; names the sizes that do."""
    if type(group_size) is int and 1 <= group_size <= columns and columns % group_size == 0:
        return
    fitting = [size for size in range(1, columns + 1) if columns % size == 0]
    raise ValueError(
        f"group_size must divide the {columns} columns, got {group_size!r}; "
        f"these do: {', '.join(map(str, fitting))}"
    )
