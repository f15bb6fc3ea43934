"""How codes become the operands of tensor cores without a step between threads: layouts, and a few masks.

A number of bfloat16 between 128 and 256 has the bits 0x4300 and seven more, which count by one. So a code of
four bits in these, its sign turned, is 136 more than it says:  128 + (q + 8) = 0x4300 | (q ⊕ 8).  One mask
over both halves of a word gives two numbers, and an exact subtraction two codes. Eight bits do not fit into
seven: the sign is taken as a number of its own,  q = (128 + low) − (128 + 128 · sign).
(Frantar et al. 2024, Marlin, section 3.4, after Kim et al. 2022 for float16.)

Which columns a product adds up in which order is free, as long as both operands agree. Each thread of four
takes 16 neighbours of each half of 128 columns. Its codes are neighbours in memory too (see `packed_words`).
Of a half h these are pairs 0 to 7. The tensor cores take two at once, and find them in registers side by side
where both are neighbours: pairs 2p and 2p + 1 are those of step 4h + p. In an operand, (…, 128), they are

    column 64 h + 16 t + 4 p + 2 v + e   at   64 v + 16 t + 8 h + 2 p + e     t, p = 0 … 3;  h, v, e = 0, 1
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

BLOCK = gl.constexpr(128)  # columns that are multiplied together, and of a group of scales

# Bits of the masked word in both halves; codes that are 136 too large.
_FOUR_AND_136 = gl.constexpr("""{
    .reg .b32 w;
    lop3.b32 $0, $4, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 4;
    lop3.b32 $1, w, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 8;
    lop3.b32 $2, w, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 12;
    lop3.b32 $3, w, 0x000f000f, 0x43084308, 0x6a;
}""")
# The same, and then less 136 in both halves.
_OF_FOUR = gl.constexpr("""{
    .reg .b32 w, zero;
    mov.b32 zero, 0x43084308;
    lop3.b32 $0, $4, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 4;
    lop3.b32 $1, w, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 8;
    lop3.b32 $2, w, 0x000f000f, 0x43084308, 0x6a;
    shr.u32 w, $4, 12;
    lop3.b32 $3, w, 0x000f000f, 0x43084308, 0x6a;
    sub.rn.bf16x2 $0, $0, zero;
    sub.rn.bf16x2 $1, $1, zero;
    sub.rn.bf16x2 $2, $2, zero;
    sub.rn.bf16x2 $3, $3, zero;
}""")
_OF_EIGHT = gl.constexpr("""{
    .reg .b32 w, sign;
    lop3.b32 $0, $2, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 sign, $2, 0x00800080, 0x43004300, 0xea;
    shr.u32 w, $2, 8;
    sub.rn.bf16x2 $0, $0, sign;
    lop3.b32 $1, w, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 sign, w, 0x00800080, 0x43004300, 0xea;
    sub.rn.bf16x2 $1, $1, sign;
}""")


@gluon.constexpr_function
def layout_of_products(warps_k, warps):
    """(blocks, rows, batch): so many warps share the blocks, the others the rows."""
    return gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[warps_k, warps // warps_k, 1], instr_shape=[1, 16, 8]
    )


@gluon.constexpr_function
def _doubled(first, end):
    """first, 2 · first, … below end."""
    found = []
    while first < end:
        found.append(first)
        first *= 2
    return found


@gluon.constexpr_function
def _layout_of_codes(blocks, rows, pieces, warps_k, warps):
    """Of (blocks · rows, pieces), pieces of 16 bits: what a thread multiplies, in runs of 16 bytes."""
    run = pieces // 4  # of a thread, side by side
    warps_m = warps // warps_k
    by_registers = [[0, at] for at in _doubled(1, run)] + [[8, 0]]
    by_registers += [[row, 0] for row in _doubled(16 * warps_m, rows)]
    by_registers += [[block * rows, 0] for block in _doubled(warps_k, blocks)]
    lanes = [[0, run], [0, 2 * run], [1, 0], [2, 0], [4, 0]]
    by_warps = [[row, 0] for row in _doubled(16, 16 * warps_m)]
    by_warps += [[block * rows, 0] for block in _doubled(1, warps_k)]
    return gl.DistributedLinearLayout(by_registers, lanes, by_warps, [], [blocks * rows, pieces])


@gluon.constexpr_function
def _layout_of_input(blocks, batch, warps_k, warps):
    """Of (2 · blocks · batch, 64): what a thread multiplies codes by, 16 numbers side by side."""
    by_registers = [[0, at] for at in _doubled(1, 16)] + [[batch, 0]]
    by_registers += [[row, 0] for row in _doubled(8, batch)]
    by_registers += [[2 * block * batch, 0] for block in _doubled(warps_k, blocks)]
    lanes = [[0, 16], [0, 32], [1, 0], [2, 0], [4, 0]]
    by_warps = [[0, 0] for _ in _doubled(1, warps // warps_k)]
    by_warps += [[2 * block * batch, 0] for block in _doubled(1, warps_k)]
    return gl.DistributedLinearLayout(by_registers, lanes, by_warps, [], [2 * blocks * batch, 64])


@gluon.constexpr_function
def _layout_of_gains(blocks, warps_k, warps):
    """Of (2 · blocks, 64), as in a row of `_layout_of_input`."""
    by_registers = [[0, at] for at in _doubled(1, 16)] + [[1, 0]]
    by_registers += [[2 * block, 0] for block in _doubled(warps_k, blocks)]
    lanes = [[0, 16], [0, 32], [0, 0], [0, 0], [0, 0]]
    by_warps = [[0, 0] for _ in _doubled(1, warps // warps_k)]
    by_warps += [[2 * block, 0] for block in _doubled(1, warps_k)]
    return gl.DistributedLinearLayout(by_registers, lanes, by_warps, [], [2 * blocks, 64])


@gluon.jit
def flat(tile):
    """(blocks, rows, columns) in shared memory as blocks of rows below each other."""
    SHAPE: gl.constexpr = [tile.shape[0] * tile.shape[1], tile.shape[2]]
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(tile.shape[2] * 2, 16, 2)
    return tile._reinterpret(tile.dtype, SHAPE, LAYOUT)


@gluon.jit
def pieces_of_codes(ring, nth, BLOCKS: gl.constexpr, WARPS_K: gl.constexpr):
    """The codes of a step as they are, (blocks · rows, pieces of 16 bits)."""
    ROWS: gl.constexpr = ring.shape[2]
    PIECES: gl.constexpr = ring.shape[3]
    L: gl.constexpr = _layout_of_codes(BLOCKS, ROWS, PIECES, WARPS_K, gl.num_warps())
    return flat(ring.index(nth)).load(L)


@gluon.jit
def numbers_of_codes(
    pieces, BLOCKS: gl.constexpr, WIDTH: gl.constexpr, LARGER: gl.constexpr, C: gl.constexpr
):
    """Those as the left operand, (blocks, rows, 128); of four bits 136 larger if wanted."""
    ROWS: gl.constexpr = pieces.shape[0] // BLOCKS
    N: gl.constexpr = WIDTH // 2  # words of a thread in half of a block
    if WIDTH == 4:
        CODE: gl.constexpr = _FOUR_AND_136 if LARGER else _OF_FOUR
        a, b, c, d = gl.inline_asm_elementwise(
            CODE, "=&r,=&r,=&r,=&r,r", [pieces], dtype=(gl.bfloat16,) * 4, is_pure=True, pack=2
        )
        pairs = gl.join(gl.join(a, c), gl.join(b, d))
        parts = gl.reshape(pairs, [BLOCKS, ROWS, 4, 2, N, 2, 2, 2])  # …, t, h, upper p, e, lower p, v
        ordered = gl.permute(parts, (0, 1, 7, 2, 3, 4, 6, 5))
    else:
        a, b = gl.inline_asm_elementwise(
            _OF_EIGHT, "=&r,=&r,r", [pieces], dtype=(gl.bfloat16,) * 2, is_pure=True, pack=2
        )
        parts = gl.reshape(gl.join(a, b), [BLOCKS, ROWS, 4, 2, N, 2, 2])
        ordered = gl.permute(parts, (0, 1, 6, 2, 3, 4, 5))
    operand: gl.constexpr = gl.DotOperandLayout(0, C, 16)
    return gl.convert_layout(gl.reshape(ordered, [BLOCKS, ROWS, BLOCK]), operand, assert_trivial=True)


@gluon.jit
def blocks_of_input(ring, slot, BLOCKS: gl.constexpr, WARPS_K: gl.constexpr, C: gl.constexpr):
    """x of a step as the right operand, (blocks, 128, batch)."""
    BATCH: gl.constexpr = ring.shape[2]
    L: gl.constexpr = _layout_of_input(BLOCKS, BATCH, WARPS_K, gl.num_warps())
    parts = gl.reshape(flat(ring.index(slot)).load(L), [BLOCKS, 2, BATCH, 4, 4, 2, 2])  # …, t, p, v, e
    ordered = gl.permute(parts, (0, 5, 3, 1, 4, 6, 2))
    operand: gl.constexpr = gl.DotOperandLayout(1, C, 16)
    return gl.convert_layout(gl.reshape(ordered, [BLOCKS, BLOCK, BATCH]), operand, assert_trivial=True)


@gluon.jit
def gains_of_step(ring, slot, BLOCKS: gl.constexpr, WARPS_K: gl.constexpr):
    """Of a step's columns, (2 · blocks, 64), as a thread has them of x."""
    return ring.index(slot).load(_layout_of_gains(BLOCKS, WARPS_K, gl.num_warps()))


@gluon.jit
def weighted(x, gains):
    """x, (blocks, 128, batch), by gains that lie as those of `gains_of_step`.

    Two numbers and their gains by one instruction, rounded once: the compiler would make several of it.
    """
    BLOCKS: gl.constexpr = x.shape[0]
    ordered = gl.permute(gl.reshape(gains, [BLOCKS, 2, 4, 4, 2, 2]), (0, 4, 2, 1, 3, 5))
    ordered = gl.reshape(ordered, [BLOCKS, BLOCK])
    gain = gl.convert_layout(ordered, gl.SliceLayout(2, x.type.layout), assert_trivial=True)
    return gl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [x, gain[:, :, None]], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def repeated(sums, TIMES: gl.constexpr):
    """The same sums, (blocks, rows, batch), for so many times the rows: a power of two up to 16."""
    C: gl.constexpr = sums.type.layout
    for nth in gl.static_range(4):
        if 2**nth < TIMES:
            twice = gl.permute(gl.join(sums, sums), (0, 3, 1, 2))
            more = gl.reshape(twice, [sums.shape[0], 2 * sums.shape[1], sums.shape[2]])
            sums = gl.convert_layout(more, C, assert_trivial=True)
    return sums
