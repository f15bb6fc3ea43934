"""Muon for many small matrices: all matrices of one shape in one batched product.

`torch.optim.Muon` takes the matrices one by one, about thirty small kernels each. With models of this
size a GPU runs them faster than Python can start them, so the host decides how long a step takes. The
mathematics and the state are those of `torch.optim.Muon`, which stays the truth that this is tested by.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

NORM_FLOOR = 1e-7


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum and rates scaled as `match_rms_adamw` does.

    Args:
        params: matrices.
        lr, weight_decay, momentum: as there.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict) -> None:
        """Momentum, orthogonal direction, decay and step, for matrices of one shape."""
        gradients = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        averages = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        # An orthogonal direction has entries of about one over the root of the longer side.
        rate = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(matrices, self.steps(looked_ahead, rate, group))

    def steps(self, looked_ahead: Sequence[Tensor], rate: float | Tensor, group: dict) -> list[Tensor]:
        """What is taken off matrices of one shape: orthogonal directions at that rate."""
        directions = orthogonalize(torch.stack(looked_ahead), group["ns_coefficients"], group["ns_steps"])
        steps = directions.to(looked_ahead[0].dtype) * rate  # not by `alpha`: that would wait for the device
        return list(steps.unbind())


def orthogonalize(
    matrices: Float[Tensor, "N R C"], coefficients: tuple[float, float, float], steps: int
) -> Float[Tensor, "N R C"]:
    """Moves every singular value of each matrix near 1, in bf16: X ← aX + b(XXᵀ)X + c(XXᵀ)²X.

    A quintic Newton–Schulz iteration (Jordan et al. 2024) on the side where XXᵀ is the smaller one.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=NORM_FLOOR)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
