"""Columns of activations with a number beyond a threshold, found where the activations are.

    O = {k : |x_tk| ≥ α for some row t}        α = 6.0

(Dettmers et al. 2022, LLM.int8(), section 3.2.) How many there are stays on the device: kernels read the
number there, so that nothing waits for the host, and all of it can be in a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_dtype, check_memory
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.quantize_rows import quantize_rows

THRESHOLD = 6.0  # where the paper finds that quality no longer suffers (section 3.2)
LEAST_THRESHOLD = 2.0**-126  # smaller ones are raised to it


@dataclass(frozen=True)
class OutlierColumns:
    """Columns that stay in 16 bits.

    Attributes:
        flags: `(K,)`, int8, 1 for a column that is one.
        columns: `(K,)`, int32, their numbers in ascending order; what stands behind the first `count` means
            nothing.
        count: `(1,)`, int32.
    """

    flags: Int[Tensor, " K"]
    columns: Int[Tensor, " K"]
    count: Int[Tensor, " one"]

    @classmethod
    def of(cls, flags: Tensor) -> OutlierColumns:
        """By PyTorch's operations, none of which waits for the device."""
        flags = flags.to(torch.int8)
        order = torch.argsort(flags, descending=True, stable=True)
        return cls(flags, order.to(torch.int32), flags.sum(dtype=torch.int32).view(1))

    def listed(self) -> Int[Tensor, " count"]:
        """The columns' numbers; waits for the device."""
        return self.columns[: int(self.count)].long()


def find_outliers_reference(x: Float[Tensor, "T K"], threshold: float = THRESHOLD) -> OutlierColumns:
    """What `find_outliers` computes, operation by operation."""
    # In fp32, since PyTorch rounds a number that it compares a tensor with to the tensor's dtype.
    return OutlierColumns.of((x.float().abs() >= threshold).any(0))


def find_outliers(
    x: Float[Tensor, "T K"],
    threshold: float = THRESHOLD,
    *,
    backend: Backend = "auto",
    pdl: bool = False,
) -> OutlierColumns:
    """The columns of x with a number of at least the threshold in absolute value; NaN is none.

    Args:
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: a threshold that is not positive, memory that does not fit, or a backend that cannot run.
    """
    threshold = _checked(x, threshold)
    if resolve(backend, x.device, x.dtype) == "reference":
        return find_outliers_reference(x, threshold)
    from llmcourse.kernels.outlier_columns_triton import launch_find

    return launch_find(x, threshold, pdl)


def quantize_mixed(
    x: Float[Tensor, "T K"],
    threshold: float = THRESHOLD,
    *,
    backend: Backend = "auto",
    pdl: bool = False,
) -> tuple[Int[Tensor, "T K"], Float[Tensor, " T"], OutlierColumns]:
    """The outliers of x, and codes and scales of all other columns (`quantize_rows`).

    A large x is read twice, since no row has a scale before all columns are known; a small one in one launch.

    Raises:
        ValueError: as `find_outliers`.
    """
    threshold = _checked(x, threshold)
    if resolve(backend, x.device, x.dtype) == "triton":
        from llmcourse.kernels.outlier_columns_triton import launch_mixed, takes_one_launch

        if takes_one_launch(x):
            return launch_mixed(x, threshold, pdl)
    found = find_outliers(x, threshold, backend=backend, pdl=pdl)
    return *quantize_rows(x, skipped=found.flags, backend=backend, pdl=pdl), found


def _checked(x: Tensor, threshold: float) -> float:
    """The threshold as fp32 can hold it: never 0, which kernels read behind the last column."""
    check_threshold(threshold)
    check_dims("x", x, "T", "K")
    check_dtype("x", x)
    check_memory("x", x, x)
    return max(float(threshold), LEAST_THRESHOLD)


def check_threshold(threshold: float) -> None:
    """Raises ValueError unless it is a positive number."""
    if not (isinstance(threshold, int | float) and threshold > 0) or math.isnan(threshold):
        raise ValueError(
            f"threshold must be positive, got {threshold!r}; {THRESHOLD} is the paper's, inf finds none"
        )
