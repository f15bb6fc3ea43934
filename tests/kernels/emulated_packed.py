"""What `packed_gluon` uses beside what `emulated` has: codes in words, operands of three axes, zero points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmcourse.kernels import packed_codes_gluon
from tests.kernels.emulated import Array, Shared, names_of, weighted

LAYOUTS = ("layout_of_products", "_layout_of_codes", "_layout_of_input", "_layout_of_gains")


def elementwise(
    code: str, constraints: str, given: Sequence[Array], **_: object
) -> Array | tuple[Array, ...]:
    """What the instructions do to each piece of 16 bits, by what they are."""
    width = {packed_codes_gluon._OF_FOUR: 4, packed_codes_gluon._OF_EIGHT: 8}.get(code)
    if width is None:
        assert code.startswith("mul.rn.bf16x2")
        return weighted(*given)
    pieces = given[0].numbers.astype(np.int32)
    places = [pieces >> width * place for place in range(16 // width)]
    half = 1 << width - 1
    return tuple(Array((((place & 2 * half - 1) ^ half) - half).astype(np.float32)) for place in places)


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
    language.bfloat16 = None
    flat = lambda tile: Shared(tile.numbers.reshape(-1, tile.shape[2]))  # noqa: E731
    return {**names, **{name: lambda *_: None for name in LAYOUTS}, "flat": flat, "BLOCK": 128}
