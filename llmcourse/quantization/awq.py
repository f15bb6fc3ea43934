"""AWQ: weights that meet large activations are made larger before they are rounded, and the input smaller.

    L(s) = ‖Q(W diag(s)) (diag(s)⁻¹ X) − W X‖²,   s = s_X^α,   α* = argmin L over a grid in [0, 1)

with s_X the mean magnitude of each input channel (Lin et al. 2023, section 3.2, equations 4 and 5). A weight
is moved by at most half a step whatever its size, so one that is made twice as large is twice as exact in the
end, as long as it is not the largest of its group and makes the step larger for all others. The scale is
folded into what writes the channels, so no operation is added. α = 0 is plain rounding: with the calibration
text's own H, L is never above that of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require_integer
from llmcourse.model import Decoder
from llmcourse.quantization.affine import check_finite, quantize_weight
from llmcourse.quantization.calibration import LINEARS, InputStatistics, Place, layer_by_layer, place_values
from llmcourse.quantization.channel_scales import Site, site_of, sites
from llmcourse.quantization.grid import code_range
from llmcourse.quantization.hessian import output_error
from llmcourse.quantization.quantized_tensor import QuantizedTensor
from llmcourse.quantization.ranges import RangeMethod

LEAST = 1e-4  # of a channel's mean magnitude, so that one which the text never used has a scale


@dataclass(frozen=True)
class AWQSettings:
    """What AWQ rounds to, and how finely it looks for α.

    Attributes:
        bits, group_size, symmetric, range_method: as in `quantize_weight`.
        grid: how many α are tried, 0 and then every 1 / grid.

    Raises:
        ValueError: bits that do not exist, or no α.
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = True
    range_method: RangeMethod = "minmax"
    grid: int = 20

    def __post_init__(self):
        code_range(self.bits)
        require_integer(1, "grid", self.grid, "use 20; 1 is plain rounding")


@dataclass(frozen=True)
class AWQResult:
    """A quantized weight, its channels scaled.

    Attributes:
        alpha: that was chosen for its input, together with all layers that read it.
        loss, rounding_loss: ‖X ΔWᵀ‖² of this layer over the calibration text, and of plain rounding; those of
            a layer whose outputs another scale divides are in the units from before.
    """

    quantized: QuantizedTensor
    alpha: float
    loss: float
    rounding_loss: float


def channel_scale(abs_mean: Float[Tensor, " C"], alpha: float) -> Float[Tensor, " C"]:
    """s_X^α, over the geometric mean of its ends, so that weights stay about as large as they were."""
    scale = abs_mean.clamp(min=LEAST) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()


@dataclass(frozen=True)
class _Choice:
    """Of an input: α, s, and each reader's loss with it and by plain rounding."""

    alpha: float
    scale: Float[Tensor, " C"]
    losses: list[float]
    rounding_losses: list[float]


def _round(weight: Tensor, settings: AWQSettings, name: str, dtype: torch.dtype) -> QuantizedTensor:
    s = settings
    return quantize_weight(weight, s.bits, s.group_size, s.symmetric, s.range_method, name, scale_dtype=dtype)


def _choose(
    site: Site | None, inputs: InputStatistics, linears: dict[str, nn.Linear], settings: AWQSettings
) -> _Choice:
    """The best α for all layers that read the input; 0 where nothing can be scaled."""
    wide = {name: linears[name].weight.to(inputs.hessian.dtype) for name in inputs.names}
    written = site.mean(inputs.abs_mean) if site else inputs.abs_mean
    tried: list[_Choice] = []
    for step in range(settings.grid if site else 1):
        alpha = step / settings.grid
        scale = channel_scale(written, alpha)
        read, losses = site.spread(scale) if site else scale, []
        for name, weight in wide.items():
            stored = linears[name].weight.dtype  # of the scaled weight and of its scales
            scaled = (weight * read).to(stored).to(weight.dtype)
            rounded = _round(scaled, settings, name, stored).dequantized(weight.dtype) / read
            losses.append(output_error(rounded - weight, inputs.hessian).double().sum().item())
        tried.append(_Choice(alpha, scale, losses, tried[0].losses if tried else losses))
    return min(tried, key=lambda choice: sum(choice.losses))


@torch.no_grad()
def awq_model(
    model: Decoder,
    token_ids: Int[Tensor, "N T"],
    settings: AWQSettings,
    *,
    layers: Sequence[str] = LINEARS,
    place: Place = place_values,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[str, AWQResult]:
    """Scales the channels of every layer in place, rounds it, and goes on with what it gives then.

    Layers that share an input share its scale; query heads that share a head of values share the scale of
    its channels before the output projection. A layer whose input nothing can scale, `lm_head`, is rounded.

    Args:
        token_ids: calibration texts, as from `calibration.windows`.
        layers: patterns of names; a layer that is not among them stays in its dtype, if scaled.
        place: puts a layer's codes into the model, before the next layer is calibrated.

    Raises:
        ValueError: as `calibration.calibrate` and `quantize_weight`, or a layer that is quantized already.
    """
    results: dict[str, AWQResult] = {}
    found = sites(model)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    how = {"layers": layers, "purpose": "error", "batch_size": batch_size, "progress": progress}
    for of_layer in layer_by_layer(model, token_ids, **how):
        chosen = [(inputs, *_scaled(found, inputs, linears, settings)) for inputs in of_layer]
        for inputs, alpha, losses in chosen:
            for name, loss in zip(inputs.names, losses, strict=True):
                linear = linears.pop(name)
                wide = linear.weight.to(torch.promote_types(linear.weight.dtype, torch.float32))
                quantized = _round(wide, settings, name, linear.weight.dtype)
                place(name, linear, quantized)
                results[name] = AWQResult(quantized, alpha, *loss)
    return results


def _scaled(
    found: list[Site], inputs: InputStatistics, linears: dict[str, nn.Linear], settings: AWQSettings
) -> tuple[float, list[tuple[float, float]]]:
    """Scales an input where that can be done; α, and the losses of each of its readers."""
    for name in inputs.names:
        check_finite(linears[name].weight, f"the weight of {name}")
    site = site_of(found, inputs)
    choice = _choose(site, inputs, linears, settings)
    if site and choice.alpha:
        site.divide(choice.scale)
    return choice.alpha, list(zip(choice.losses, choice.rounding_losses, strict=True))
