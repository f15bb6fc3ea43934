"""A decoder in few bits: its linear layers are swapped for others, and all else stays what it was.

Rounding takes one layer at a time. GPTQ goes through the model from its first layer, so that each layer is
calibrated on what the quantized ones before it give. AWQ and SmoothQuant first rewrite weights and norms
without changing the function, and then round.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

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
from llmcourse.progress import bar
from llmcourse.quantization.affine import quantize_weight
from llmcourse.quantization.awq import AWQSettings, awq_model
from llmcourse.quantization.calibration import LINEARS, calibrate, linear_layers
from llmcourse.quantization.gptq import GPTQSettings, gptq_model
from llmcourse.quantization.layers import quantized_layers, replace_layer, twin
from llmcourse.quantization.quantized_tensor import QuantizedTensor, check_group_size
from llmcourse.quantization.schemes import Scheme, scheme_of
from llmcourse.quantization.smooth_quant import smooth

MADE_OF = "quantize the one that it was made of"
LARGEST_INPUT = {"int8": 127.0, "fp8": 448.0}  # of the codes


@torch.no_grad()
def quantize(
    model: Decoder,
    scheme: str | Scheme,
    calibration: Int[Tensor, "N T"] | None = None,
    *,
    layers: Sequence[str] = LINEARS,
    backend: Backend = "auto",
    progress: bool = True,
) -> Decoder:
    """Another decoder with its linear layers in few bits; the one given stays as it is.

    What is not changed lies in the same memory in both.

    Args:
        scheme: one of `SCHEMES` by name, or of one's own.
        calibration: texts of one length as token ids, as `calibration.windows` gives them; for schemes that
            look at text.
        layers: patterns of the names of layers, as `linear_layers` takes them.
        backend: what the layers run by where the model is called; engines have their own choice.
        progress: show bars while calibrating and rounding.

    Raises:
        ValueError: a scheme that does not exist, a pattern that matches no layer, a model that is quantized
            already, no calibration where the scheme needs one, a group size that does not divide the columns
            of a layer, weights that are not finite, inputs that are 0 throughout where their scale is to be
            static (the layer is named), or a backend that cannot run.

    Warns:
        CalibrationWarning: less text than a layer has inputs.
    """
    scheme = scheme_of(scheme)
    resolve(backend, model.device, model.dtype)
    done = next(iter(quantized_layers(model)), None)
    require(done is None, "model", "in 16 bits or more", f"one whose {done} is in few", MADE_OF)
    linears = linear_layers(model, layers)
    scheme = scheme.fitted(linear.in_features for linear in linears.values())
    _check(scheme, linears, calibration)
    rewrites = scheme.method in ("awq", "smooth")  # weights and norms, in their own memory
    result = copy.deepcopy(model) if rewrites else twin(model)
    place = partial(_place, result, scheme)
    settings = scheme.bits, scheme.group_size, scheme.symmetric
    chosen = {"layers": layers, "progress": progress}
    if scheme.method == "gptq":
        gptq_model(result, calibration, GPTQSettings(*settings, act_order=True), place=place, **chosen)
    elif scheme.method == "awq":
        awq_model(result, calibration, AWQSettings(*settings), place=place, **chosen)
    else:
        largest = _prepared(result, scheme, calibration, chosen)
        todo = linear_layers(result, layers).items()
        for name, linear in bar(todo, "quantizing", unit="layer", shown=progress, after_s=1):
            quantized = quantize_weight(linear.weight.data, *settings, name=name)
            place(name, linear, quantized, largest.get(name))
    for layer in quantized_layers(result).values():
        layer.backend = backend
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


def _prepared(
    model: Decoder, scheme: Scheme, calibration: Tensor | None, chosen: dict[str, Any]
) -> dict[str, float]:
    """Smooths what is to be smoothed; the largest inputs of layers, where their scales are static."""
    if not scheme.needs_calibration:
        return {}
    calibrated = calibrate(model, calibration, hessians=False, **chosen)
    if scheme.method == "smooth":
        smooth(model, calibrated)
    largest = {}
    if scheme.activations == "tensor":
        for inputs in calibrated:
            largest |= dict.fromkeys(inputs.names, inputs.abs_max.max().item())
    return largest


def _place(
    model: Decoder,
    scheme: Scheme,
    name: str,
    linear: nn.Linear,
    quantized: QuantizedTensor,
    largest_input: float | None = None,
) -> None:
    try:
        layer = layer_of(scheme, linear, quantized, largest_input)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    replace_layer(model, name, layer)


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
