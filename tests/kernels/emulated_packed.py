"""What `packed_gluon` uses beside what `emulated` has: codes in words, and operands of three axes."""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np

from llmcourse.kernels import packed_codes_gluon
from tests.kernels.emulated import Array, Shared, names_of, weighted

LAYOUTS = (
    "layout_of_products",
    "layout_of_outputs",
    "_layout_of_codes",
    "_layout_of_input",
    "_layout_of_gains",
)
INSTRUCTIONS = ("_OF_FOUR", "_FOUR_AND_136", "_OF_EIGHT")


class Tiles:
    """A tensor in memory of which tiles of any number of axes are copied; beyond it there are zeros."""

    def __init__(self, numbers: np.ndarray, *shape: int, item_bytes: int = 2):
        self.numbers, self.dtype, self.layout = numbers.astype(np.float32), None, None
        self.block_type = types.SimpleNamespace(nbytes=item_bytes * int(np.prod(shape)), shape=shape)

    def tile(self, *at: int) -> np.ndarray:
        found = np.zeros(self.block_type.shape, np.float32)
        part = self.numbers[tuple(slice(a, a + n) for a, n in zip(at, found.shape, strict=True))]
        found[tuple(map(slice, part.shape))] = part
        return found


def elementwise(
    code: str, constraints: str, given: Sequence[Array], **_: object
) -> Array | tuple[Array, ...]:
    """What the instructions do to each piece of 16 bits, by what they are."""
    code = getattr(code, "value", code)
    of_four, and_136, of_eight = (getattr(packed_codes_gluon, name).value for name in INSTRUCTIONS)
    width = {of_four: 4, and_136: 4, of_eight: 8}.get(code)
    larger = 136 if code == and_136 else 0
    if width is None:
        assert code.startswith("mul.rn.bf16x2")
        return weighted(*given)
    there, half = ~np.isnan(given[0].numbers), 1 << width - 1
    pieces = np.where(there, given[0].numbers, 0).astype(np.int32)
    codes = (
        larger + ((pieces >> width * place & 2 * half - 1) ^ half) - half for place in range(16 // width)
    )
    return tuple(Array(np.where(there, code, np.nan).astype(np.float32)) for code in codes)


def multiplied(a: Array, b: Array, sums: Array) -> Array:
    return Array(sums.numbers + a.numbers @ b.numbers)


def names_of_packed(program: Sequence[int]) -> dict[str, object]:
    """What the kernel's names mean, for the program of these numbers."""
    names = names_of(program)
    language = names["gl"]
    language.join = lambda a, b: Array(np.stack([a.numbers, b.numbers], axis=-1))
    language.reshape = lambda x, shape: Array(x.numbers.reshape(shape))
    language.permute = lambda x, order: Array(x.numbers.transpose(order))
    language.inline_asm_elementwise = elementwise
    language.convert_layout = lambda x, layout, assert_trivial=False: x
    language.DotOperandLayout = lambda *_: None
    language.num_warps = lambda: 4
    language.full = lambda shape, value, dtype, layout: Array(np.full(shape, value, np.float32))
    language.minimum = lambda a, b: Array(np.minimum(a.numbers, b))
    language.bfloat16 = None
    flat = lambda tile: Shared(tile.numbers.reshape(-1, tile.shape[2]))  # noqa: E731
    layouts = {name: lambda *_: None for name in LAYOUTS}
    return {**names, **layouts, "flat": flat, "mma_v2": multiplied, "BLOCK": 128}
