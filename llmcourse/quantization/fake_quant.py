"""Weights that are rounded on the way forward and trained as they are: quantization-aware training.

    forward: ŵ = S (q(w) − Z);   backward: ∂L/∂w := ∂L/∂ŵ

Rounding has a gradient of 0 almost everywhere, so the straight-through estimator takes it for the identity
(Bengio et al. 2013, section 4; for quantized layers Jacob et al. 2018, section 3). Ranges reach from the
least to the largest weight of a group, so nothing is clipped, and no gradient has to be cut off. The scales
follow the weights at every step. A student in few bits that learns from its teacher in 16 so wins back what
rounding lost (Kim et al. 2019, QKD; Liu et al. 2023, LLM-QAT, section 3.2).

Names and shapes of the parameters stay those of the model, so that it is trained, kept and loaded as any.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.kernels.blas import Linear, product
from llmcourse.model import Decoder
from llmcourse.quantization.calibration import LINEARS, linear_layers
from llmcourse.quantization.grid import nearest_codes, scale_and_zero_point, values
from llmcourse.quantization.layers import replace_layer
from llmcourse.quantization.quantized_tensor import check_group_size
from llmcourse.quantization.schemes import Scheme, scheme_of


class FakeQuantLinear(Linear):
    """A linear layer whose weight is what `affine.quantize_weight` would leave of it.

    Args:
        linear: its weight and bias are taken over, not copied.
        bits, group_size, symmetric: as there; None is a whole row.

    Raises:
        ValueError: a group size that does not divide the columns.
    """

    def __init__(self, linear: torch.nn.Linear, bits: int, group_size: int | None, symmetric: bool):
        size = linear.in_features if group_size is None else group_size
        check_group_size(size, linear.in_features)
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.bits, self.group_size, self.symmetric = bits, size, symmetric

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        weight = straight_through(self.weight, self.bits, self.group_size, self.symmetric)
        rows = x.reshape(-1, self.in_features)
        return product(rows, weight, self.bias).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}, {kind}"


def straight_through(
    w: Float[Tensor, "N K"], bits: int, group_size: int, symmetric: bool
) -> Float[Tensor, "N K"]:
    """The rounded weight, with the gradient of the one that was given."""
    return w + (rounded(w.detach(), bits, group_size, symmetric) - w.detach())


def rounded(w: Float[Tensor, "N K"], bits: int, group_size: int, symmetric: bool) -> Float[Tensor, "N K"]:
    """S (q − Z) of the nearest codes, as `quantize_weight` has them; unchecked, to wait for no device."""
    groups = w.reshape(-1, group_size).to(torch.promote_types(w.dtype, torch.float32))
    low, high = groups.amin(1), groups.amax(1)
    scale, zero_point = scale_and_zero_point(low, high, bits, symmetric=symmetric, dtype=w.dtype)
    columns = scale[:, None], None if zero_point is None else zero_point[:, None]
    return values(nearest_codes(groups, *columns, bits), *columns, w.dtype).view(w.shape)


def fake_quantized(model: Decoder, scheme: str | Scheme, *, layers: Sequence[str] = LINEARS) -> Decoder:
    """A copy of a model that computes with rounded weights and can be trained.

    Args:
        scheme: one that rounds weights alone: `int3`, `int4-g32`; see `schemes`.
        layers: patterns of names, as `linear_layers` takes them.

    Raises:
        ValueError: a scheme that does not exist or does more than round weights, a pattern that matches no
            layer, or a group size that does not divide the columns.
    """
    scheme = scheme_of(scheme)
    rounds = scheme.format == "packed" and scheme.method == "round"
    require(rounds, "scheme", "one that rounds weights alone", repr(scheme.name), "use int3 or int4")
    result = copy.deepcopy(model).requires_grad_(True)
    linears = linear_layers(result, layers)
    scheme = scheme.fitted(linear.in_features for linear in linears.values())
    for name, linear in linears.items():
        try:
            layer = FakeQuantLinear(linear, scheme.bits, scheme.group_size, scheme.symmetric)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        replace_layer(result, name, layer)
    return result


def trained_weights(model: Decoder) -> Decoder:
    """A copy of a fake-quantized model with ordinary layers again and its weights in full, for `quantize`.

    By the same scheme, in the dtype it was trained in, that gives the very function which was trained.
    """
    result = copy.deepcopy(model)
    for name, layer in list(result.named_modules()):
        if isinstance(layer, FakeQuantLinear):
            with torch.device("meta"):
                linear = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            linear.weight, linear.bias = layer.weight, layer.bias
            replace_layer(result, name, linear)
    return result
