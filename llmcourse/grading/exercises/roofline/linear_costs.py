"""02.linear_costs: FLOPs, bytes and intensity of one matrix product."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Near, Parts
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
A linear layer multiplies $X$, of shape `(rows, n_in)`, by a weight matrix $W$, of shape `(n_in, n_out)`. Rows
are tokens: in a decoding step one for each text of the batch, in prefill one for each token of each prompt.

Write `linear_costs(rows, n_in, n_out, number_bytes)`.

- `rows`, `n_in`, `n_out`: the sizes, ints.
- `number_bytes`: bytes of a number, the same for all three matrices: 4 in fp32, 2 in bf16, 0.5 in int4.
- returns a tuple of three numbers, `(flops, moved_bytes, intensity)`.

A multiplication and an addition are two FLOPs. $X$ and $W$ are read from memory once, the result is written
once. The intensity is FLOPs for each byte moved.

```python
>>> linear_costs(1, 4096, 4096, 2)             # a token: every weight is read for two FLOPs
(33554432, 33570816, 0.9995119570522206)
>>> linear_costs(4096, 4096, 4096, 2)[2]       # 4,096 tokens share the reading
1365.3333333333333
```
"""

HINTS = (
    "How many multiplications does one element of the result take? And how many elements has the result?",
    "An element of the result is a sum of n_in products: n_in multiplications and as many additions. There "
    "are rows · n_out elements.",
    "Three matrices move: rows · n_in numbers and n_in · n_out numbers are read, rows · n_out are written. "
    "Each has number_bytes bytes.",
)

HINTS_AT = {
    "two bytes a number": "Bytes, not numbers: every number that moves has number_bytes bytes.",
    "a matrix that is not square": (
        "W has n_in · n_out numbers, X has rows · n_in and the result rows · n_out: print the shapes of a "
        "small example."
    ),
    "many rows": (
        "The weights are read once for all rows, X and the result have a part for each row. The FLOPs grow "
        "with the rows."
    ),
    "half a byte a number": "number_bytes may be 0.5, two numbers in a byte: no rounding, and no int().",
}


def linear_costs(
    rows: int, n_in: int, n_out: int, number_bytes: float | int
) -> tuple[int, float | int, float]:
    """2nmp FLOPs over nm + mp + np numbers."""
    flops = 2 * rows * n_in * n_out
    moved_bytes = number_bytes * (rows * n_in + n_in * n_out + rows * n_out)
    return flops, moved_bytes, flops / moved_bytes


def cases(rng: random.Random) -> list[Case]:
    def case(label, rows, n_in, n_out, number_bytes):
        arguments = {"rows": rows, "n_in": n_in, "n_out": n_out, "number_bytes": number_bytes}
        return Case(arguments, label)

    def size():
        return 8 * rng.randint(5, 60)

    square, narrow = size(), size()
    wide = narrow + size()
    return [
        case("one row", 1, square, square, 1),
        case("two bytes a number", 1, square + 8, square + 8, 2),
        case("a matrix that is not square", 1, *rng.sample((narrow, wide), 2), 2),
        case("many rows", rng.randint(50, 500), narrow, wide, rng.choice((2, 4))),
        case("half a byte a number", rng.randint(2, 9), wide, narrow, 0.5),
    ]


def _one_flop(rows, n_in, n_out, number_bytes):
    flops, moved_bytes, intensity = linear_costs(rows, n_in, n_out, number_bytes)
    return flops // 2, moved_bytes, intensity / 2


def _weights_alone(rows, n_in, n_out, number_bytes):
    flops, moved_bytes = 2 * rows * n_in * n_out, number_bytes * n_in * n_out
    return flops, moved_bytes, flops / moved_bytes


def _writes_nothing(rows, n_in, n_out, number_bytes):
    flops, moved_bytes = 2 * rows * n_in * n_out, number_bytes * n_in * (rows + n_out)
    return flops, moved_bytes, flops / moved_bytes


def _upside_down(rows, n_in, n_out, number_bytes):
    flops, moved_bytes, _ = linear_costs(rows, n_in, n_out, number_bytes)
    return flops, moved_bytes, moved_bytes / flops


def _numbers(rows, n_in, n_out, number_bytes):
    return linear_costs(rows, n_in, n_out, 1)


def _result_as_wide_as_the_input(rows, n_in, n_out, number_bytes):
    flops, _, _ = linear_costs(rows, n_in, n_out, number_bytes)
    moved_bytes = number_bytes * (2 * rows * n_in + n_in * n_out)
    return flops, moved_bytes, flops / moved_bytes


def _weights_for_each_row(rows, n_in, n_out, number_bytes):
    flops, _, _ = linear_costs(rows, n_in, n_out, number_bytes)
    moved_bytes = rows * number_bytes * (n_in + n_in * n_out + n_out)
    return flops, moved_bytes, flops / moved_bytes


def _one_token(rows, n_in, n_out, number_bytes):
    return linear_costs(1, n_in, n_out, number_bytes)


def _whole_bytes(rows, n_in, n_out, number_bytes):
    return linear_costs(rows, n_in, n_out, max(1, int(number_bytes)))


EXERCISE = Exercise(
    name="02.linear_costs",
    function="linear_costs",
    title="What a matrix costs",
    points=6,
    minutes=10,
    level=1,
    asks=ASKS,
    signature="linear_costs(rows, n_in, n_out, number_bytes)",
    cases=cases,
    reference=linear_costs,
    comparison=Parts({"flops": Near(), "moved_bytes": Near(), "intensity": Near()}),
    rules=(Forbid(names=(*LIBRARIES, "costs")),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("counts one FLOP for two", _one_flop, "one row"),
        Mutant("moves the weights alone", _weights_alone, "one row"),
        Mutant("forgets that the result is written", _writes_nothing, "one row"),
        Mutant("divides bytes by FLOPs", _upside_down, "one row"),
        Mutant("counts numbers for bytes", _numbers, "two bytes a number"),
        Mutant(
            "takes the result to be as wide as the input",
            _result_as_wide_as_the_input,
            "a matrix that is not square",
        ),
        Mutant("reads the weights again for each row", _weights_for_each_row, "many rows"),
        Mutant("counts one token alone", _one_token, "many rows"),
        Mutant("rounds to whole bytes", _whole_bytes, "half a byte a number"),
    ),
)
