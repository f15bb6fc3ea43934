"""A decoder's matrices, fused once: q, k and v are read by one kernel, gate and up by another.

A matrix is a tensor, or a layer in few bits (`QuantizedLinear`), which has its bias inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmcourse.kernels.backend import Backend
from llmcourse.kernels.blas import product
from llmcourse.kernels.decode_attention import HeadNorm
from llmcourse.kernels.linear import linear_reference
from llmcourse.kernels.quantized_linear import QuantizedLinear, fused
from llmcourse.model import Decoder, DecoderLayer

Matrix = Tensor | QuantizedLinear


@dataclass(frozen=True)
class LayerWeights:
    """What one layer reads for a token."""

    input_norm: Tensor
    qkv: Matrix  # (q, k and v heads below each other) · D rows
    qkv_bias: Tensor | None
    head_norm: HeadNorm | None
    output: Matrix
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix


Layout = Callable[[Tensor], Tensor]  # the same matrix, laid out anew where it must be


def fuse_layers(model: Decoder, layout: Layout) -> list[LayerWeights]:
    """All layers' weights, in matrices that the model's own projections become views of.

    So nothing is held twice, and both see a change made in place; moving or casting the model
    afterwards parts them.
    """
    _matrix(model.lm_head, layout)
    return [_fuse_layer(layer, layout) for layer in model.model.layers]


def _fuse_layer(layer: DecoderLayer, layout: Layout) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _fused((attention.q_proj, attention.k_proj, attention.v_proj), layout)
    gate_up, _ = _fused((mlp.gate_proj, mlp.up_proj), layout)
    norm = None
    if not isinstance(attention.q_norm, nn.Identity):
        norm = HeadNorm(attention.q_norm.weight.data, attention.k_norm.weight.data, attention.q_norm.eps)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=qkv,
        qkv_bias=qkv_bias,
        head_norm=norm,
        output=_matrix(attention.o_proj, layout),
        output_bias=_bias(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=gate_up,
        down=_matrix(mlp.down_proj, layout),
    )


def head_matrix(model: Decoder) -> Matrix:
    """That of `lm_head`."""
    head = model.lm_head
    return head if isinstance(head, QuantizedLinear) else head.weight.data


def multiplied(x: Tensor, matrix: Matrix, *, backend: Backend = "reference", **parts) -> Tensor:
    """`linear_reference`, or `layer` of a matrix in few bits; parts as of both."""
    if isinstance(matrix, QuantizedLinear):
        parts.pop("bias", None)
        return matrix.layer(x, backend=backend_of_format(backend, x.device), **parts)
    return linear_reference(x, matrix, **parts)


def product_by(
    x: Tensor, matrix: Matrix, bias: Tensor | None = None, *, backend: Backend = "auto", pdl: bool = False
) -> Tensor:
    """x Wᵀ + b; of a matrix in few bits with the bias that it has itself."""
    if isinstance(matrix, QuantizedLinear):
        return multiplied(x, matrix, backend=backend, pdl=pdl)
    return product(x, matrix, bias)


def backend_of_format(backend: Backend, device: torch.device) -> Backend:
    """What a layer in few bits runs by in an engine of kernels: on a GPU by its own, where it has some.

    An engine that has kernels there says nothing of those of a format: FP8 has none before compute capability
    8.9, or for odd shapes, and is then left to its reference, as where the model is called.
    """
    return "auto" if backend == "triton" and device.type == "cuda" else backend


def _matrix(module: nn.Module, layout: Layout) -> Matrix:
    """The module's matrix, laid out anew; a layer in few bits lies as its kernels want it."""
    if isinstance(module, QuantizedLinear):
        return module
    module.weight.data = layout(module.weight.data)
    return module.weight.data


def _bias(module: nn.Module) -> Tensor | None:
    """What is to be added to a product by `_matrix`."""
    return None if module.bias is None or isinstance(module, QuantizedLinear) else module.bias.data


def _fused(modules: Sequence[nn.Module], layout: Layout) -> tuple[Matrix, Tensor | None]:
    """Modules with one input as one matrix, and the bias to be added to its products."""
    if any(isinstance(module, QuantizedLinear) for module in modules):
        return fused(modules), None
    matrix = _fused_tensor([module.weight for module in modules], layout)
    if modules[0].bias is None:
        return matrix, None
    return matrix, _fused_tensor([module.bias for module in modules], torch.Tensor.contiguous)


def _fused_tensor(parts: list[nn.Parameter], layout: Layout) -> Tensor:
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
