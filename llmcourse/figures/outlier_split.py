"""What goes into a linear layer, and what int8 makes of it, with and without columns that keep 16 bits.

    Y ≈ X₁₆ W₁₆ᵀ + X₈ W₈ᵀ        (Dettmers et al. 2022, LLM.int8(), section 3.2)

A column of X is an outlier if any of its values reaches the threshold. All others are quantized token by
token: one outlier among them would stretch the steps of its whole token. Weights keep their bits here: all
that is lost is lost by the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmcourse.quantization.affine import quantize
from llmcourse.quantization.outliers import THRESHOLD, outlier_columns

THRESHOLDS = (0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, math.inf)
DEFAULT_THRESHOLD = int(THRESHOLD)  # of the paper


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What a linear layer was given, and its weight.

    Attributes:
        x: a row for each token, a column for each channel.
        weight: (N, C).
    """

    x: Float[Tensor, "T C"]
    weight: Float[Tensor, "N C"]

    @property
    def maxima(self) -> Float[Tensor, " C"]:
        """The largest magnitude of each channel."""
        return self.x.abs().amax(0)


@dataclass(frozen=True, eq=False)
class Split:
    """The layer's product with int8 activations, the outlier columns apart.

    Attributes:
        threshold: from which a magnitude makes its column an outlier; ∞ for no decomposition.
        columns: which are outliers.
        error: ‖Y − Ỹ‖ / ‖Y‖.
        step: the median over tokens of S, the distance of two levels.
    """

    threshold: float
    columns: Bool[Tensor, " C"]
    error: float
    step: float

    @property
    def count(self) -> int:
        return int(self.columns.sum())

    @property
    def share(self) -> float:
        """Of all values that keep 16 bits."""
        return self.columns.double().mean().item()


def split(layer: LayerInput, threshold: int | float) -> Split:
    """Quantizes all but the outlier columns to int8, a scale for each token.

    Raises:
        ValueError: a threshold that is not positive, or activations that are not finite.
    """
    columns = torch.zeros(layer.x.shape[1], dtype=torch.bool)
    columns[outlier_columns(layer.x, float(threshold))] = True
    rest = layer.x.masked_fill(columns, 0)
    codes = quantize(rest, bits=8, granularity="token", narrow_range=True)
    lost = (rest - codes.dequantized()) @ layer.weight.T
    whole = (layer.x @ layer.weight.T).norm()
    error = (lost.norm() / whole).item() if whole else 0.0
    return Split(float(threshold), columns, error, codes.scale.median().item() if not columns.all() else 0.0)


def splits(layer: LayerInput, thresholds: Sequence[int | float] = THRESHOLDS) -> list[Split]:
    """One for each threshold."""
    return [split(layer, threshold) for threshold in thresholds]


@torch.no_grad()
def read_inputs(model: nn.Module, tokens: Sequence[int]) -> dict[str, LayerInput]:
    """Runs a text through a model, and keeps what each of its linear layers is given.

    Args:
        model: a decoder; called with the tokens in a batch of one.

    Returns:
        by the layer's name, in fp32 on the CPU.
    """
    found: dict[str, LayerInput] = {}

    def keep(name: str):
        def hook(layer: nn.Linear, given: tuple) -> None:
            found[name] = LayerInput(given[0].flatten(0, -2).float().cpu(), layer.weight.float().cpu())

        return hook

    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        model(torch.tensor([list(tokens)], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name.removeprefix("model."): found[name] for name in layers if name in found}
