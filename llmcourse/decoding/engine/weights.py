"""A decoder's matrices, fused once: q, k and v are read by one kernel, gate and up by another."""

from __future__ import annotations

from collections.abc import Callable
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


Layout = Callable[[Tensor], Tensor]  # the same matrix, laid out anew where it must be


def fuse_layers(model: Decoder, layout: Layout) -> list[LayerWeights]:
    """All layers' weights, in matrices that the model's own projections become views of.

    So nothing is held twice, and both see a change made in place; moving or casting the model
    afterwards parts them.
    """
    model.lm_head.weight.data = layout(model.lm_head.weight.data)
    return [_fuse_layer(layer, layout) for layer in model.model.layers]


def _fuse_layer(layer: DecoderLayer, layout: Layout) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    for projection in (attention.o_proj, mlp.down_proj):
        projection.weight.data = layout(projection.weight.data)
    norm = None
    if not isinstance(attention.q_norm, nn.Identity):
        norm = HeadNorm(attention.q_norm.weight.data, attention.k_norm.weight.data, attention.q_norm.eps)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=_fused([projection.weight for projection in projections], layout),
        qkv_bias=None
        if projections[0].bias is None
        else _fused([projection.bias for projection in projections], torch.Tensor.contiguous),
        head_norm=norm,
        output=attention.o_proj.weight.data,
        output_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=_fused([mlp.gate_proj.weight, mlp.up_proj.weight], layout),
        down=mlp.down_proj.weight.data,
    )


def _fused(parts: list[nn.Parameter], layout: Layout) -> Tensor:
    """The parts below each other; each then is a view of the whole. Fusing twice gives the same memory."""
    whole = _whole_of(parts)
    if whole is None:
        whole = torch.cat([part.data for part in parts])
    laid_out = layout(whole)
    for part, view in zip(parts, laid_out.split([len(part) for part in parts]), strict=True):
        part.data = view
    return laid_out


def _whole_of(parts: list[nn.Parameter]) -> Tensor | None:
    """The matrix that the parts are already the rows of, by rows or by columns, or None."""
    first, end = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        alike = part.untyped_storage().data_ptr() == storage and part.stride() == first.stride()
        if not alike or part.data_ptr() != end:
            return None
        end += len(part) * part.stride(0) * part.element_size()
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    return first.data.as_strided(shape, first.stride())
