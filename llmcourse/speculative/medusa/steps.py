"""What a step of Medusa leaves to be looked at, and which nodes of its tree stood in many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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

    def gained(self) -> list[int]:
        """Tokens of each row that took part, the target's own included."""
        return [len(path) + 1 for path in self.active_paths()]

    def active_paths(self) -> list[tuple[int, ...]]:
        """Of the rows that took part."""
        return [path for path, active in zip(self.paths, self.active, strict=True) if active]


def accepted_nodes(steps: Sequence[MedusaStep]) -> Counter[Choice]:
    """How often each node of the tree stood; in the first step none is tried."""
    found: Counter[Choice] = Counter()
    for step in steps:
        for path in step.active_paths():
            found.update(step.tree.choices[node] for node in path)
    return found
