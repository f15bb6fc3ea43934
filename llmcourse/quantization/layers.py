"""Layers in few bits within a model: put in, found, and told what to run by."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder


class ReferenceWarning(UserWarning):
    """Layers run by their references where they are, since their kernels cannot."""


def quantized_layers(model: Decoder) -> dict[str, QuantizedLinear]:
    """Those in few bits, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLinear)}


def replace_layer(model: Decoder, name: str, layer: nn.Module) -> None:
    """Puts a layer where another was."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def twin(model: Decoder) -> Decoder:
    """A model of its own with the same weights in the same memory, where ties hold as they did.

    Replacing a layer or a parameter of one leaves the other as it is; writing into a weight does not.
    """
    memo = {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def choose_backend(model: Decoder, backend: Backend, name: str) -> None:
    """Tells all layers in few bits what to run by where the model is called; engines have their own choice.

    Each shape of layer multiplies a row once, by which it is seen whether its kernel runs here.

    Args:
        backend: "auto" takes kernels where they run; "triton" insists on them.
        name: of the scheme, for messages.

    Raises:
        ValueError: a backend that does not exist, or that cannot run here.

    Warns:
        ReferenceWarning: "auto", and no kernel runs here.
    """
    resolve(backend, model.device, model.dtype)
    layers = list(quantized_layers(model).values())
    for layer in layers:
        layer.backend = backend
    if backend == "reference":
        return
    for layer in {(type(layer), layer.shape): layer for layer in layers}.values():
        row = torch.zeros(1, layer.in_features, dtype=model.dtype, device=model.device)
        try:
            layer.product(row, "triton")
        except ValueError:
            if backend != "auto":
                raise
            where = f"{model.device.type} in {str(model.dtype).removeprefix('torch.')}"
            text = f"{name} has no kernel on {where} and runs by its reference, which is slower"
            warnings.warn(text, ReferenceWarning, stacklevel=3)
            return
