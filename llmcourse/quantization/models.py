"""A decoder in few bits: its linear layers are swapped for others, and all else stays what it was.

Rounding takes one layer at a time. GPTQ goes through the model from its first layer, so that each layer is
calibrated on what the quantized ones before it give. AWQ and SmoothQuant first rewrite weights and norms
without changing the function, and then round.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.fp8_linear import Fp8Linear
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.calibration import LINEARS, calibrate, linear_layers
from llmcourse.quantization.gptq import GPTQSettings, gptq_model
from llmcourse.quantization.layers import replace_layer, twin
from llmcourse.quantization.quantized_tensor import QuantizedTensor, check_group_size
from llmcourse.quantization.schemes import Scheme, scheme_of

LARGEST_INPUT = {"int8": 127.0, "fp8": 448.0}  # of the codes


@torch.no_grad()
def quantize(
    model: Decoder,
    scheme: str | Scheme,
    calibration: Int[Tensor, "N T"] | None = None,
    *,
    layers: Sequence[str] = LINEARS,
    progress: bool = True,
) -> Decoder:
    """Another decoder with its linear layers in few bits; the one given stays as it is.

    What is not quantized lies in the same memory in both.

    Args:
        scheme: one of `SCHEMES` by name, or of one's own.
        calibration: texts of one length as token ids, as from `calibration.windows`; for schemes that look
            at text.
        layers: patterns of the names of layers, as `linear_layers` takes them. Those that an engine reads as
            one, q, k and v or gate and up, should be of one kind.

    Raises:
        ValueError: a scheme that does not exist, a pattern that matches no layer, a model that is quantized
            already, no calibration where the scheme needs one, a group size that does not divide the columns
            of a layer, weights that are not finite; the layer is named.

    Warns:
        CalibrationWarning: less text than a layer has inputs.
    """
    scheme = scheme_of(scheme)
    done = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    require(not done, "model", "in 16 bits or more", f"{', '.join(done[:1])} quantized", "load it anew")
    linears = linear_layers(model, layers)
    scheme = scheme.fitted(linear.in_features for linear in linears.values())
    _check(scheme, linears, calibration)
    result = twin(model)
    if scheme.method == "gptq":
        _gptq(result, scheme, calibration, layers, progress)
    else:
        _round(result, scheme, calibration, layers, progress)
    return result


def _check(scheme: Scheme, linears: Mapping[str, nn.Linear], calibration: Tensor | None) -> None:
    if scheme.needs_calibration:
        remedy = "pass token ids, such as windows(texts, tokenizer) gives"
        given = calibration is not None
        require(given, "calibration", f"given for the scheme {scheme.name}", calibration, remedy)
    for name, linear in linears.items():
        try:
            check_group_size(scheme.group_size or linear.in_features, linear.in_features)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _gptq(
    model: Decoder, scheme: Scheme, calibration: Tensor, layers: Sequence[str], progress: bool
) -> None:
    settings = GPTQSettings(scheme.bits, scheme.group_size, scheme.symmetric)

    def place(name: str, linear: nn.Linear, quantized: QuantizedTensor) -> None:
        replace_layer(model, name, layer_of(scheme, linear, quantized))

    gptq_model(model, calibration, settings, layers=layers, place=place, progress=progress)


def _round(
    model: Decoder, scheme: Scheme, calibration: Tensor | None, layers: Sequence[str], progress: bool
) -> None:
    largest = {}
    if scheme.activations == "tensor":
        for inputs in calibrate(model, calibration, layers=layers, hessians=False, progress=progress):
            largest |= dict.fromkeys(inputs.names, inputs.abs_max.max().item())
    for name, linear in linear_layers(model, layers).items():
        size, symmetric = scheme.group_size, scheme.symmetric
        quantized = quantize_weight(linear.weight.data, scheme.bits, size, symmetric, name=name)
        replace_layer(model, name, layer_of(scheme, linear, quantized, largest.get(name)))


def layer_of(
    scheme: Scheme, linear: nn.Linear, quantized: QuantizedTensor, largest_input: float | None = None
) -> QuantizedLinear:
    """The layer that takes the place of a linear one.

    Args:
        quantized: its weight.
        largest_input: absolute value that it was seen to be given, for static activations.
    """
    q, bias = quantized, None if linear.bias is None else linear.bias.data
    scale = None
    if scheme.activations == "tensor":
        scale = largest_input / LARGEST_INPUT[scheme.format]
    if scheme.format == "fp8":
        return Fp8Linear.of(linear.weight.data, bias, input_scale=scale)
    if scheme.format == "mixed":
        return MixedLinear(q.codes, q.scale, bias, threshold=scheme.threshold)
    if scheme.format == "int8":
        return Int8Linear(q.codes, q.scale, bias, input_scale=scale)
    form = {"bits": q.bits, "group_size": q.group_size, "bias": bias, "dtype": linear.weight.dtype}
    return PackedLinear.of(q.codes, q.scale, q.zero_point, **form)
