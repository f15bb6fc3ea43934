"""What speculation gained, from the steps of a loop: acceptance, tokens a step, costs, speed-up.

The same letters as in `theory`, whose prediction stands beside what was measured. The first step of a text
reads its prompt, and is left out of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Protocol, TypeVar, runtime_checkable

from llmcourse.decoding.errors import require, require_number
from llmcourse.speculative.draft_length import Tally
from llmcourse.speculative.steps import SpeculativeStep
from llmcourse.speculative.theory import VerifyCost, constant, expected_tokens

Steps = Sequence[SpeculativeStep]


@runtime_checkable
class Gains(Protocol):
    """What steps of every loop say, Medusa's too."""

    index: int
    tokens: list[list[int]]
    active: list[bool]
    time_s: float

    def gained(self) -> list[int]: ...


Step = TypeVar("Step", bound=Gains)


def written(steps: Sequence[Gains]) -> list[list[int]]:
    """The new tokens of each text."""
    return [[*chain(*rows)] for rows in zip(*(step.tokens for step in steps), strict=True)]


def tokens_per_pass(steps: Sequence[Gains]) -> float:
    """What a pass of the target brought a row on average, the first pass aside.

    Counts what stayed in the text; `tokens_per_step` also what was accepted behind its end.

    Raises:
        ValueError: there are no steps but the first.
    """
    rows = (row for step in _later(steps) for row in zip(step.tokens, step.active, strict=True))
    return _mean([len(new) for new, active in rows if active])


def tally(steps: Steps) -> Tally:
    """Drafts that stood and that fell; `tally(steps).rate` is α."""
    total = Tally()
    for num_drafts, num_accepted in _outcomes(steps):
        total = total.after(num_drafts, num_accepted)
    return total


def acceptance_by_position(steps: Steps) -> list[float]:
    """α₁, α₂, …: of the drafts at each position that were judged, the share that stood.

    As `theory.expected_tokens_by_position` takes it; positions at which none was judged are left out.
    """
    stood, judged = [], []
    for num_drafts, num_accepted in _outcomes(steps):
        stood = _sums(stood, [1] * num_accepted)
        judged = _sums(judged, [1] * min(num_drafts, num_accepted + 1))
    return [count / total for count, total in zip_longest(stood, judged, fillvalue=0)]


def tokens_per_step(steps: Sequence[Gains]) -> float:
    """What a row gained in a step on average, the target's own tokens included.

    Raises:
        ValueError: there are no steps.
    """
    return _mean([*chain(*(step.gained() for step in _later(steps)))])


def draft_cost(steps: Steps, token_s: int | float) -> float:
    """c: the time of one draft for each row, in steps of decoding without speculation.

    Args:
        token_s: the time of such a step, in seconds; the median `time_s` of `decoding.stream`, say.

    Raises:
        ValueError: a time that is not above 0, or no drafts.
    """
    _check_time(token_s)
    num_drafts = sum(_gamma(step) for step in _later(steps))
    require(num_drafts > 0, "steps", "such that something was drafted", "none", "write longer texts")
    return sum(step.draft_s for step in _later(steps)) / num_drafts / token_s


def verify_cost(steps: Steps, token_s: int | float) -> Callable[[int], float]:
    """v(n): the mean time of verifying in a pass over n tokens, in the same unit; for widths that were seen.

    Raises:
        ValueError: a time that is not above 0; when called, a width of which there was no pass.
    """
    _check_time(token_s)
    times: dict[int, list[float]] = {}
    for step in _later(steps):
        times.setdefault(1 + _gamma(step), []).append(step.verify_s)

    def cost(num_tokens: int) -> float:
        seen = ", ".join(map(str, sorted(times))) or "none"
        require(num_tokens in times, "num_tokens", f"a width of the steps ({seen})", num_tokens, "measure it")
        return _mean(times[num_tokens]) / token_s

    return cost


def measured_speed_up(steps: Sequence[Gains], token_s: int | float) -> float:
    """How many times faster than decoding: the tokens that each row gained, by what they would have taken.

    Raises:
        ValueError: a time that is not above 0, or no steps.
    """
    _check_time(token_s)
    return tokens_per_step(steps) * token_s / _mean([step.time_s for step in _later(steps)])


def predicted_speed_up(
    steps: Steps, token_s: int | float, cost: VerifyCost = constant, alpha: float | None = None
) -> float:
    """What `theory` says for the α, c and draft lengths of these steps.

    Σ E(tokens | α, γ) / Σ (γ c + v(γ + 1)), over the steps; for one γ it is `theory.speed_up`.

    Args:
        cost: v; `constant` is theorem 3.8 of Leviathan et al. 2023, `verify_cost(steps, token_s)` knows what
            wider passes take on the machine at hand.
        alpha: another acceptance than that of the steps.

    Raises:
        ValueError: as `draft_cost`.
    """
    c = draft_cost(steps, token_s)
    alpha = tally(steps).rate if alpha is None else alpha
    lengths = [_gamma(step) for step in _later(steps)]
    gained = sum(expected_tokens(alpha, gamma) for gamma in lengths)
    return gained / sum(gamma * c + cost(gamma + 1) for gamma in lengths)


def _later(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.index > 0]


def _gamma(step: SpeculativeStep) -> int:
    """Drafts of the row that had most: as many were made for each, and the pass was one token wider."""
    return max(map(len, step.drafts))


def _outcomes(steps: Steps) -> Iterator[tuple[int, int]]:
    """Drafts and accepted drafts of each row and step, where it took part."""
    for step in _later(steps):
        for active, drafts, stood in zip(step.active, step.drafts, step.num_accepted, strict=True):
            if active:
                yield len(drafts), stood


def _sums(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]


def _mean(values: Sequence[int | float]) -> float:
    require(len(values) > 0, "steps", "more than the first one of each text", "none", "write longer texts")
    return sum(values) / len(values)


def _check_time(token_s: int | float) -> None:
    require_number(lambda s: s > 0, "token_s", "above 0", token_s, "measure a step of decoding, in seconds")
