"""00.speed_limit: the exercise of the front page, which shows how checking works and gives no points."""

from __future__ import annotations

import random

from llmcourse.grading.compare import Near
from llmcourse.grading.exercise import Case, Exercise, Mutant

ASKS = r"""
A model that writes one text reads all of its weights for every token. Write
`speed_limit(parameters, bytes_each, gb_per_s)`: the most tokens a second that the memory allows.

- `parameters`: how many weights; `bytes_each`: 4 in fp32, 2 in bf16.
- `gb_per_s`: of the memory, in $10^9$ bytes.
- returns a number.

```python
>>> speed_limit(10_000_000, 4, 20)
500.0
```
"""

HINTS = (
    "How many bytes must the memory bring for one token?",
    "parameters · bytes_each bytes a token; the memory brings gb_per_s · 10⁹ bytes a second.",
    "Divide what comes in a second by what a token takes: gb_per_s * 1e9 / (parameters * bytes_each).",
)

HINTS_AT = {
    "weights in fp32": "A weight takes bytes_each bytes, not one: four in fp32. And 1 GB is 10⁹ bytes."
}


def speed_limit(parameters: int, bytes_each: int, gb_per_s: float | int) -> float:
    """Bytes a second over bytes a token."""
    return gb_per_s * 1e9 / (parameters * bytes_each)


def cases(rng: random.Random) -> list[Case]:
    def case(label: str, bytes_each: int) -> Case:
        parameters, speed = rng.randint(10**6, 10**10), rng.randint(10, 5000)
        return Case({"parameters": parameters, "bytes_each": bytes_each, "gb_per_s": speed}, label)

    return [case("weights in fp32", 4), case("weights in bf16", 2)]


def _a_byte_each(parameters, bytes_each, gb_per_s):
    return speed_limit(parameters, 1, gb_per_s)


def _always_four(parameters, bytes_each, gb_per_s):
    return speed_limit(parameters, 4, gb_per_s)


def _upside_down(parameters, bytes_each, gb_per_s):
    return 1 / speed_limit(parameters, bytes_each, gb_per_s)


def _gib(parameters, bytes_each, gb_per_s):
    return gb_per_s * 2**30 / (parameters * bytes_each)


EXERCISE = Exercise(
    name="00.speed_limit",
    function="speed_limit",
    title="The speed limit of the memory",
    points=1,
    minutes=2,
    level=1,
    asks=ASKS,
    signature="speed_limit(parameters, bytes_each, gb_per_s)",
    cases=cases,
    reference=speed_limit,
    comparison=Near(),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes a byte for each weight", _a_byte_each, "weights in fp32"),
        Mutant("takes four bytes for every weight", _always_four, "weights in bf16"),
        Mutant("divides the wrong way round", _upside_down, "weights in fp32"),
        Mutant("takes GB for GiB", _gib, "weights in fp32"),
    ),
)


def find(name: str) -> Exercise:
    """The exercise of this name, for `SelfCheck(find=first_steps.find)`.

    Raises:
        LookupError: it is not that of the front page.
    """
    if name != EXERCISE.name:
        raise LookupError(f"there is no exercise {name!r} on the front page; did you mean {EXERCISE.name}?")
    return EXERCISE
