"""05.pack_int4: two codes of four bits in a byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from llmcourse.grading.compare import Close
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK
from llmcourse.grading.exercises.speculative.drawn import telling
from llmcourse.grading.rules import NoMutation

ASKS = r"""
No tensor has elements of four bits, so two codes share a byte. A signed code from -8 to 7 is stored by its
last four bits, as processors store integers (**two's complement**): 0 to 7 as themselves, and -8 to -1 as 8
to 15. Of two neighbours in a row, the first takes the low half of the byte, the last four bits, and the
second the high half:

$$\text{byte}_i = (q_{2i} \bmod 16) + 16 \cdot (q_{2i + 1} \bmod 16)$$

where $q \bmod 16$ lies in 0 to 15, as Python has it: $-1 \bmod 16 = 15$. (Checkpoints often store $q + 8$
instead, which is the same but for the highest bit of each half.)

Write `pack_int4(codes)`.

- `codes`: `int8` tensor of shape `(N, C)`, all in -8 to 7. $C$ may be odd: then the last high half of each
  row is 0. Rows share no bytes.
- returns a `uint8` tensor of shape `(N, P)`, where $P$ is half of $C$, rounded up.

```python
>>> packed = pack_int4(torch.tensor([[1, 2, -1], [-8, 7, 0]], dtype=torch.int8))
>>> packed                                                     # 1 + 16·2, 15, 8 + 16·7, 0
tensor([[ 33,  15],
        [120,   0]], dtype=torch.uint8)
```
"""

HINTS = (
    "The codes at even columns are codes[:, 0::2], those at odd columns codes[:, 1::2]. What number does "
    "each add to its byte?",
    "codes & 15 keeps the last four bits, also of a negative number: -1 & 15 is 15. A shift by four, << 4, "
    "makes a low half a high one. In int8 there is no room for that: go to a wider type or to uint8 first.",
    "nibbles = codes.to(torch.uint8) & 15, with a column of zeros behind where C is odd "
    "(torch.nn.functional.pad). Then nibbles[:, 0::2] | nibbles[:, 1::2] << 4.",
)

ORDER = "The two halves are the other way round: the first of two neighbours takes the low half."
HALVES = "Neighbours share a byte: columns 2i and 2i + 1, not i and i + C/2."
OFFSET = (
    "These are the codes plus 8, as unsigned schemes store them. Here it is two's complement: the last four "
    "bits, -1 as 15."
)
TRANSPOSED = "Neighbours in a row share a byte, not neighbours in a column."
BY_10 = "The second code counts 16 times: it is shifted by four bits."
LOST = "The high half is 0: a shift by four needs a type with eight bits to spare, or uint8."
HINTS_AT = {
    "negative codes": (
        "A negative code has ones in all higher bits, and they cover the other half: & 15 keeps the last "
        "four. A magnitude alone is not enough either, nor is an 8 for the sign."
    ),
    "an odd number of columns": (
        "The last column has no neighbour: its byte holds it in the low half, and 0 in the high one."
    ),
    "a single row": "One row is a matrix, too: the result has shape (1, P).",
    "a single column": "One column makes one byte a row.",
}


def pack_int4(codes: Int[Tensor, "N C"]) -> UInt8[Tensor, "N P"]:
    """Neighbours into one byte."""
    return Pack()(codes)


@dataclass(frozen=True)
class Pack:
    """Two halves of a byte; the fields are what mutants get wrong.

    Args:
        nibble: the four bits of a code, in int64.
        factors: of the first and the second code of a byte.
        filler: what stands where a neighbour is missing.
        pairs: the two codes of each byte, of an even number of columns.
    """

    nibble: Callable = lambda codes: codes & 15
    factors: tuple[int, int] = (1, 16)
    filler: int = 0
    pairs: Callable = lambda codes: (codes[:, 0::2], codes[:, 1::2])

    def __call__(self, codes):
        odd = codes.shape[1] % 2
        even = torch.nn.functional.pad(self.nibble(codes.long()), (0, odd), value=self.filler)
        first, second = self.pairs(even)
        return (first * self.factors[0] + second * self.factors[1]).to(torch.uint8)


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, columns, lowest, wrong=(), apart=()):
        def draw():
            values = [[rng.randint(lowest, 7) for _ in range(columns)] for _ in range(rows)]
            return {"codes": torch.tensor(values, dtype=torch.int8)}

        return Case(dict(telling(draw, pack_int4, wrong, apart)), label)

    even = 2 * rng.randint(3, 5)
    return [
        case(FIRST, even, even, 1, apart=TOLD),
        case("negative codes", 3, even, -8, SIGNS),
        case("an odd number of columns", 4, even + 1, -8, (_drops, _repeats, _runs_on, _fills_8)),
        case("a single column", rng.choice((2, 4)), 1, -8, (_unmasked,)),
        case("a single row", 1, even + 1, -8, (_squeezed,)),
        case("many codes", 5, 2 * rng.randint(130, 150) + 1, -8, (_first_256,)),
    ]


FIRST = "codes above 0"
_order = Pack(factors=(16, 1))
_halves = Pack(pairs=lambda codes: codes.chunk(2, 1))
_offset = Pack(nibble=lambda codes: codes + 8)
_transposed = Pack(pairs=lambda codes: codes.T.reshape(len(codes), -1).unflatten(1, (-1, 2)).unbind(2))
_by_10 = Pack(factors=(1, 10))
_lost = Pack(factors=(1, 0))
_zeros = Pack(factors=(0, 0))
_unmasked = Pack(nibble=lambda codes: codes)
_magnitude = Pack(nibble=lambda codes: codes.abs())
_sign_bit = Pack(nibble=lambda codes: torch.where(codes < 0, 8 | codes.abs(), codes))
_ones_complement = Pack(nibble=lambda codes: torch.where(codes < 0, codes + 15, codes))
_fills_8 = Pack(filler=8)


def _drops(codes):
    return pack_int4(codes[:, : max(codes.shape[1] // 2 * 2, 1)])


def _repeats(codes):
    """The last code for its missing neighbour."""
    return pack_int4(torch.cat((codes, codes[:, -1:]), 1)) if codes.shape[1] % 2 else pack_int4(codes)


def _runs_on(codes):
    """All codes in a row, over the ends of rows."""
    rows = len(codes)
    packed = pack_int4(codes.reshape(1, -1))
    width = -(-codes.shape[1] // 2)
    return torch.nn.functional.pad(packed, (0, rows * width - packed.shape[1])).reshape(rows, width)


def _squeezed(codes):
    """Without the dimension of the only row."""
    return pack_int4(codes).squeeze(0)


def _first_256(codes):
    """Zeros behind so many columns, as in a buffer of one size."""
    kept = torch.arange(codes.shape[1]) < 256
    return pack_int4(torch.where(kept, codes, 0))


def _in_place(codes):
    packed = pack_int4(codes)
    codes &= 15
    return packed


SIGNS = (_unmasked, _magnitude, _sign_bit, _ones_complement)
TOLD = (_order, _halves, _offset, _transposed, _by_10, _lost)

EXERCISE = Exercise(
    name="05.pack_int4",
    function="pack_int4",
    title="Two codes a byte",
    points=6,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="pack_int4(codes)",
    cases=cases,
    reference=pack_int4,
    comparison=Close(axes=("row", "byte")),
    rules=(NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("begins with the high half", _order, FIRST, ORDER),
        Mutant("pairs the halves of a row", _halves, FIRST, HALVES),
        Mutant("pairs neighbours in a column", _transposed, FIRST, TRANSPOSED),
        Mutant("adds 8 to each code", _offset, FIRST, OFFSET),
        Mutant("counts the second code 10 times", _by_10, FIRST, BY_10),
        Mutant("loses the second code", _lost, FIRST, LOST),
        Mutant("returns zeros", _zeros, FIRST),
        Mutant("does not mask", _unmasked, "negative codes"),
        Mutant("stores the magnitude", _magnitude, "negative codes"),
        Mutant("stores a sign and a magnitude", _sign_bit, "negative codes"),
        Mutant("is one off below 0", _ones_complement, "negative codes"),
        Mutant("drops the last column", _drops, "an odd number of columns"),
        Mutant("repeats the last column", _repeats, "an odd number of columns"),
        Mutant("packs over the ends of rows", _runs_on, "an odd number of columns"),
        Mutant("fills up with the code 0 of another scheme", _fills_8, "an odd number of columns"),
        Mutant("loses the only row", _squeezed, "a single row"),
        Mutant("packs 256 columns", _first_256, "many codes"),
        Mutant("masks its input in place", _in_place, NoMutation().name),
    ),
)
