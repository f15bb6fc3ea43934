"""The Hessian of a linear layer's output error, H = 2 XᵀX: what it says of a rounded weight, and its inverse.

    ‖X ΔWᵀ‖² = ½ Σ_rows Δ H Δᵀ,   H⁻¹ = Uᵀ U with U upper triangular

Row j of U holds what GPTQ needs when it rounds column j: √ of the inverse's diagonal and, behind it, how the
error is spread over the columns that are still free (Frantar et al. 2022, section 3.3, step 3).
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.quantization.calibration import CalibrationWarning


def output_error(difference: Float[Tensor, "N K"], hessian: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
    """‖X Δᵀ‖² of each row: the squared error in each output, summed over the calibration text."""
    return ((difference @ hessian) * difference).sum(1) / 2


def inverse_factor_reference(hessian: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """U as in the paper: decompose, invert, decompose the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def inverse_factor(hessian: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """The same from one decomposition and one triangular inverse: half of the work.

    Taken from its last column to its first, H = L Lᵀ; turned back, L is an upper R with H = R Rᵀ, so that
    H⁻¹ = R⁻ᵀ R⁻¹ and U = R⁻¹.

    Raises:
        torch.linalg.LinAlgError: not positive definite.
    """
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    return torch.linalg.solve_triangular(upper, one, upper=True)


def damped(hessian: Float[Tensor, "K K"], damping: float) -> Float[Tensor, "K K"]:
    """H + λI with λ = damping · mean of the diagonal; of a layer that has read nothing but 0, I."""
    mean = hessian.diagonal().mean()
    shift = torch.where(mean > 0, damping * mean, 1.0)
    result = hessian.clone()
    result.diagonal().add_(shift)
    return result


def damped_factor(
    hessian: Float[Tensor, "K K"], damping: float, name: str | None = None, factor=inverse_factor
) -> Float[Tensor, "K K"]:
    """U of the damped Hessian; ten times the damping where fp32 does not see it as positive definite.

    Args:
        damping: in (0, 1].
        name: of the layer, for errors.
        factor: which of the two above.

    Raises:
        ValueError: NaN or infinity in H, an H that is not symmetric within rounding, or no damping helps.

    Warns:
        CalibrationWarning: a larger damping was taken.
    """
    what = f"the Hessian of {name}" if name else "hessian"
    if not hessian.isfinite().all():
        raise ValueError(
            f"{what} must be finite, got NaN or infinity; calibrate with a model that computes numbers"
        )
    apart, largest = (hessian - hessian.T).abs_().max(), hessian.abs().max()
    # Sums of the same products in another order differ by less.
    if apart > torch.finfo(hessian.dtype).eps ** 0.5 * largest:
        raise ValueError(
            f"{what} must be symmetric, got entries (i, j) and (j, i) up to {apart.item():.3g} apart where "
            f"the largest is {largest.item():.3g}; sum it as 2 XᵀX"
        )
    used = damping
    while used <= 1:
        try:
            return factor(damped(hessian, used)).contiguous()
        except torch.linalg.LinAlgError:
            used *= 10
            warnings.warn(
                f"{what} is not positive definite with a damping of {used / 10:g}; trying {used:g}, which "
                "leads closer to plain rounding; give more calibration text",
                CalibrationWarning,
                stacklevel=3,
            )
    raise ValueError(f"{what} must have no negative eigenvalue; sum it as 2 XᵀX")
