"""LLM.int8(): columns of x with outliers are multiplied in 16 bits, all others in int8.

    y ≈ Σ_{h ∈ O} x_h w_h + s_x S_W Σ_{k ∉ O} q_k Q_k      O: columns with |x| ≥ 6 in some row

(Dettmers et al. 2022, section 3.2, "mixed-precision decomposition", equation 8.) A few columns of large
models hold numbers twenty times those of all others; one scale for a row would then leave nothing of the
rest. Rows and outputs have a scale each ("vector-wise quantization", section 3.1), without the columns in O.

O is found anew for each batch of rows, on the device, and nothing waits for the host. Weights of outlier
columns are then those that the codes have, since which columns they will be is not known before: what is won
is the precision of x, as in the paper's own library when it keeps weights in int8. Where calibration has
named the columns for good, their weights are kept in 16 bits, too, as the paper's equation has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.backend import Backend
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile
from llmcourse.kernels.outlier_columns import (
    THRESHOLD,
    OutlierColumns,
    check_threshold,
    find_outliers,
    quantize_mixed,
)
from llmcourse.kernels.quantize_rows import quantize_rows
from llmcourse.kernels.quantized_linear import QuantizedLinear, stacked_biases
from llmcourse.kernels.rms_norm import rms_norm
from llmcourse.kernels.scaled_linear import take_rows


class MixedLinear(Int8Linear):
    """y = x Wᵀ + b in int8, but for the columns of x that have outliers.

    Args:
        codes, scale, bias: as of `Int8Linear`.
        threshold: α, which makes a column one of O.
        columns: `(C,)`, integers: a fixed O, in ascending order; None finds it in each x.
        kept: `(N, C)`, the weights of a fixed O in 16 bits; None takes them from the codes.

    Raises:
        ValueError: as `Int8Linear`; a threshold that is not positive; columns that W does not have or that
            do not ascend; kept weights that do not fit them.
    """

    def __init__(
        self,
        codes: Int[Tensor, "N K"],
        scale: Tensor,
        bias: Float[Tensor, " N"] | None = None,
        *,
        threshold: float = THRESHOLD,
        columns: Int[Tensor, " C"] | None = None,
        kept: Float[Tensor, "N C"] | None = None,
    ):
        super().__init__(codes, scale, bias)
        check_threshold(threshold)
        self.threshold = threshold
        _check_fixed(codes, columns, kept)
        flags = None
        if columns is not None:
            flags = torch.zeros(codes.shape[1], dtype=torch.int8, device=codes.device)
            flags[columns.to(codes.device)] = 1
        self.register_buffer("fixed", flags)
        self.register_buffer("kept", None if kept is None else kept.contiguous())

    def outliers(
        self, x: Float[Tensor, "B K"], backend: Backend = "auto", pdl: bool = False
    ) -> OutlierColumns:
        """The columns of x that are multiplied in 16 bits."""
        if self.fixed is not None:
            return OutlierColumns.of(self.fixed)
        return find_outliers(x.contiguous(), self.threshold, backend=backend, pdl=pdl)

    def dequantized(self) -> Float[Tensor, "N K"]:
        """W as the codes have it, and in a fixed O as it was kept."""
        w = super().dequantized()
        if self.kept is not None:
            w[:, self.fixed.bool()] = self.kept.float()
        return w

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        merged = Int8Linear.stacked([_as_int8(part) for part in parts])
        first = parts[0]
        same = all(
            part.threshold == first.threshold
            and (part.fixed is None) == (first.fixed is None)
            and (part.kept is None) == (first.kept is None)
            and (first.fixed is None or torch.equal(part.fixed, first.fixed))
            for part in parts
        )
        if not same:
            raise ValueError(
                "parts must have one threshold and the same fixed columns, got "
                f"{', '.join(repr(part) for part in parts)}; quantize them with the same columns"
            )
        columns = None if first.fixed is None else first.fixed.nonzero()[:, 0]
        kept = None if first.kept is None else torch.cat([part.kept for part in parts])
        return cls(
            merged.codes,
            merged.scale,
            stacked_biases(parts),
            threshold=first.threshold,
            columns=columns,
            kept=kept,
        )

    def become_rows(self, whole: QuantizedLinear, begin: int) -> None:
        take_rows(self, whole, begin, ("codes", "scale", "bias", "kept"))

    def multiplied(
        self,
        x: Tensor,
        norm: Tensor | None,
        eps: float,
        bias: Tensor | None,
        backend: Backend,
        pdl: bool,
        tile: Int8Tile | WideTile | None = None,
    ) -> Tensor:
        if norm is not None:
            x = rms_norm(x, norm, eps, backend=backend, pdl=pdl)
        if self.fixed is None:
            codes, scale, outliers = quantize_mixed(x, self.threshold, backend=backend, pdl=pdl)
        else:
            outliers = self.outliers(x, backend, pdl)
            codes, scale = quantize_rows(x, skipped=outliers.flags, backend=backend, pdl=pdl)
        kept = None if self.kept is None else self.kept.to(x.dtype)
        given = {"bias": bias, "backend": backend, "pdl": pdl, "tile": tile}
        sixteen = InSixteenBits(x, outliers, kept)
        return int8_matmul(codes, scale, self.codes, self.scale, x.dtype, sixteen=sixteen, **given)

    def extra_repr(self) -> str:
        fixed = "" if self.fixed is None else f", {int(self.fixed.sum())} fixed columns"
        return f"{super().extra_repr()}, threshold={self.threshold}{fixed}"


def _as_int8(part: MixedLinear) -> Int8Linear:
    return Int8Linear(part.codes, part.scale, part.bias)


def _check_fixed(codes: Tensor, columns: Tensor | None, kept: Tensor | None) -> None:
    if columns is None:
        if kept is not None:
            raise ValueError("kept must come with columns, got None for them; say which columns they are of")
        return
    inside = columns.numel() == 0 or (int(columns.min()) >= 0 and int(columns.max()) < codes.shape[1])
    if not inside or bool((columns.diff() <= 0).any()):
        raise ValueError(
            f"columns must ascend from 0 to at most {codes.shape[1] - 1}, got {columns.tolist()}; "
            "sort them, each once"
        )
    if kept is not None and kept.shape != (len(codes), len(columns)):
        raise ValueError(
            f"kept must have shape {(len(codes), len(columns))}, got {tuple(kept.shape)}; pass W[:, columns]"
        )
