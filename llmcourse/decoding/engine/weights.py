"""A decoder's matrices, fused once: q, k and v are read by one kernel, gate and up by another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmcourse.kernels.decode_attention import HeadNorm
from llmcourse.model import Decoder, DecoderLayer


@dataclass(frozen=True)
class LayerWeights:
    """What one layer reads for a token."""

    input_norm: Tensor
    qkv: Tensor  # (q, k and v heads below each other) · D rows
    qkv_bias: Tensor | None
    head_norm: HeadNorm | None
    output: Tensor
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def fuse_layers(model: Decoder) -> list[LayerWeights]:
    """All layers' weights, in matrices that the model's own projections become views of.

    So nothing is held twice, and both see a change made in place; moving or casting the model
    afterwards parts them.
    """
    return [_fuse_layer(layer) for layer in model.model.layers]


def _fuse_layer(layer: DecoderLayer) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    norm = None
    if not isinstance(attention.q_norm, nn.Identity):
        norm = HeadNorm(attention.q_norm.weight.data, attention.k_norm.weight.data, attention.q_norm.eps)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=_fused([projection.weight for projection in projections]),
        qkv_bias=None
        if projections[0].bias is None
        else _fused([projection.bias for projection in projections]),
        head_norm=norm,
        output=attention.o_proj.weight.data,
        output_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=_fused([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.data,
    )


def _fused(parts: list[nn.Parameter]) -> Tensor:
    """The parts below each other; each then is a view of the whole. Fusing twice gives the same memory."""
    whole = _whole_of(parts)
    if whole is None:
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
    return whole


def _whole_of(parts: list[nn.Parameter]) -> Tensor | None:
    """The matrix that the parts are already the rows of, or None."""
    first, end = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage or not part.is_contiguous():
            return None
        end += part.numel() * part.element_size()
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    return first.data.as_strided(shape, first.stride())
