"""SmoothQuant: activations with outliers become easy to round, and weights a little harder.

    Y = (X diag(s)⁻¹) (diag(s) W),   s_j = max|X_j|^α / max|W_j|^(1 − α)

(Xiao et al. 2022, section 4, equations 3 and 4.) With α = 0.5 the largest activation and the largest weight
of a channel become equal. diag(s)⁻¹ goes into the norm before, so the model's function stays what it is and
no operation is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require_number
from llmcourse.model import Decoder
from llmcourse.quantization.calibration import InputStatistics
from llmcourse.quantization.channel_scales import Site, site_of, sites


def smoothing_scale(site: Site, abs_max: Float[Tensor, " K"], alpha: float) -> Float[Tensor, " C"]:
    """s of an input; 1 for channels that are always 0 or that no weight reads."""
    weights = [reader.weight.to(abs_max.dtype).abs().amax(0) for reader in site.readers.values()]
    activation, weight = site.largest(abs_max), site.largest(torch.stack(weights).amax(0))
    scale = activation**alpha / weight ** (1 - alpha)
    return torch.where((activation > 0) & (weight > 0), scale, 1.0)


@torch.no_grad()
def smooth(
    model: Decoder,
    calibrated: Sequence[InputStatistics],
    *,
    alpha: float = 0.5,
    everywhere: bool = False,
) -> dict[str, Float[Tensor, " K"]]:
    """Moves the scale of activations into weights, in place.

    Args:
        calibrated: what `calibrate` has found, of this model; afterwards they are those of the smoothed one.
        alpha: how much of the difficulty goes to the weights, in [0, 1].
        everywhere: also before the output and down projections, where a matrix writes the channels; the
            paper smooths behind norms alone.

    Returns:
        s by the names of the layers that read x / s now.

    Raises:
        ValueError: α out of its range, or a layer that is quantized already.
    """
    require_number(lambda a: 0 <= a <= 1, "alpha", "in [0, 1]", alpha, "use 0.5, more for larger outliers")
    found, scales = sites(model), {}
    for inputs in calibrated:
        site = site_of(found, inputs)
        if site is None or not (site.of_norm or everywhere):
            continue
        scale = smoothing_scale(site, inputs.abs_max, alpha)
        site.divide(scale)
        read = site.spread(scale)
        inputs.divide(read)
        scales |= dict.fromkeys(site.readers, read)
    return scales
