"""RMSNorm of many rows, x / RMS(x) · w (Zhang and Sennrich 2019, section 4), in one pass over each."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve


def rms_norm_reference(
    x: Float[Tensor, "T C"], weight: Float[Tensor, " C"], eps: float
) -> Float[Tensor, "T C"]:
    """What `rms_norm` computes."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm(
    x: Float[Tensor, "T C"],
    weight: Float[Tensor, " C"],
    eps: float,
    *,
    backend: Backend = "auto",
    pdl: bool = False,
) -> Float[Tensor, "T C"]:
    """Each row over its root mean square, which is taken in fp32.

    Args:
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("x", x, "T", "C")
    check_memory("x", x, x)
    check_tensor("weight", weight, (x.shape[1],), x, "pass a weight for each column of x")
    if resolve(backend, x.device, x.dtype) == "reference":
        return rms_norm_reference(x, weight, eps)
    from llmcourse.kernels.rms_norm_triton import launch

    return launch(x, weight, eps, pdl)
