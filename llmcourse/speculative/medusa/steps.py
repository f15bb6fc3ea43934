"""What a step of Medusa leaves to be looked at, and what many of them gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.decoding.errors import require, require_number
from llmcourse.speculative.medusa.candidates import Choice, MedusaTree


@dataclass(frozen=True)
class MedusaStep:
    """One step of the loop, of all rows; a list has an entry for each of them.

    Attributes:
        index: 0 for the first step, which reads the prompts and tries no tree.
        tree: its nodes, in the order of the drafts; None in the first step.
        drafts: the token at each node.
        p_drafts: the target's probability of each node's token behind its parent.
        paths: the nodes that stand, from the root's child on.
        next_tokens: the target's token after them; meaningless where not active.
        tokens: what the text gained: fewer than were accepted where it ended among them.
        texts: the text that became certain.
        active: the rows that took part.
        draft_s: time of the heads.
        verify_s: time of the backbone's pass and the verdict.
        time_s: of the whole step, without what the reader of the stream did in between.
    """

    index: int
    tree: MedusaTree | None
    drafts: list[list[int]]
    p_drafts: list[list[float]]
    paths: list[tuple[int, ...]]
    next_tokens: list[int]
    tokens: list[list[int]]
    texts: list[str]
    active: list[bool]
    draft_s: float
    verify_s: float
    time_s: float


def tokens_per_step(steps: Sequence[MedusaStep]) -> float:
    """What a row gained in a step on average, the target's own token included; the first step is left out.

    Raises:
        ValueError: there are no steps but the first.
    """
    gained = [len(path) + 1 for step in _later(steps) for path in _active_paths(step)]
    _require_steps(len(gained))
    return sum(gained) / len(gained)


def accepted_nodes(steps: Sequence[MedusaStep]) -> Counter[Choice]:
    """How often each node of the tree stood."""
    found: Counter[Choice] = Counter()
    for step in _later(steps):
        for path in _active_paths(step):
            found.update(step.tree.choices[node] for node in path)
    return found


def measured_speed_up(steps: Sequence[MedusaStep], token_s: int | float) -> float:
    """How many times faster than decoding: the tokens that each row gained, by what they would have taken.

    Args:
        token_s: a step of decoding without heads, in seconds; the median `time_s` of `decoding.stream`, say.

    Raises:
        ValueError: a time that is not above 0, or no steps but the first.
    """
    require_number(lambda s: s > 0, "token_s", "above 0", token_s, "measure a step of decoding, in seconds")
    later = _later(steps)
    _require_steps(len(later))
    return tokens_per_step(steps) * token_s * len(later) / sum(step.time_s for step in later)


def _later(steps: Sequence[MedusaStep]) -> list[MedusaStep]:
    return [step for step in steps if step.index > 0]


def _active_paths(step: MedusaStep) -> list[tuple[int, ...]]:
    return [path for path, active in zip(step.paths, step.active, strict=True) if active]


def _require_steps(count: int) -> None:
    require(count > 0, "steps", "more than the first one of each text", "none", "write longer texts")
