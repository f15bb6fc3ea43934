"""What the cases about drafts are drawn from: probabilities in 64ths, and numbers that never meet a ratio.

A uniform number is an odd multiple of 2⁻¹⁷, so u·q = p and u·total = running sum have no solution in 64ths:
no verdict turns on rounding, in float32 neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.rules import Forbid

WHOLE = 64  # parts that the probabilities of a row have together
FINE = 2**16  # places for a uniform number
APART = 1.6  # times that q is p at least, where a draft is to stand or to fall
ATTEMPTS = 2000
# The course's own is the answer to these exercises; grading holds references, and figures pass others on.
OWN_PARTS = ("speculative", "medusa", "early_exit", "blockwise", "grading", "figures")
OWN_WORK = Forbid(parts=OWN_PARTS)


def shares(rng: random.Random, vocab: int) -> list[int]:
    """Parts of `WHOLE`, at least one for each token."""
    cuts = sorted(rng.sample(range(1, WHOLE), vocab - 1))
    return [high - low for low, high in zip([0, *cuts], [*cuts, WHOLE], strict=True)]


def doubted(rng: random.Random, p: Sequence[int]) -> tuple[list[int], int]:
    """Parts q, and a draft that q gives much more than p does: it may stand, and it may fall.

    Raises:
        ValueError: p leaves no room for one.
    """
    for _ in range(ATTEMPTS):
        q = shares(rng, len(p))
        drafts = [token for token, part in enumerate(p) if 0 < APART * part <= q[token]]
        if drafts:
            return q, rng.choice(drafts)
    raise ValueError(f"p must leave room for a draft, got {list(p)}; spread it")


def point(rng: random.Random, low: float, high: float) -> float:
    """A uniform number between two, which float32 holds, and which is no ratio of parts.

    Raises:
        ValueError: there is none.
    """
    first, last = int(low * FINE) + 1, int(high * FINE) - 1
    if first > last:
        raise ValueError(f"low and high must have room between them, got {low} and {high}; widen it")
    return (2 * rng.randint(first, last) + 1) / (2 * FINE)


def stands(rng: random.Random, p: int, q: int) -> float:
    """A number with which a draft of so many parts stands, by far."""
    return point(rng, 0.3 * min(1.0, p / q), 0.8 * min(1.0, p / q))


def falls(rng: random.Random, p: int, q: int) -> float:
    """A number with which it falls, by far."""
    return point(rng, 1.2 * p / q, 1.0)


def distributions(parts: Sequence[Any]) -> Float[Tensor, ...]:
    """Probabilities of parts, exactly."""
    return torch.tensor(parts, dtype=torch.float32) / WHOLE


def telling(
    draw: Callable[[], Mapping[str, Any]],
    right: Callable,
    wrong: Sequence[Callable],
    apart: Sequence[Callable] = (),
) -> Mapping[str, Any]:
    """Arguments to which none of the wrong answers gives the right value.

    Args:
        apart: those of them that a student is told of by name: no other of them all gives the same.

    Raises:
        ValueError: none were found.
    """
    answers = [*wrong, *(answer for answer in apart if answer not in wrong)]
    named = {right, *apart}
    for _ in range(ATTEMPTS):
        arguments = draw()
        told = [(right, [right(**arguments)])]
        for place, answer in enumerate(answers):
            if not _is_apart(answer, arguments, told, named):
                answers.insert(0, answers.pop(place))  # what fails once fails often: it is asked first
                break
        else:
            return arguments
    raise ValueError("draw must tell the mistakes from what is right; draw other arguments")


def _is_apart(
    answer: Callable, arguments: Mapping[str, Any], told: list[tuple[Callable, list]], named: set[Callable]
) -> bool:
    """Whether this answer's value is none of those before it, of which one of the two is named."""
    values = []
    with suppress(ValueError):  # one that raises gives none
        values.append(answer(**arguments))
    if answer in named and not values:  # a student would be told of the error alone
        return False
    for other, others in told:
        both = zip(values, others, strict=False)
        if not named.isdisjoint((answer, other)) and any(_same(*pair) for pair in both):
            return False
    told.append((answer, values))
    return True


def _same(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and not isinstance(one, Tensor) and one == other
