"""How many drafts to ask for: always as many, or as many as pay at the acceptance seen lately.

A policy is pure: what was seen is a tally that the caller keeps for each text, so that rows of a batch, and
requests that come and go, adapt apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.speculative.theory import VerifyCost, best_draft_length, constant


@dataclass(frozen=True)
class Tally:
    """Drafts that stood, and drafts that fell; those after a fallen one were not judged, and do not count.

    With chance α for each draft, the accepted of a step are geometric, cut at γ, and the likeliest α is
    accepted / (accepted + rejected).
    """

    accepted: int | float = 0.0
    rejected: int | float = 0.0

    def after(self, num_drafts: int, num_accepted: int, keep: float = 1.0) -> Tally:
        """With one step more, older ones counting `keep` times what they did.

        Raises:
            ValueError: counts that no step can have.
        """
        require_integer(0, "num_drafts", num_drafts, "count a row's own drafts")
        allowed = f"in [0, {num_drafts}]"
        remedy = "do not count the target's own token"
        require_number(lambda n: 0 <= n <= num_drafts, "num_accepted", allowed, num_accepted, remedy)
        fell = num_accepted < num_drafts
        return Tally(keep * self.accepted + num_accepted, keep * self.rejected + fell)

    @property
    def rate(self) -> float | None:
        """The likeliest α; None before anything was judged."""
        judged = self.accepted + self.rejected
        return self.accepted / judged if judged else None


@runtime_checkable
class DraftLength(Protocol):
    """Chooses γ for a text's next step.

    Attributes:
        longest: the largest that it may choose; a cache has room for so many drafts.
    """

    longest: int

    def gamma(self, tally: Tally, room: int) -> int:
        """Drafts to ask for.

        Args:
            tally: what this text has seen.
            room: tokens that it may still gain, at least 1. γ is clamped to one less: the target always
                adds a token of its own.
        """
        ...

    def observe(self, tally: Tally, num_drafts: int, num_accepted: int) -> Tally:
        """The tally after a step."""
        ...


@dataclass(frozen=True)
class FixedLength:
    """The same γ at every step.

    Raises:
        ValueError: γ below 1.
    """

    length: int

    def __post_init__(self):
        require_integer(1, "length", self.length, "decode without a drafter to draft nothing")

    @property
    def longest(self) -> int:
        return self.length

    def gamma(self, tally: Tally, room: int) -> int:
        return _clamped(self.length, room)

    def observe(self, tally: Tally, num_drafts: int, num_accepted: int) -> Tally:
        return tally.after(num_drafts, num_accepted)


@dataclass(frozen=True)
class AdaptiveLength:
    """The γ that theory calls best for the acceptance seen lately; it may be 0 for a while.

    α is seen through a prior worth `prior_weight` drafts. Steps fade, those without a draft included, so
    that a text that stopped drafting comes back to the prior, and tries again.

    Attributes:
        c: a draft's cost in one-token passes of the target, at least 0.
        longest: the largest γ, at least 1.
        verify_cost: v(n) of `theory`.
        prior: α before anything was seen, in [0, 1].
        prior_weight: above 0 and finite.
        keep: in (0, 1): what a step counts after one more; 0.9 looks back about ten steps.

    Raises:
        ValueError: a value out of its range, or a prior by which drafting never pays.
    """

    c: int | float
    longest: int = 8
    verify_cost: VerifyCost = constant
    prior: int | float = 0.7
    prior_weight: int | float = 1.0
    keep: float = 0.9

    def __post_init__(self):
        require_integer(1, "longest", self.longest, "decode without a drafter to draft nothing")
        positive, inside = (lambda w: 0 < w < math.inf), (lambda k: 0 < k < 1)
        remedy = "use 1.0; FixedLength heeds nothing that is seen"
        require_number(positive, "prior_weight", "above 0 and finite", self.prior_weight, remedy)
        require_number(inside, "keep", "in (0, 1)", self.keep, "use 0.9; FixedLength forgets nothing")
        pays = best_draft_length(self.prior, self.c, self.longest, self.verify_cost) > 0
        allowed = f"large enough for drafts of cost {self.c} to pay"
        remedy = "raise it, or decode without a drafter"
        require_number(lambda _: pays, "prior", allowed, self.prior, remedy)

    def gamma(self, tally: Tally, room: int) -> int:
        judged = self.prior_weight + tally.accepted + tally.rejected
        alpha = (self.prior_weight * self.prior + tally.accepted) / judged
        return _clamped(best_draft_length(alpha, self.c, self.longest, self.verify_cost), room)

    def observe(self, tally: Tally, num_drafts: int, num_accepted: int) -> Tally:
        return tally.after(num_drafts, num_accepted, self.keep)


def as_policy(draft_length: int | DraftLength) -> DraftLength:
    """The policy itself, or for a number the one that always asks for so many.

    Raises:
        ValueError: γ below 1 or no integer, a policy whose `longest` is none, or the class of one.
    """
    if not isinstance(draft_length, DraftLength):
        return FixedLength(draft_length)
    made, remedy = not isinstance(draft_length, type), "call it to make one, as FixedLength(4)"
    require(made, "draft_length", "γ or a policy", f"the class {draft_length!r}", remedy)
    require_integer(0, "longest of draft_length", draft_length.longest, "say how many it may ask for at most")
    return draft_length


def choose_gamma(policy: DraftLength, tally: Tally, room: int) -> int:
    """What a policy asks for, which anybody may have written.

    Raises:
        ValueError: no integer, or one that is negative, above its `longest`, or leaves the target's own
            token no room.
    """
    gamma, most = policy.gamma(tally, room), min(policy.longest, room - 1)
    allowed, remedy = f"an integer in [0, {most}]", "clamp it to the room, less one token"
    require_number(lambda count: 0 <= count <= most, "gamma", allowed, gamma, remedy, kind=Integral)
    return int(gamma)


def _clamped(length: int, room: int) -> int:
    require_integer(1, "room", room, "stop a text that may gain nothing")
    return min(length, room - 1)
