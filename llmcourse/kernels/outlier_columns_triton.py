"""The kernels of `find_outliers` and `quantize_mixed`: by many programs in two launches, or by one each.

Where x is large, every program goes down some rows of its own columns and keeps the largest |x| of each in
registers: threads lie side by side, so that nothing passes between them. It leaves one bit a column, and
leaves all of them, so that no memory has to be cleared before. A single program then joins the bits of all
parts and lists the columns. That a column is an outlier is known only when all of x has been read, so codes
cannot be made in the same pass, unless x is so small that each program can read all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmcourse.kernels.launch import options, start_next, wait_for_input
from llmcourse.kernels.outlier_columns import OutlierColumns
from llmcourse.kernels.quantize_rows import LARGEST, LEAST_AMAX
from llmcourse.kernels.quantize_rows_triton import store_codes

ALONE = 2**16  # numbers of x, padded to powers of two, that one program takes
OF_WARP = 512  # of these
WORD = tl.constexpr(32)  # columns whose bits are read together
LISTED = 512  # words at a time
JOINED = 2**14  # words of all parts at a time


@dataclass(frozen=True)
class FlagTile:
    """How x is read in search of outliers.

    Attributes:
        rows: that are requested at once, by all threads.
        warps: of a program, each with 16 bytes a lane of every row.
        programs: that there are, if there are rows enough.
    """

    rows: int = 8
    warps: int = 4
    programs: int = 528  # four for each multiprocessor of an H200

    def columns(self, x: Tensor) -> int:
        """Columns of a program."""
        return self.warps * 32 * 16 // x.element_size()

    def height(self, x: Tensor) -> int:
        """Rows of a program."""
        parts = max(self.programs // triton.cdiv(x.shape[1], self.columns(x)), 1)
        return triton.cdiv(triton.cdiv(len(x), parts), self.rows) * self.rows


@triton.jit
def _largest(x_ptr, rows, columns, num_rows, K: tl.constexpr, EVEN: tl.constexpr):
    """The largest |x| of each column in these rows, NaN if all are; behind the last row it stands in."""
    at = tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * K + columns[None, :]
    x = tl.load(x_ptr + at) if EVEN else tl.load(x_ptr + at, mask=(columns < K)[None, :], other=0.0)
    return tl.max(tl.abs(x.to(tl.float32)), axis=0)


@triton.jit
def _bytes_of(flag, COLUMNS: tl.constexpr):
    """Eight flags in a byte, the first the lowest bit; as int32."""
    flags = tl.reshape(flag.to(tl.int32), (COLUMNS // 8, 8))
    return tl.sum(flags << tl.arange(0, 8)[None, :], axis=1)


@triton.jit(do_not_specialize=["num_rows", "height"])
def _flag_columns_kernel(
    x_ptr,
    bits_ptr,
    threshold,
    num_rows,
    height,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Bits of the columns that have an outlier in `height` rows, eight in a byte, the first the lowest."""
    start_next(PDL)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # programs side by side read side by side
    first = tl.program_id(1) * height
    largest = tl.zeros((COLUMNS,), tl.float32)
    wait_for_input(PDL)
    for row in range(first, tl.minimum(first + height, num_rows), ROWS):
        here = _largest(x_ptr, row + tl.arange(0, ROWS), columns, num_rows, K, K % COLUMNS == 0)
        largest = tl.where(here > largest, here, largest)  # NaN is not, for the interpreter's maximum too
    bits = _bytes_of(largest >= threshold, COLUMNS)
    byte = tl.program_id(0) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    wide = tl.num_programs(0) * (COLUMNS // 8)
    tl.store(bits_ptr + tl.program_id(1) * wide + byte, bits.to(tl.int8))


@triton.jit
def _number_of_ones(word):
    """By pairs, fours, bytes; the last product adds four bytes up in the highest."""
    word = word.to(tl.uint32, bitcast=True)
    word -= (word >> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _list_bits(bits, first, count, columns_ptr):
    """Lists the columns of bits that are set, from `first` of each word on, behind `count` others.

    One bit of every word at a time, from the lowest: few are set. Returns how many columns are listed then.
    """
    ones = _number_of_ones(bits)
    place = count + tl.cumsum(ones, axis=0) - ones
    for _ in range(tl.max(ones, axis=0)):
        lowest = bits & -bits
        exponent = lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23  # a power of two is a float exactly
        tl.store(columns_ptr + place, first + (exponent & 0xFF) - 127, mask=bits != 0)
        bits &= bits - 1
        place += 1
    return count + tl.sum(ones, axis=0)


@triton.jit(do_not_specialize=["num_parts"])
def _list_columns_kernel(
    bits_ptr,
    flags_ptr,
    columns_ptr,
    count_ptr,
    num_parts,
    wide,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Joins the bits of all parts of x, each `wide` words long, WORDS at a time."""
    start_next(PDL)
    wait_for_input(PDL)
    count = tl.zeros((), tl.int32)
    for start in range(0, tl.cdiv(K, WORD), WORDS):
        word = start + tl.arange(0, WORDS)
        bits = tl.zeros((WORDS,), tl.int32)
        for first in range(0, num_parts, PARTS):
            part = first + tl.arange(0, PARTS)
            inside = (part < num_parts)[:, None] & (word < wide)[None, :]
            held = tl.load(bits_ptr + part[:, None] * wide + word[None, :], mask=inside, other=0)
            bits |= tl.reduce_or(held, axis=0)
        bit = tl.arange(0, WORD)
        flag = (bits[:, None] >> bit[None, :]) & 1
        columns = word[:, None] * WORD + bit[None, :]
        tl.store(flags_ptr + columns, flag.to(tl.int8), mask=columns < K)
        count = _list_bits(bits, word * WORD, count, columns_ptr)
    tl.store(count_ptr, count)


@triton.jit(do_not_specialize=["num_rows"])
def _find_columns_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    flags_ptr,
    columns_ptr,
    count_ptr,
    threshold,
    num_rows,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    CODES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Each program finds all outliers of x, the first lists them; and with CODES each codes one row."""
    start_next(PDL)
    columns = tl.arange(0, COLUMNS)
    row = tl.program_id(0).to(tl.int64)
    wait_for_input(PDL)
    x = tl.load(x_ptr + row * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    if ROWS == 1:
        largest = tl.abs(x)
    else:
        largest = _largest(x_ptr, tl.arange(0, ROWS), columns, num_rows, K, K == COLUMNS)
    outlier = largest >= threshold
    if CODES:
        kept = tl.where(outlier, 0.0, x)
        store_codes(kept, codes_ptr, scale_ptr, scale_ptr, row, columns, K, LARGEST, LEAST, False)
    if row == 0:
        tl.store(flags_ptr + columns, outlier.to(tl.int8), mask=columns < K)
        first = tl.arange(0, COLUMNS // 8) * 8
        tl.store(count_ptr, _list_bits(_bytes_of(outlier, COLUMNS), first, 0, columns_ptr))


def takes_one_launch(x: Tensor) -> bool:
    """Whether x is so small that a program reads all of it."""
    height, width = (triton.next_power_of_2(max(n, 1)) for n in x.shape)
    return x.numel() > 0 and height * max(width, 8) <= ALONE


def launch_find(x: Tensor, threshold: float, pdl: bool, tile: FlagTile | None = None) -> OutlierColumns:
    if x.numel() == 0:
        return OutlierColumns.of(x.new_zeros(x.shape[1], dtype=torch.int8))
    found = _memory_for(x)
    if takes_one_launch(x):
        _launch_few(x, None, found, threshold, pdl)
    else:
        _launch_many(x, found, threshold, pdl, tile or FlagTile())
    return found


def launch_mixed(x: Tensor, threshold: float, pdl: bool) -> tuple[Tensor, Tensor, OutlierColumns]:
    """Codes, scales and outliers, by one launch."""
    found = _memory_for(x)
    codes, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)
    _launch_few(x, (codes, scale), found, threshold, pdl)
    return codes, scale, found


def _memory_for(x: Tensor) -> OutlierColumns:
    size, integers = x.shape[1], {"dtype": torch.int32, "device": x.device}
    flags = torch.empty(size, dtype=torch.int8, device=x.device)
    return OutlierColumns(flags, torch.empty(size, **integers), torch.empty(1, **integers))


def _launch_few(
    x: Tensor, coded: tuple[Tensor, Tensor] | None, found: OutlierColumns, threshold: float, pdl: bool
) -> None:
    rows, size = x.shape
    height, width = triton.next_power_of_2(rows), max(triton.next_power_of_2(size), 8)
    _find_columns_kernel[(1 if coded is None else rows,)](
        x,
        *(coded or (x, x)),
        found.flags,
        found.columns,
        found.count,
        threshold,
        rows,
        K=size,
        ROWS=height,
        COLUMNS=width,
        LARGEST=LARGEST[torch.int8],
        LEAST=LEAST_AMAX,
        CODES=coded is not None,
        num_warps=max(1, min(height * width // OF_WARP, 16)),
        **options(pdl),
    )


def _launch_many(x: Tensor, found: OutlierColumns, threshold: float, pdl: bool, tile: FlagTile) -> None:
    (rows, size), columns, height = x.shape, tile.columns(x), tile.height(x)
    blocks, parts = triton.cdiv(size, columns), triton.cdiv(rows, height)
    bits = torch.empty(parts, blocks * columns // 32, dtype=torch.int32, device=x.device)
    _flag_columns_kernel[(blocks, parts)](
        x,
        bits.view(torch.int8),
        threshold,
        rows,
        height,
        K=size,
        ROWS=tile.rows,
        COLUMNS=columns,
        num_warps=tile.warps,
        **options(pdl),
    )
    words = min(triton.next_power_of_2(triton.cdiv(size, 32)), LISTED)
    _list_columns_kernel[(1,)](
        bits,
        found.flags,
        found.columns,
        found.count,
        parts,
        bits.shape[1],
        K=size,
        PARTS=min(JOINED // words, triton.next_power_of_2(parts)),
        WORDS=words,
        num_warps=16,
        **options(pdl),
    )
