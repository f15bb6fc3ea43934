"""Codes of 2 to 8 bits without gaps between them: what a checkpoint or a cache stores.

A code is stored as q + 2^(bits − 1), which is not negative; the first code of a row has the lowest bits.

    bytes: code i of a row has the bits [i · bits, (i + 1) · bits) of the row; 8 codes fill `bits` bytes
    words: each 32-bit word has 32 // bits codes, and its highest bits are empty if bits does not divide 32,
           as in older checkpoints of the compressed-tensors format "pack-quantized" (new ones leave no gaps:
           see `compressed_layers`)

Rows are filled up to whole bytes or words with zeros.
"""

from __future__ import annotations

import torch
from jaxtyping import Int, Int8, Int32, UInt8
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.quantization.grid import code_range


def pack_bytes(codes: Int[Tensor, "*rows K"], bits: int, *, checked: bool = True) -> UInt8[Tensor, "*rows N"]:
    """The rows' codes in ⌈K · bits / 8⌉ bytes each.

    Args:
        checked: look at the codes first, for which a GPU must be waited for.

    Raises:
        ValueError: bits out of 2 to 8, no codes in a row, or codes that are no integers or do not fit in
            them.
    """
    _check_whole(codes)
    if checked:
        _check_codes(codes, bits)
    if 8 % bits == 0:
        return _joined(codes, bits, 8 // bits, torch.uint8)
    wide = _joined(codes, bits, 8, torch.int64)  # 8 codes in the lowest 8 · bits bits of each number
    in_bytes = torch.stack([(wide >> 8 * place) & 255 for place in range(bits)], -1)
    return in_bytes.flatten(-2)[..., : bytes_of(codes.shape[-1], bits)].to(torch.uint8)


def unpack_bytes(packed: UInt8[Tensor, "*rows N"], bits: int, num_codes: int) -> Int8[Tensor, "*rows K"]:
    """The first `num_codes` codes of each row: what `pack_bytes` was given.

    Raises:
        ValueError: bits out of 2 to 8, or rows that are not as long as so many codes are.
    """
    code_range(bits)
    require_integer(1, "num_codes", num_codes, "give the codes of a row")
    _check_length(packed, bytes_of(num_codes, bits), "bytes", bits, num_codes)
    if 8 % bits == 0:
        return _split(packed, bits, 8 // bits, num_codes)
    missing = -packed.shape[-1] % bits
    whole = torch.nn.functional.pad(packed, (0, missing)).unflatten(-1, (-1, bits))
    wide = torch.zeros(whole.shape[:-1], dtype=torch.int64, device=packed.device)
    for place in range(bits):
        wide |= whole[..., place].long() << 8 * place
    return _split(wide, bits, 8, num_codes)


def pack_words(codes: Int[Tensor, "*rows K"], bits: int) -> Int32[Tensor, "*rows N"]:
    """The rows' codes in ⌈K / (32 // bits)⌉ words each; errors as `pack_bytes`."""
    _check_whole(codes)
    _check_codes(codes, bits)
    return _joined(codes, bits, 32 // bits, torch.int32)


def unpack_words(packed: Int32[Tensor, "*rows N"], bits: int, num_codes: int) -> Int8[Tensor, "*rows K"]:
    """The first `num_codes` codes of each row: what `pack_words` was given; errors as `unpack_bytes`."""
    code_range(bits)
    require_integer(1, "num_codes", num_codes, "give the codes of a row")
    a_word = 32 // bits
    _check_length(packed, -(-num_codes // a_word), "words", bits, num_codes)
    return _split(packed, bits, a_word, num_codes)


def bytes_of(num_codes: int, bits: int) -> int:
    """What `pack_bytes` makes of a row of so many codes."""
    return -(-num_codes * bits // 8)


def _check_whole(codes: Tensor) -> None:
    whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
    require(whole, "codes", "integers", codes.dtype, "quantize first, or round and convert to torch.int8")


def _check_codes(codes: Tensor, bits: int) -> None:
    least, most = code_range(bits)
    shape, remedy = tuple(codes.shape), "pack what has codes"
    require(codes.ndim > 0 and codes.numel() > 0, "codes", "rows of codes", f"shape {shape}", remedy)
    low, high = (end.item() for end in codes.aminmax())
    require(
        least <= low and high <= most,
        "codes",
        f"in [{least}, {most}] for {bits} bits",
        f"{low} to {high}",
        "give the bits that they were made with",
    )


def _joined(codes: Tensor, bits: int, together: int, dtype: torch.dtype) -> Tensor:
    """Each `together` neighbours of a row in one number, the first in the lowest bits."""
    mask, half = 2**bits - 1, 2 ** (bits - 1)
    missing = -codes.shape[-1] % together
    padded = torch.nn.functional.pad(codes, (0, missing), value=-half).unflatten(-1, (-1, together))
    joined = torch.zeros(padded.shape[:-1], dtype=dtype, device=codes.device)
    for place in range(together):
        # In two's complement, q + half is q with its sign bit turned over.
        joined |= ((padded[..., place].to(dtype) & mask) ^ half) << bits * place
    return joined


def _split(joined: Tensor, bits: int, together: int, num_codes: int) -> Int8[Tensor, "*rows K"]:
    mask, half, unused = 2**bits - 1, 2 ** (bits - 1), 8 - bits
    places = []
    for place in range(together):
        code = (((joined >> bits * place) & mask) ^ half).to(torch.int8)
        places.append((code << unused) >> unused)  # the sign bit fills those in front of it
    return torch.stack(places, -1).flatten(-2)[..., :num_codes].contiguous()


def _check_length(packed: Tensor, expected: int, unit: str, bits: int, num_codes: int) -> None:
    found = packed.shape[-1] if packed.ndim else 0
    remedy = "give the bits and the number that they were packed with"
    holds = found == expected and packed.ndim > 0
    require(holds, "packed", f"{expected} {unit} a row for {num_codes} codes of {bits} bits", found, remedy)
