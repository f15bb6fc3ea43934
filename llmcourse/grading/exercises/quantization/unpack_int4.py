"""05.unpack_int4: the two codes of each byte, with their signs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
The way back from 05.pack_int4 is what a kernel does for each byte it reads: take the two halves apart, and
**extend the sign**. Four bits hold 0 to 15, and those from 8 on stand for negative codes: 8 for -8, 15 for
-1.

Write `unpack_int4(packed, columns)`.

- `packed`: `uint8` tensor of shape `(N, P)`: columns $2i$ and $2i + 1$ of a row are the low and the high half
  of its byte $i$.
- `columns`: $C$, how many codes each row has: $2P$ or $2P - 1$. Where it is odd, the last high half of each
  row is no code, and may hold anything.
- returns the codes, an `int8` tensor of shape `(N, C)`.

```python
>>> packed = torch.tensor([[33, 15], [120, 0]], dtype=torch.uint8)
>>> unpack_int4(packed, columns=3)
tensor([[ 1,  2, -1],
        [-8,  7,  0]], dtype=torch.int8)
```
"""

HINTS = (
    "packed & 15 is the low half of each byte, packed >> 4 the high one. Two tensors of shape (N, P), that "
    "have to become one in which they alternate.",
    "torch.stack((low, high), dim=-1) has shape (N, P, 2): flattened from dimension 1 on, low and high "
    "alternate.",
    "nibbles = torch.stack((packed & 15, packed >> 4), -1).flatten(1)[:, :columns].to(torch.int8). Then 16 "
    "less where it is 8 or more: (nibbles ^ 8) - 8 does it without a comparison.",
)

ORDER = "The two halves are the other way round: the first of two neighbours is in the low half."
HALVES = "All low halves come first here, then all high ones. Columns 2i and 2i + 1 are neighbours."
MINUS_8 = "These are the halves less 8, as unsigned schemes store codes. Here 0 to 7 stand for themselves."
LOW_TWICE = "The high half is read like the low one: shift it down by four first."
HINTS_AT = {
    "negative codes": (
        "Four bits from 8 to 15 stand for -8 to -1: subtract 16 from them, from 8 itself too, and from both "
        "halves. A shift of a uint8 fills up with zeros, not with the sign."
    ),
    "an odd number of columns": "columns says how many there are: the last high half is none of them.",
    "a single row": "One row is a matrix, too: the result has shape (1, C).",
    "a single column": "One byte a row, and one code in it.",
}


def unpack_int4(packed: UInt8[Tensor, "N P"], columns: int) -> Int8[Tensor, "N C"]:
    """Each byte's two codes."""
    return Unpack()(packed, columns)


