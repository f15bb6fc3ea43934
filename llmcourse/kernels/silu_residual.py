"""Residual blocks side by side on one input: x + SiLU(y_k) for each of K branches, read and written once.

Behind one product for all of them, y = [W₁ … W_K] x + b, as Medusa's heads begin (Cai et al. 2024, section
2.1.1).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory
from llmcourse.kernels.backend import Backend, resolve


def silu_residual_reference(x: Float[Tensor, "B C"], y: Float[Tensor, "B K_C"]) -> Float[Tensor, "B K_C"]:
    """What `silu_residual` computes, operation by operation."""
    branches = F.silu(y).unflatten(1, (-1, x.shape[1]))  # (B, K, C)
    return (x[:, None] + branches).view_as(y)


def silu_residual(
    x: Float[Tensor, "B C"], y: Float[Tensor, "B K_C"], *, backend: Backend = "auto", pdl: bool = False
) -> Float[Tensor, "B K_C"]:
    """The K sums of each row, one behind the other as in y.

    Args:
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("x", x, "B", "C")
    check_dims("y", y, "B", "K C")
    check_memory("x", x, x)
    check_memory("y", y, x)
    if len(y) != len(x) or not y.shape[1] or y.shape[1] % x.shape[1]:
        raise ValueError(
            f"y must have {len(x)} rows of {x.shape[1]} numbers a branch, got shape {tuple(y.shape)}; "
            "stack the branches' weights below each other"
        )
    if resolve(backend, x.device, x.dtype) == "reference":
        return silu_residual_reference(x, y)
    from llmcourse.kernels.silu_residual_triton import launch

    return launch(x, y, pdl)
