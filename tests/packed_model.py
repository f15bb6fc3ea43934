"""A model whose linear layers are in packed codes, and the one of full width that computes the same."""

import copy

import torch
from torch import nn

from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder

GROUP = 8


def packed(linear: nn.Linear, bits: int = 4, group_size: int | None = GROUP) -> PackedLinear:
    """Rounded to the nearest code, with a zero point."""
    weight, most = linear.weight.data, 2 ** (bits - 1) - 1
    groups = weight.unflatten(1, (-1, group_size or weight.shape[1]))
    scale = (groups.amax(-1) - groups.amin(-1)) / (2 * most)
    zero = (-most - groups.amin(-1) / scale).round()
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(-most, most)
    return PackedLinear.of(
        codes.flatten(1).to(torch.int8), scale, zero.to(torch.int8),
        bits=bits, group_size=group_size, bias=linear.bias, dtype=weight.dtype,
    )  # fmt: skip


def packed_model(model: Decoder, but: str = "nothing", **settings) -> Decoder:
    """A copy with all linear layers packed but those whose name holds `but`."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and but not in name:
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, packed(module, **settings))
    return made


def as_wide(model: Decoder) -> Decoder:
    """A copy with the weights that the codes stand for."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, QuantizedLinear):
            parent, _, child = name.rpartition(".")
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            linear.weight.data, linear.weight.requires_grad = module.dequantized(), False
            if module.bias is not None:
                linear.bias.data, linear.bias.requires_grad = module.bias, False
            setattr(made.get_submodule(parent), child, linear)
    return made