@dataclass(frozen=True)
class Unpack:
    """Two codes of a byte; the fields are what mutants get wrong.

    Args:
        halves: of the bytes, in int64.
        joined: (N, P, 2) of the two, to (N, 2P).
        signed: codes of four bits each, in int64.
        kept: of (N, 2P) the columns that are asked for.
    """

    halves: Callable = lambda packed: (packed & 15, packed >> 4)
    joined: Callable = lambda pairs: pairs.flatten(1)
    signed: Callable = lambda nibbles: nibbles - 16 * (nibbles >= 8)
    kept: Callable = lambda codes, columns: codes[:, :columns]

    def __call__(self, packed, columns):
        nibbles = self.joined(torch.stack(self.halves(packed.long()), -1))
        return self.kept(self.signed(nibbles), columns).to(torch.int8)


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, columns, nibbles, wrong=(), apart=()):
        def draw():
            width = -(-columns // 2)
            values = [
                [rng.choice(nibbles) + 16 * rng.choice(nibbles) for _ in range(width)] for _ in range(rows)
            ]
            return {"packed": torch.tensor(values, dtype=torch.uint8), "columns": columns}

        return Case(dict(telling(draw, unpack_int4, wrong, apart)), label)

    even = 2 * rng.randint(3, 5)
    return [
        case(FIRST, 4, even, range(1, 8), apart=TOLD),
        case("negative codes", 4, even, range(16), SIGNS),
        case("an odd number of columns", 4, even + 1, range(16), (_keeps_all, _drops_first)),
        case("a single column", 3, 1, range(16)),
        case("a single row", 1, even, range(16), (_squeezed,)),
        case("many codes", 5, 2 * rng.randint(130, 150), range(16), (_first_256,)),
    ]


FIRST = "codes above 0"
_order = Unpack(halves=lambda packed: (packed >> 4, packed & 15))
_halves = Unpack(joined=lambda pairs: pairs.mT.flatten(1))
_minus_8 = Unpack(signed=lambda nibbles: nibbles - 8)
_low_twice = Unpack(halves=lambda packed: (packed & 15, packed & 15))
_zeros = Unpack(signed=torch.zeros_like)
_unmasked = Unpack(halves=lambda packed: (packed, packed >> 4))
_unsigned = Unpack(signed=lambda nibbles: nibbles)
_above_8 = Unpack(signed=lambda nibbles: nibbles - 16 * (nibbles > 8))
_minus_15 = Unpack(signed=lambda nibbles: nibbles - 15 * (nibbles >= 8))
_magnitude = Unpack(signed=lambda nibbles: torch.where(nibbles >= 8, 8 - nibbles, nibbles))
_high_unsigned = Unpack(
    halves=lambda packed: ((packed & 15) - 16 * ((packed & 15) >= 8), packed >> 4), signed=lambda codes: codes
)
_low_unsigned = Unpack(
    halves=lambda packed: (packed & 15, (packed >> 4) - 16 * (packed >= 128)), signed=lambda codes: codes
)
_keeps_all = Unpack(kept=lambda codes, columns: codes)
_drops_first = Unpack(kept=lambda codes, columns: codes[:, codes.shape[1] - columns :])


def _squeezed(packed, columns):
    """Without the dimension of the only row."""
    return unpack_int4(packed, columns).squeeze(0)


def _first_256(packed, columns):
    """Zeros behind so many columns, as in a buffer of one size."""
    codes = unpack_int4(packed, columns)
    codes[:, 256:] = 0
    return codes


def _in_place(packed, columns):
    codes = unpack_int4(packed, columns)
    packed >>= 4
    return codes


SIGNS = (_unsigned, _above_8, _minus_15, _magnitude, _high_unsigned, _low_unsigned)
TOLD = (_order, _halves, _minus_8, _low_twice)

EXERCISE = Exercise(
    name="05.unpack_int4",
    function="unpack_int4",
    title="And out of the byte again",
    points=8,
    minutes=10,
    level=2,
    asks=ASKS,
    signature="unpack_int4(packed, columns)",
    cases=cases,
    reference=unpack_int4,
    comparison=Close(axes=("row", "column")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("begins with the high half", _order, FIRST, ORDER),
        Mutant("puts all low halves first", _halves, FIRST, HALVES),
        Mutant("subtracts 8 from each half", _minus_8, FIRST, MINUS_8),
        Mutant("reads the low half twice", _low_twice, FIRST, LOW_TWICE),
        Mutant("does not cut the low half out", _unmasked, FIRST),
        Mutant("returns zeros", _zeros, FIRST),
        Mutant("extends no sign", _unsigned, "negative codes"),
        Mutant("takes 8 for a positive code", _above_8, "negative codes"),
        Mutant("subtracts 15", _minus_15, "negative codes"),
        Mutant("takes a half for a sign and a magnitude", _magnitude, "negative codes"),
        Mutant("extends the sign of the low half only", _high_unsigned, "negative codes"),
        Mutant("extends the sign of the high half only", _low_unsigned, "negative codes"),
        Mutant("keeps the last high half", _keeps_all, "an odd number of columns"),
        Mutant("drops the first half instead", _drops_first, "an odd number of columns"),
        Mutant("loses the only row", _squeezed, "a single row"),
        Mutant("unpacks 256 columns", _first_256, "many codes"),
        Mutant("shifts its input in place", _in_place, NoMutation().name),
    ),
)
