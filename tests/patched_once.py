"""A plugin of pytest by which interpreted kernels take less time, and compute what they computed.

To interpret a kernel, Triton replaces what its language offers, and does so again for every function that the
kernel calls, thousands of times a launch. What is replaced already stays as it is, so this is left out; the
launch itself still replaces everything, and takes it back at its end.

Sums and products of integers are also computed in 64 bits, for an assertion that does nothing unless one
debugs: this is left out too. And what depends on a type or a shape alone is found once for each.
"""

import numpy as np
from triton import language
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

core = language.core
_patch, _sanitize = interpreter._patch_lang, TritonSemantic.binary_op_sanitize_overflow_impl
_np_dtype = interpreter._get_np_dtype
_make_block_type, _make_tensor = core.block_type.__init__, core.tensor.__init__


def patch_once(function):
    """As Triton's own, if what the function sees of the language is not patched yet."""
    seen = function.__globals__.values()
    parts = [part for part in (language, core) if any(part is module for module in seen)]
    return interpreter._LangPatchScope() if parts and all(map(_is_patched, parts)) else _patch(function)


def _is_patched(part) -> bool:
    return not any(map(core.is_builtin, (part.load, part.dot, part.tensor.__add__)))


def sanitize_where_it_shows(semantic, lhs, rhs, binary_op):
    """The assertion that a sum fits its type, where assertions do anything."""
    if semantic.builder.options.debug:
        _sanitize(semantic, lhs, rhs, binary_op)


def np_dtype(dtype) -> np.dtype:
    """Of a pointer, a number or a block of them."""
    if isinstance(dtype, core.block_type):
        dtype = dtype.element_ty
    if dtype.name not in _np_dtypes:
        _np_dtypes[dtype.name] = _np_dtype(dtype)
    return _np_dtypes[dtype.name]


def make_block_type(block, element_ty, shape) -> None:
    """The type of a block of this shape, which is looked at the first time."""
    key = (element_ty.name, *(size.value if isinstance(size, core.constexpr) else size for size in shape))
    if key not in _blocks:
        _make_block_type(block, element_ty, shape)
        _blocks[key] = block.shape, block.numel, block.name
    block.element_ty = element_ty
    block.shape, block.numel, block.name = _blocks[key]


def make_tensor(tensor, handle, dtype) -> None:
    """A tensor of this type; those of one shape share what tells it."""
    key = (*dtype.shape,) if dtype.is_block() else ()
    if key not in _shapes:
        _make_tensor(tensor, handle, dtype)
        _shapes[key] = tensor.shape, tensor.numel
    tensor.handle, tensor.type, tensor.dtype = handle, dtype, dtype.scalar
    tensor.shape, tensor.numel = _shapes[key]


_np_dtypes, _blocks, _shapes = {}, {}, {}
interpreter._patch_lang, interpreter._get_np_dtype = patch_once, np_dtype
TritonSemantic.binary_op_sanitize_overflow_impl = sanitize_where_it_shows
core.block_type.__init__, core.tensor.__init__ = make_block_type, make_tensor
