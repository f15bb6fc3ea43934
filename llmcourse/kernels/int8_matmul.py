"""A product of codes in 8 bits, exact in int32, with all that dequantizes it in the same kernel.

    y_tn = s_t S_n Σ_k q_tk Q_nk + b_n

Each sum is of integers below 2¹⁴, and exact for all K < 2¹⁷. Where some columns are kept in 16 bits their
product is added before the result is rounded (Dettmers et al. 2022, LLM.int8(), equation 8):

    y_tn = s_t S_n Σ_{k ∉ O} q_tk Q_nk + Σ_{h ∈ O} x_th w_nh + b_n

w_nh is S_n Q_nh, the weight as its code has it, unless 16-bit weights of a fixed O were kept. Codes are exact
in 16 bits, so S_n is multiplied into the sum at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import KERNEL_DTYPES, Backend, resolve
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile, best_int8_tile
from llmcourse.kernels.outlier_columns import OutlierColumns

MOST_COLUMNS = 2**17 - 1  # whose sum of products is an int32 whatever the codes are


@dataclass(frozen=True)
class InSixteenBits:
    """What is multiplied in 16 bits beside a product of codes, which has codes of 0 there.

    Attributes:
        x: `(T, K)`, of which the columns in `outliers` are taken.
        outliers: which these are.
        kept: `(N, C)`, the weights of these columns in the dtype of x, in the order of the list; None takes
            the codes' own.
    """

    x: Float[Tensor, "T K"]
    outliers: OutlierColumns
    kept: Float[Tensor, "N C"] | None = None


def int8_product(codes: Int[Tensor, "T K"], weight: Int[Tensor, "N K"]) -> Int[Tensor, "T N"]:
    """Σ_k q_tk Q_nk in int32.

    On a CPU by a library that is wrong for K = 1 (torch 2.13); elsewhere in fp64, which is exact too.
    """
    if codes.device.type == "cpu" and codes.shape[1] > 1:
        return torch._int_mm(codes, weight.T)
    return (codes.double() @ weight.double().T).int()


def int8_matmul_reference(
    codes: Int[Tensor, "T K"],
    scale: Float[Tensor, " T"],
    weight: Int[Tensor, "N K"],
    weight_scale: Float[Tensor, " N"],
    dtype: torch.dtype,
    *,
    bias: Float[Tensor, " N"] | None = None,
    sixteen: InSixteenBits | None = None,
) -> Float[Tensor, "T N"]:
    """What `int8_matmul` computes, operation by operation, in fp32."""
    y = int8_product(codes, weight).float() * scale[:, None]
    if sixteen is None or sixteen.kept is None:
        if sixteen is not None:
            columns = sixteen.outliers.listed()
            y = y + sixteen.x[:, columns].float() @ weight[:, columns].float().T
        y = y * weight_scale
    else:
        columns = sixteen.outliers.listed()
        y = y * weight_scale + sixteen.x[:, columns].float() @ sixteen.kept.float().T
    return (y if bias is None else y + bias.float()).to(dtype)


def int8_matmul(
    codes: Int[Tensor, "T K"],
    scale: Float[Tensor, " T"],
    weight: Int[Tensor, "N K"],
    weight_scale: Float[Tensor, " N"],
    dtype: torch.dtype,
    *,
    bias: Float[Tensor, " N"] | None = None,
    sixteen: InSixteenBits | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
    tile: Int8Tile | WideTile | None = None,
) -> Float[Tensor, "T N"]:
    """The product of two matrices of codes over their columns, in `dtype`.

    Args:
        codes, weight: int8.
        scale, weight_scale: of the rows of each, in fp32.
        bias: of each output, in `dtype`.
        sixteen: columns that are multiplied in 16 bits instead, as many as there are. On Hopper the first
            `WideTile.outliers` go through the tensor cores together with the codes; where the list is
            longer, which is found out on the device, a slower kernel computes the whole product.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.
        tile: how the kernel cuts the product; None takes the measured or the default shape.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    _check(codes, scale, weight, weight_scale, dtype, bias, sixteen)
    if resolve(backend, codes.device, dtype) == "reference":
        return int8_matmul_reference(codes, scale, weight, weight_scale, dtype, bias=bias, sixteen=sixteen)
    from llmcourse.kernels import int8_matmul_triton

    obstacle = _wide_obstacle(codes, weight, dtype)
    if tile is None:
        tile = best_int8_tile(len(codes), *weight.shape, wide=obstacle is None)
    if isinstance(tile, WideTile) and obstacle:
        raise ValueError(f"tile must be one that fits, got {tile} {obstacle}; leave it at None")
    out = codes.new_empty(len(codes), len(weight), dtype=dtype)
    arguments = (codes, scale, weight, weight_scale, bias, sixteen, out, tile, pdl)
    if isinstance(tile, WideTile):
        from llmcourse.kernels import int8_matmul_gluon

        int8_matmul_gluon.launch(*arguments)
    else:
        int8_matmul_triton.launch(*arguments)
    return out


