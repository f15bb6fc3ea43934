"""Matrices on a CPU: how they lie in memory, so that one row of input is multiplied as fast as they are read.

`y = x Wᵀ` for a single x reads W once, and BLAS makes two things of it that cost more than half of the
speed. It goes along the dimension whose elements are neighbours, and short runs are slow: with 320
inputs and 12,288 outputs W had better lie by columns (`lay_out`). And it employs one core, where two
products side by side are given to two (`product`). A few rows, as drafts are verified in, read W once too,
and are faster by columns even where W is square. On other devices, and for formats that BLAS lacks,
everything stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLAS_DTYPES = (torch.float32, torch.float64)
MOST_PARTS = 4  # a few cores ask for all that memory gives
LEAST_BYTES = 2**20  # one core has read less than that before others take part


def lay_out(weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """The same matrix, by rows where they are longer than the columns, otherwise by columns."""
    by_columns = _for_blas(weight) and weight.shape[0] >= weight.shape[1]
    return weight.t().contiguous().t() if by_columns else weight.contiguous()


def lay_out_linears(model: nn.Module) -> None:
    """`lay_out` for all linear layers, in place; shapes, values and ties stay what they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = lay_out(module.weight.data)


def product(
    x: Float[Tensor, "B K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "B N"]:
    """x Wᵀ + b: a single row as several products of parts of W, which are views."""
    parts = _num_parts(x, weight)
    if parts == 1:
        return F.linear(x, weight, bias)
    if weight.is_contiguous():  # each part gives some of the outputs
        y = torch.bmm(x.expand(parts, 1, -1), weight.unflatten(0, (parts, -1)).mT).view(1, -1)
    else:  # or adds to all of them
        y = torch.bmm(x.view(parts, 1, -1), weight.t().unflatten(0, (parts, -1))).sum(0)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """A linear layer that multiplies as `product` does."""

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        rows = x.reshape(-1, self.in_features)
        return product(rows, self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def _num_parts(x: Tensor, weight: Tensor) -> int:
    """As many as cores, a power of 2 and at most `MOST_PARTS`; 1 where cutting does not work or pay."""
    if len(x) > 1 or not _for_blas(weight) or weight.nbytes < LEAST_BYTES:
        return 1  # decided by shapes alone: `torch.compile` would break off where threads are asked for
    parts = min(MOST_PARTS, 1 << (torch.get_num_threads().bit_length() - 1))
    return parts if weight.shape[0 if weight.is_contiguous() else 1] % parts == 0 else 1


def _for_blas(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in BLAS_DTYPES
