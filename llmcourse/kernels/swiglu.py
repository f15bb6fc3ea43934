"""SwiGLU between its two matrices: silu(gate) · up (Shazeer 2020, equation 6), read and written once."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory
from llmcourse.kernels.backend import Backend, resolve


def swiglu_reference(gate_up: Float[Tensor, "T two_C"]) -> Float[Tensor, "T C"]:
    """What `swiglu` computes, operation by operation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu(
    gate_up: Float[Tensor, "T two_C"], *, backend: Backend = "auto", pdl: bool = False
) -> Float[Tensor, "T C"]:
    """Of the fused projection: C columns of the gate, then C of up.

    Args:
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: columns or memory that do not fit, or a backend that cannot run.
    """
    check_dims("gate_up", gate_up, "T", "2 C")
    check_memory("gate_up", gate_up, gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(
            f"gate_up must have an even number of columns, got {gate_up.shape[1]}; "
            "stack the rows of gate and up below each other"
        )
    if resolve(backend, gate_up.device, gate_up.dtype) == "reference":
        return swiglu_reference(gate_up)
    from llmcourse.kernels.swiglu_triton import launch

    out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    launch(gate_up, out, pdl)
    return out
