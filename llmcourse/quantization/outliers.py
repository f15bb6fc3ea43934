"""Outliers: a few channels of the activations that are many times larger than all others.

In models from some 7 billion parameters on, a handful of channels, the same in nearly all layers, exceed 6
where most numbers are below 1, and 8 bits with one scale for a token leave nothing of the others (Dettmers et
al. 2022, section 4). Small models have few or none: `find_outliers` shows what there is. `scaled_channels`
makes them, in a model that computes the same function as before, and `errors_by_scale` shows what they do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_number
from llmcourse.model import Decoder
from llmcourse.progress import bar
from llmcourse.quantization.affine import quantize
from llmcourse.quantization.calibration import LINEARS, InputStatistics, linear_layers
from llmcourse.quantization.channel_scales import sites

THRESHOLD = 6.0  # of a magnitude, by Dettmers et al. 2022, section 3.2


@dataclass(frozen=True)
class Outliers:
    """What one input has of them.

    Attributes:
        names: of the layers that read it.
        columns: channels with a magnitude of at least `threshold` somewhere in the text, in order.
        largest: the largest magnitude of all.
        ratio: that over the median of the channels' own largest magnitudes.
    """

    names: tuple[str, ...]
    threshold: float
    columns: Int[Tensor, " outliers"]
    num_channels: int
    largest: float
    ratio: float

    @property
    def share(self) -> float:
        """Of the channels."""
        return len(self.columns) / self.num_channels


def outlier_columns(x: Float[Tensor, "*shape K"], threshold: float = THRESHOLD) -> Int[Tensor, " outliers"]:
    """Channels in which some row of x has a magnitude of at least the threshold.

    Raises:
        ValueError: a threshold that is not positive.
    """
    _check_threshold(threshold)
    largest = x.reshape(-1, x.shape[-1]).abs().amax(0)
    # PyTorch would round the threshold to a narrow dtype of x.
    return (largest.to(torch.promote_types(x.dtype, torch.float32)) >= threshold).nonzero()[:, 0]


def find_outliers(calibrated: Iterable[InputStatistics], threshold: float = THRESHOLD) -> list[Outliers]:
    """Of every input that `calibrate` has seen; it needs no Hessians for this.

    Raises:
        ValueError: a threshold that is not positive.
    """
    _check_threshold(threshold)
    found = []
    for inputs in calibrated:
        largest, median = inputs.abs_max.max().item(), inputs.abs_max.median().item()
        columns = outlier_columns(inputs.abs_max, threshold)
        ratio = largest / median if median else float("inf")
        found.append(Outliers(tuple(inputs.names), threshold, columns, len(inputs.abs_max), largest, ratio))
    return found


def scaled_channels(model: Decoder, factor: float, channels: Sequence[int]) -> Decoder:
    """A copy in which these channels are `factor` times as large behind every norm, and nothing else changes.

    Raises:
        ValueError: a factor that is not positive and finite, or channels that the model does not have.
    """
    require_number(lambda f: 0 < f < float("inf"), "factor", "positive and finite", factor, "use 1 for none")
    size = model.config.hidden_size
    wrong = [channel for channel in channels if not 0 <= channel < size]
    require(not wrong, "channels", f"in [0, {size})", wrong, "choose some of the model's hidden size")
    changed = copy.deepcopy(model)
    for site in sites(changed):
        if site.of_norm:
            gain = site.source.weight
            scale = torch.ones(size, dtype=torch.promote_types(gain.dtype, torch.float32), device=gain.device)
            scale[list(channels)] = 1 / factor
            site.divide(scale)
    return changed


@dataclass(frozen=True)
class ErrorAtScale:
    """Of all layers' outputs when their inputs are rounded: ‖ΔY‖² / ‖Y‖².

    Attributes:
        factor: of the channels that were scaled.
        tensor: one scale for a batch.
        token: one for each token.
        mixed: the same, with columns of outliers in full precision (LLM.int8()).
        outlier_share: of those columns among all.
    """

    factor: float
    tensor: float
    token: float
    mixed: float
    outlier_share: float


@torch.no_grad()
def errors_by_scale(
    model: Decoder,
    token_ids: Int[Tensor, "N T"],
    factors: Sequence[float],
    channels: Sequence[int],
    *,
    bits: int = 8,
    threshold: float = THRESHOLD,
    layers: Sequence[str] = LINEARS,
    progress: bool = True,
) -> list[ErrorAtScale]:
    """What rounding activations costs as outliers grow; the unrounded function is the same for all factors.

    Args:
        token_ids: a batch of texts.
        factors: as of `scaled_channels`.
        progress: show a bar, if it takes more than a moment.

    Raises:
        ValueError: as `scaled_channels`, `quantize` and `linear_layers`.
    """
    _check_threshold(threshold)
    return [
        _errors(scaled_channels(model, factor, channels), token_ids, factor, bits, threshold, layers)
        for factor in bar(factors, "scales", unit="scale", shown=progress, after_s=1)
    ]


def _errors(
    model: Decoder, token_ids: Tensor, factor: float, bits: int, threshold: float, layers: Sequence[str]
) -> ErrorAtScale:
    sums = torch.zeros(4, dtype=torch.float64)
    columns = [0, 0]

    def see(linear: nn.Linear, given: tuple[Tensor], y: Tensor) -> None:
        x, outliers = given[0], outlier_columns(given[0], threshold)
        columns[0] += len(outliers)
        columns[1] += x.shape[-1]
        ways = rounded(x, bits, "tensor"), rounded(x, bits, "token"), rounded_mixed(x, bits, outliers)
        lost = [(F.linear(way, linear.weight, linear.bias) - y).double().square().sum() for way in ways]
        sums.add_(torch.stack([*lost, y.double().square().sum()]).cpu())

    handles = [linear.register_forward_hook(see) for linear in linear_layers(model, layers).values()]
    try:
        model.hidden_states(token_ids.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return ErrorAtScale(factor, *(sums[:3] / sums[3]).tolist(), columns[0] / columns[1])


def rounded(x: Float[Tensor, "*shape"], bits: int, granularity: str) -> Float[Tensor, "*shape"]:
    """The nearest numbers that codes of a symmetric narrow range stand for."""
    return quantize(x, bits=bits, granularity=granularity, narrow_range=True).dequantized(x.dtype)


def rounded_mixed(
    x: Float[Tensor, "*shape K"], bits: int, outliers: Int[Tensor, " outliers"]
) -> Float[Tensor, "*shape K"]:
    """As `rounded` by tokens, but columns of outliers stay, and no scale has to reach to them."""
    others = x.index_fill(-1, outliers, 0)
    return rounded(others, bits, "token").index_copy(-1, outliers, x.index_select(-1, outliers))


def _check_threshold(threshold: float) -> None:
    require_number(lambda t: t > 0, "threshold", "positive", threshold, "use 6.0, as LLM.int8() does")
