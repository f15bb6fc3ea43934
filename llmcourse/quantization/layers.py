"""The linear layers of a model: chosen by patterns over their names, taken out, replaced."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from llmcourse.decoding.errors import require
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder

LAYERS = ("model.layers.*",)  # all but the head, which is the embedding's twin or decides between tokens


def linear_names(model: Decoder, patterns: Sequence[str] = LAYERS) -> list[str]:
    """The names of linear layers in 16 bits or more that match a pattern, in the model's order.

    Args:
        patterns: of whole names, as of files: `*` is anything, `model.layers.*.mlp.down_proj` one kind.

    Raises:
        ValueError: text in place of a sequence of patterns, no pattern, one that matches none, or that
            matches a layer which is quantized already.
    """
    remedy = "give a tuple of patterns such as ('*.mlp.*',)"
    many = not isinstance(patterns, str) and len(patterns) > 0
    require(many, "layers", "a sequence of patterns", repr(patterns), remedy)
    all_linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | QuantizedLinear)
    }
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in all_linear)
    chosen = set()
    for pattern in patterns:
        found = {name for name in all_linear if fnmatchcase(name, pattern)}
        none, there_are = f"{pattern!r}, which does not", f"there are {', '.join(kinds)}"
        require(bool(found), "layers", "patterns that match", none, there_are)
        chosen |= found
    again = [name for name in all_linear if name in chosen and isinstance(all_linear[name], QuantizedLinear)]
    require(not again, "layers", "in 16 bits or more", f"{', '.join(again[:1])}, quantized", "load it anew")
    return [name for name in all_linear if name in chosen]


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
