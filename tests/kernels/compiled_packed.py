"""Steps of models in packed codes, compiled for GPUs that are not here; how, `compiled` says."""

import dataclasses

import torch
from torch import nn

from llmcourse.costs.models import MODELS
from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.model import Decoder, DecoderConfig
from tests.kernels.compiled import CAPACITY, Compiled, recorded

SPLITS = 16


def without_memory(
    outputs: int, inputs: int, width: int, group_size: int, dtype: torch.dtype, zeros: bool = False
) -> PackedLinear:
    """A layer to be compiled for."""
    words = torch.empty(outputs, -(-inputs * width // 32), dtype=torch.int32)
    groups = inputs // group_size
    scales = torch.empty(groups, outputs, dtype=dtype if groups > 1 else torch.float32)
    zero_points = torch.empty(groups, outputs, dtype=torch.int8) if zeros else None
    settings = {"bits": width, "group_size": group_size, "in_features": inputs}
    return PackedLinear(words, scales, zero_points, **settings)


def compiled_packed(width: int, num_tokens: int, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """A pass over so many tokens of one row, one layer of Llama-3-8B: groups of 128, or channels."""
    shapes = dataclasses.asdict(MODELS["Llama-3-8B"]) | {"num_layers": 1}
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    with recorded(capability) as found, torch.device("meta"), torch.no_grad():
        model = Decoder(config).to(dtype)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                group = 128 if width == 4 else module.in_features
                layer = without_memory(module.out_features, module.in_features, width, group, dtype)
                setattr(model.get_submodule(parent), child, layer)
        state, settings = StepState(model, 1, CAPACITY), KernelSettings(splits=SPLITS)
        if num_tokens == 1:
            KernelStep(state, settings)(state)
        else:
            Window(state, num_tokens, backend="triton", settings=settings).read()
    return found


def compiled_any_packed(dtype: torch.dtype, capability: int) -> list[Compiled]:
    """Layers that no ring takes, with zero points and small groups; many rows; and a matrix written out."""
    with recorded(capability) as found, torch.device("meta"):
        for width, inputs, group in ((4, 4096, 32), (8, 4096, 4096), (4, 1000, 20)):
            layer = without_memory(4096, inputs, width, group, dtype, zeros=True)
            norm = torch.empty(inputs, dtype=dtype)
            for rows in (1, 64):
                x = torch.empty(rows, inputs, dtype=dtype)
                layer.layer(x, norm=norm, gated=True, backend="triton", pdl=True)
            layer.layer(torch.empty(300, inputs, dtype=dtype), backend="triton")
    return found
