"""Layers in few bits as tensors of a checkpoint, in the layouts of compressed-tensors, and back.

    pack-quantized    weight_packed      codes as q + 2^(bits − 1), the first in the lowest bits, along a row
                                         without gaps, int32: (N, ⌈K · bits / 32⌉)
                      weight_scale       (N, K / group_size); (N, 1) for channels
                      weight_zero_point  packed likewise, but down the columns: (⌈N · bits / 32⌉, groups)
                      weight_shape       N and K, int64
    int-quantized     weight int8, weight_scale (N, 1), and for static activations input_scale (1,)
    float-quantized   weight float8_e4m3fn, and scales as before

The facts are those of the package compressed-tensors 0.20. vLLM has kernels for packed codes of 4 and 8 bits
alone; older releases of the package put ten codes of 3 bits into a word, and none across two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.kernels.fp8_linear import E4M3, Fp8Linear
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.quantization.compressed_config import named
from llmcourse.quantization.packing import pack_bytes, unpack_bytes
from llmcourse.quantization.schemes import Scheme

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WORD_BYTES = 4
NAN_BITS = 0x7F  # of e4m3, which has no infinity
Parts = dict[str, Tensor]


class Stored(NamedTuple):
    """How a tensor must be stored."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


def scheme_of_layers(layers: Iterable[QuantizedLinear], name: str | None = None) -> Scheme:
    """What all these layers have in common.

    Args:
        name: of the scheme that they were made by; None for one of their form.

    Raises:
        ValueError: no layers, layers of several forms, or a name of another form.
    """
    layers = list(layers)
    require(len(layers) > 0, "model", "with quantized layers", "none", "quantize it first")
    forms = {_form(layer) for layer in layers}
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    sizes = {layer.group_size for layer in packed if layer.scale.shape[1] > 1}
    found, remedy = f"{len(forms)} forms and groups of {sorted(sizes)}", "quantize all layers with one scheme"
    require(len(forms) == 1 and len(sizes) <= 1, "layers", "of one form to be stored", found, remedy)
    form = dict(zip(("format", "bits", "symmetric", "activations", "threshold"), forms.pop(), strict=True))
    return named(form | {"group_size": sizes.pop() if sizes else None}, name)


def _form(layer: QuantizedLinear) -> tuple:
    """Format, bits, symmetric, activations, threshold."""
    if isinstance(layer, PackedLinear):
        return "packed", layer.bits, layer.zero_point is None, None, None
    if isinstance(layer, MixedLinear) and layer.fixed is None:
        return "mixed", 8, True, "token", float(layer.threshold)
    if isinstance(layer, Int8Linear | Fp8Linear) and not isinstance(layer, MixedLinear):
        kind = "fp8" if isinstance(layer, Fp8Linear) else "int8"
        return kind, 8, True, "token" if layer.input_scale is None else "tensor", None
    raise ValueError(f"layers must be of a form that is stored, got {layer!r}; quantize with a named scheme")


def expected_parts(scheme: Scheme, shape: tuple[int, int], biased: bool) -> dict[str, Stored]:
    """The tensors that stand for a weight `(N, K)`, and a bias where there is one."""
    rows, columns = shape
    groups = 1 if scheme.group_size is None else columns // scheme.group_size
    parts = {"weight_scale": Stored((rows, groups), FLOATS)}
    if scheme.format == "packed":
        words = Stored((rows, _num_words(columns, scheme.bits)), (torch.int32,))
        parts |= {"weight_packed": words, "weight_shape": Stored((2,), (torch.int64,))}
        if not scheme.symmetric:
            parts["weight_zero_point"] = Stored((_num_words(rows, scheme.bits), groups), (torch.int32,))
    else:
        parts["weight"] = Stored(shape, (E4M3 if scheme.format == "fp8" else torch.int8,))
    if scheme.activations == "tensor":
        parts["input_scale"] = Stored((1,), FLOATS)
    if biased:
        parts["bias"] = Stored((rows,), FLOATS)
    return parts


def to_parts(layer: QuantizedLinear) -> Parts:
    """The tensors of a layer."""
    parts = {} if layer.bias is None else {"bias": layer.bias}
    if not isinstance(layer, PackedLinear):
        parts |= {"weight": layer.codes, "weight_scale": layer.scale[:, None]}
        return parts if layer.input_scale is None else parts | {"input_scale": layer.input_scale}
    parts |= {"weight_packed": _packed(layer.codes, layer.bits), "weight_scale": layer.scale}
    parts["weight_shape"] = torch.tensor(layer.shape)
    if layer.zero_point is not None:
        parts["weight_zero_point"] = _packed(layer.zero_point.T, layer.bits).T
    return parts


def to_layer(parts: Parts, scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> QuantizedLinear:
    """The layer of tensors that are as `expected_parts` says.

    Args:
        dtype: of the model; scales of groups and the bias take it.

    Raises:
        ValueError: scales that are no positive numbers, a bias or codes of FP8 that are NaN, or another shape
            in `weight_shape`.
    """
    rows, columns = shape
    scale, bias = parts["weight_scale"], parts.get("bias")
    bias = None if bias is None else bias.to(dtype)
    require(
        bias is None or bool(bias.isfinite().all()), "bias", "finite", "NaN or infinity", "fetch it again"
    )
    positive = bool((scale.isfinite() & (scale > 0)).all())
    require(positive, "weight_scale", "positive and finite throughout", "other numbers", "fetch it again")
    if scheme.format == "mixed":
        return MixedLinear(parts["weight"], scale, bias, threshold=scheme.threshold)
    if scheme.format == "fp8":
        numbers = bool((parts["weight"].view(torch.uint8) & NAN_BITS).ne(NAN_BITS).all())
        require(numbers, "weight", "numbers throughout", "NaN", "fetch it again")
    if scheme.format != "packed":
        kind = Fp8Linear if scheme.format == "fp8" else Int8Linear
        return kind(parts["weight"], scale, bias, input_scale=parts.get("input_scale"))
    stored = tuple(parts["weight_shape"].tolist())
    require(stored == shape, "weight_shape", f"{shape}", f"{stored}", "fetch it again")
    zero_point = parts.get("weight_zero_point")
    if zero_point is not None:
        zero_point = _unpacked(zero_point.T, scheme.bits, rows).T.contiguous()
    codes = _unpacked(parts["weight_packed"], scheme.bits, columns)
    size = columns if scheme.group_size is None else scheme.group_size
    form = {"bits": scheme.bits, "group_size": size, "bias": bias, "dtype": dtype}
    return PackedLinear.of(codes, scale, zero_point, **form)


def _num_words(num_codes: int, bits: int) -> int:
    return -(-num_codes * bits // (8 * WORD_BYTES))


def _packed(codes: Int[Tensor, "R C"], bits: int) -> Int[Tensor, "R words"]:
    """Without gaps: bytes as `packing` has them, four in a word, the first lowest."""
    in_bytes = pack_bytes(codes, bits)
    in_bytes = torch.nn.functional.pad(in_bytes, (0, -in_bytes.shape[1] % WORD_BYTES))
    return in_bytes.contiguous().view(torch.int32)


def _unpacked(words: Int[Tensor, "R words"], bits: int, num_codes: int) -> Int[Tensor, "R C"]:
    words = words.clone(memory_format=torch.contiguous_format)  # one word a row may have any stride
    in_bytes = words.view(torch.uint8)[:, : -(-num_codes * bits // 8)]
    return unpack_bytes(in_bytes, bits, num_codes)
