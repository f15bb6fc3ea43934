"""Codes of 4 or 8 bits in words of 32, so that the threads that multiply them have little to do.

A word holds eight codes or four, in two's complement, code 2j + e of it from bit `width` · j + 16 e on: one
mask cuts out two neighbours, one in each half, which is how the tensor cores take a pair. Where K is a
multiple of 128, words lie by the threads that multiply them: of 128 columns, thread t of four has columns
16 t to 16 t + 15 of both halves, and its words are neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


def code_width(bits: int) -> int:
    """Bits that a code takes in a word."""
    return 4 if bits <= 4 else 8


def packed_words(codes: Int[Tensor, "N K"], width: int) -> Int[Tensor, "N words"]:
    """Codes in words of 32 bits, as the module says; zeros behind the last."""
    columns, a_word = codes.shape[1], 32 // width
    codes = F.pad(codes, (0, -columns % a_word)).unflatten(1, (-1, a_word)).to(torch.int32)
    words = torch.zeros(codes.shape[:2], dtype=torch.int32, device=codes.device)
    for place in range(a_word):
        words |= (codes[..., place] & (2**width - 1)) << code_shift(place, width)
    if by_threads(columns):
        words = words.unflatten(1, (-1, 2, 4, width // 2)).transpose(2, 3).flatten(1)
    return words


def unpacked_codes(words: Int[Tensor, "N words"], width: int, columns: int) -> Int[Tensor, "N K"]:
    """What `packed_words` packed, int8."""
    a_word = 32 // width
    if by_threads(columns):
        words = words.unflatten(1, (-1, 4, 2, width // 2)).transpose(2, 3).flatten(1)
    codes = torch.empty(*words.shape, a_word, dtype=torch.int8, device=words.device)
    for place in range(a_word):
        up = 32 - width - code_shift(place, width)  # the code's sign to the word's
        codes[..., place] = (words << up) >> (32 - width)
    return codes.flatten(1)[:, :columns]


def by_threads(columns: int) -> bool:
    """Whether words lie by the threads that multiply them."""
    return columns % 128 == 0


def code_shift(place: int, width: int) -> int:
    """The bit of a word from which its code number `place` lies."""
    return place // 2 * width + place % 2 * 16
