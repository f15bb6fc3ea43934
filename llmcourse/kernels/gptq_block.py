"""A block of columns, rounded one after the other as GPTQ does: each error is passed on to those behind it.

    q_j = round(w_j / s) + Z,   e_j = (w_j − s (q_j − Z)) / U_jj,   w_k ← w_k − e_j U_jk  for k > j

with U the upper Cholesky factor of the inverse Hessian (Frantar et al. 2022, algorithm 1, the inner loop).
Columns wait for each other, rows never do. As PyTorch operations a column is a dozen launches; as a kernel
128 columns are one, in which a program keeps some rows in registers from the first column to the last.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_dtype, check_kind, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve

MOST_COLUMNS = 128  # of a block; a program holds them in registers
DTYPES = (torch.float32, torch.float64)


def gptq_block_reference(
    weight: Float[Tensor, "N B"],
    factor: Float[Tensor, "B B"],
    scale: Float[Tensor, "G N"],
    zero_point: Int[Tensor, "G N"],
    group: Int[Tensor, " B"],
    bits: int,
) -> tuple[Int[Tensor, "N B"], Float[Tensor, "N B"]]:
    """What `gptq_block` computes, column by column."""
    left = weight.clone()
    codes, errors = torch.empty_like(left, dtype=torch.int8), torch.empty_like(left)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, zero = scale[group], zero_point[group].to(left.dtype)  # (B, N)
    for j in range(left.shape[1]):
        code = ((left[:, j] / scale[j]).round() + zero[j]).clamp(lowest, highest)
        errors[:, j] = (left[:, j] - scale[j] * (code - zero[j])) / factor[j, j]
        codes[:, j] = code
        left[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
    return codes, errors


def gptq_block(
    weight: Float[Tensor, "N B"],
    factor: Float[Tensor, "B B"],
    scale: Float[Tensor, "G N"],
    zero_point: Int[Tensor, "G N"],
    group: Int[Tensor, " B"],
    bits: int,
    *,
    backend: Backend = "auto",
) -> tuple[Int[Tensor, "N B"], Float[Tensor, "N B"]]:
    """Codes of a block, and each column's error over its diagonal entry: what the columns behind the block
    are to be corrected by, `W[:, end:] −= errors @ U[start:end, end:]`.

    Args:
        weight: the block as the columns before it have left it; may lie in a wider matrix.
        factor: U of these columns, upper triangular with a positive diagonal; may lie in a wider matrix.
        scale, zero_point: by groups of columns, the rows of one group side by side; scales are positive.
        group: in which group each column is, in [0, G).
        bits: of a code, 2 to 8; codes are signed.

    Raises:
        ValueError: more columns than a program holds, shapes, dtypes, devices or memory that do not fit, or
            a backend that cannot run.
    """
    rows, columns = _check_block(weight, factor, scale, zero_point, group)
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2 to 8, got {bits!r}; codes are kept in int8")
    if resolve(backend, weight.device, weight.dtype) == "reference":
        return gptq_block_reference(weight, factor, scale, zero_point, group, bits)
    from llmcourse.kernels.gptq_block_triton import launch

    codes = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    errors = torch.empty(rows, columns, dtype=torch.float32, device=weight.device)
    launch(weight, factor, scale, zero_point, group, codes, errors, bits)
    return codes, errors


def _check_block(
    weight: Tensor, factor: Tensor, scale: Tensor, zero_point: Tensor, group: Tensor
) -> tuple[int, int]:
    """Rows and columns."""
    check_dims("weight", weight, "N", "B")
    check_dims("factor", factor, "B", "B")
    check_dims("scale", scale, "G", "N")
    check_dtype("weight", weight, DTYPES)
    check_kind("factor", factor, weight)
    for name, matrix in (("weight", weight), ("factor", factor)):
        if matrix.stride(1) != 1:
            raise ValueError(
                f"{name} must have the numbers of a row side by side, got strides {matrix.stride()}; "
                "call .contiguous()"
            )
    rows, columns = weight.shape
    if not 1 <= columns <= MOST_COLUMNS:
        raise ValueError(
            f"weight must have 1 to {MOST_COLUMNS} columns, got {columns}; pass a block at a time"
        )
    if factor.shape != (columns, columns):
        raise ValueError(
            f"factor must have shape {(columns, columns)}, got {tuple(factor.shape)}; "
            "pass its part for these columns"
        )
    each = "pass one for each row of every group"
    check_tensor("scale", scale, (len(scale), rows), weight, each)
    check_tensor("zero_point", zero_point, tuple(scale.shape), weight, each, dtype=torch.int8)
    check_memory("group", group, weight, dtype=torch.int32)
    check_tensor("group", group, (columns,), weight, "pass one for each column", dtype=torch.int32)
    return rows, columns
