"""What a step of speculation leaves to be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SpeculativeStep:
    """One step of the loop, of all rows; a list has an entry for each of them.

    Of a row's drafts the first `num_accepted` stand, the next fell, and those after it were not judged. Where
    all stand, the target's own token is a bonus, otherwise it corrects the one that fell.

    Attributes:
        index: 0 for the first step, which reads the prompts and drafts nothing.
        drafts: what was proposed.
        p_drafts, q_drafts: the probability of each draft, under the target and under its drafter.
        num_accepted: how many stand.
        next_tokens: the target's token after them; meaningless where not active.
        tokens: what the text gained: fewer than were accepted where it ended among them.
        texts: the text that became certain.
        active: the rows that took part.
        p: the target's distribution where the accepted drafts end.
        q: the drafter's, of the draft that fell there; zeros where none did.
        draft_s: time of drafting.
        verify_s: time of the target's pass and the verdict.
        time_s: of the whole step, without what the reader of the stream did in between.
    """

    index: int
    drafts: list[list[int]]
    p_drafts: list[list[float]]
    q_drafts: list[list[float]]
    num_accepted: list[int]
    next_tokens: list[int]
    tokens: list[list[int]]
    texts: list[str]
    active: list[bool]
    p: Float[Tensor, "B V"]
    q: Float[Tensor, "B V"]
    draft_s: float
    verify_s: float
    time_s: float

    def gained(self) -> list[int]:
        """Tokens of each row that took part, the target's own included."""
        return [num + 1 for num, active in zip(self.num_accepted, self.active, strict=True) if active]

    def rejected(self, row: int) -> int | None:
        """The draft that fell, if one did."""
        drafts, count = self.drafts[row], self.num_accepted[row]
        return drafts[count] if count < len(drafts) else None