def _wide_obstacle(codes: Tensor, weight: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernel for many rows cannot run, or None."""
    from llmcourse.kernels.capabilities import runs_wgmma

    outputs, columns = weight.shape
    if not runs_wgmma():
        return "without a GPU of Hopper, or with a Triton before 3.6"
    if dtype.itemsize != 2 or columns % 16 or not columns or outputs % 8:
        takes = "columns in multiples of 16, outputs in multiples of 8, and a result in 16 bits"
        return f"for a weight of {(outputs, columns)} and a result in {dtype}; it takes {takes}"
    if any(not tensor.is_meta and tensor.data_ptr() % 16 for tensor in (codes, weight)):
        return "for codes or a weight that do not begin at a multiple of 16 bytes"
    return None


def _check(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None,
    sixteen: InSixteenBits | None,
) -> None:
    check_dims("codes", codes, "T", "K")
    check_dims("weight", weight, "N", "K")
    (rows, columns), outputs = codes.shape, len(weight)
    for name, tensor in (("codes", codes), ("weight", weight)):
        check_memory(name, tensor, codes, dtype=torch.int8)
    check_tensor("weight", weight, (outputs, columns), codes, "it needs the columns that codes has")
    if columns > MOST_COLUMNS:
        raise ValueError(
            f"codes must have at most {MOST_COLUMNS} columns, whose sum fits 32 bits, got {columns}; "
            "multiply parts of them"
        )
    single = {"dtype": torch.float32}
    check_tensor("scale", scale, (rows,), codes, "pass one for each row of codes", **single)
    check_tensor("weight_scale", weight_scale, (outputs,), codes, "pass one for each output", **single)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}; cast the result after")
    check_tensor("bias", bias, (outputs,), codes, "pass a number for each output, or None", dtype=dtype)
    if sixteen is not None:
        _check_sixteen(sixteen, codes, outputs, dtype)


def _check_sixteen(sixteen: InSixteenBits, codes: Tensor, outputs: int, dtype: torch.dtype) -> None:
    found, (rows, columns) = sixteen.outliers, codes.shape
    check_tensor("sixteen.x", sixteen.x, (rows, columns), codes, "pass what codes was made of", dtype=dtype)
    for name, size, kind in (
        ("flags", columns, torch.int8),
        ("columns", columns, torch.int32),
        ("count", 1, torch.int32),
    ):
        made = "find_outliers makes it"
        check_tensor(f"sixteen.outliers.{name}", getattr(found, name), (size,), codes, made, dtype=kind)
    if sixteen.kept is not None:
        check_dims("sixteen.kept", sixteen.kept, "N", "C")
        wide = (outputs, sixteen.kept.shape[1])
        check_tensor("sixteen.kept", sixteen.kept, wide, codes, "pass a row for each output", dtype=dtype)
