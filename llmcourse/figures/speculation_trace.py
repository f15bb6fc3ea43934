"""A speculative text told in phases: a draft, the next one, the target's verdict, the token that it adds.

A step of the loop drafts, verifies and keeps all at once. Here it is taken apart, so that it can be watched:
each draft is a phase, the verdict on all of them is one, and so is the target's own token, a correction where
a draft fell and a bonus where none did. The first step reads the prompt and has only the last of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from llmcourse.speculative.measured import tally, tokens_per_step
from llmcourse.speculative.steps import SpeculativeStep
from llmcourse.speculative.verify import residual
from llmcourse.tokenizer import REPLACEMENT

Fate = Literal["accepted", "rejected", "dropped"]  # dropped: not judged, or past the end of the text
Kind = Literal["draft", "verdict", "target"]
Decode = Callable[[Sequence[int]], str]
ROWS = 6


@dataclass(frozen=True)
class TracedToken:
    """A token, as figures name it, and what it adds to the text.

    Attributes:
        text: `""` while it leaves a character unfinished; the token that completes it brings all of it.
        special: no part of the text, such as `<|endoftext|>`.
    """

    token: int
    label: str
    text: str
    special: bool = False


@dataclass(frozen=True)
class TracedDraft:
    """A draft with its probability on both sides, and what became of it."""

    word: TracedToken
    p: float
    q: float
    fate: Fate

    @property
    def chance(self) -> float:
        """min(1, p/q), with which it stands."""
        return min(1.0, self.p / self.q)


@dataclass(frozen=True)
class Candidate:
    """What could stand where the accepted drafts end.

    Attributes:
        token: None for the sum of all that are not listed.
        p: under the target.
        q: under the drafter; 0 where no draft fell.
        p_after: of being the target's token there: max(0, p − q) / Σ where a draft fell, else p.
    """

    token: int | None
    label: str
    p: float
    q: float
    p_after: float


@dataclass(frozen=True)
class TracedStep:
    """One step.

    Attributes:
        own: the target's token; None if the text ended among the drafts.
        candidates: the most probable of either side, the draft that fell and `own` among them.
        others: all the rest.
    """

    drafts: tuple[TracedDraft, ...]
    own: TracedToken | None
    candidates: tuple[Candidate, ...]
    others: Candidate

    @property
    def accepted(self) -> tuple[TracedDraft, ...]:
        return tuple(draft for draft in self.drafts if draft.fate == "accepted")

    @property
    def fallen(self) -> TracedDraft | None:
        """The draft that was rejected, if one was."""
        return next((draft for draft in self.drafts if draft.fate == "rejected"), None)

    @property
    def gained(self) -> tuple[TracedToken, ...]:
        """What the text gained by it."""
        return tuple(draft.word for draft in self.accepted) + (() if self.own is None else (self.own,))


@dataclass(frozen=True)
class Counts:
    """What has come of it so far; the step that read the prompt is left out, as in `measured`.

    Attributes:
        tokens: in the text after the prompt, the first step's included.
        steps: that are over, each one pass of the target.
        accepted, judged: drafts.
        tokens_per_step: None before a step is over.
    """

    tokens: int
    steps: int
    accepted: int
    judged: int
    tokens_per_step: float | None

    @property
    def acceptance(self) -> float | None:
        """α as seen so far; None before anything was judged."""
        return self.accepted / self.judged if self.judged else None


@dataclass(frozen=True)
class Phase:
    """Where the player stands.

    Attributes:
        step: counted from 0, among the trace's.
        drafted: how many of the step's drafts are there.
        counts: with this phase.
    """

    kind: Kind
    step: int
    drafted: int
    counts: Counts


@dataclass(frozen=True)
class SpeculationTrace:
    """A text, step by step and phase by phase."""

    prompt: str
    steps: tuple[TracedStep, ...]
    phases: tuple[Phase, ...]

    def text(self, num_steps: int | None = None) -> str:
        """The prompt and what the first steps added to it, all of them for None."""
        gained = [word for step in self.steps[:num_steps] for word in step.gained]
        return self.prompt + "".join(word.text for word in gained)

    def check(self, at: int) -> Phase:
        """The phase of that number.

        Raises:
            ValueError: there is none.
        """
        last = len(self.phases) - 1
        if not 0 <= at <= last:
            raise ValueError(f"at must be in [0, {last}], got {at}; {last} is the last phase")
        return self.phases[at]


def speculation_trace(
    prompt: str,
    steps: Sequence[SpeculativeStep],
    decode: Decode,
    label: Callable[[int], str],
    *,
    row: int = 0,
    rows: int = ROWS,
) -> SpeculationTrace:
    """The trace of one row of a batch.

    Args:
        prompt: what stands before the text.
        steps: what `speculative.stream` yielded, from its first step on.
        decode: token ids to text, such as `tokenizer.decode`; `""` for a special token.
        label: a token's text for readers, such as `tokenizer.label`.
        rows: how many candidates are listed where the accepted drafts end, at least 2.

    Raises:
        ValueError: a row that is not there or took no part, or fewer candidates than 2.
    """
    if rows < 2:
        raise ValueError(f"rows must be at least 2, got {rows}; a fallen draft and its correction are shown")
    own_steps = [_of_row(step, row) for step in steps]
    own_steps = [step for step in own_steps if step.active[0]]
    if not own_steps:
        raise ValueError(f"steps must hold one in which row {row} took part, got none; give a whole stream's")
    traced, written = [], []
    for step in own_steps:
        traced.append(_traced(step, written, decode, label, rows))
        written += step.tokens[0]
    return SpeculationTrace(prompt, tuple(traced), tuple(_phases(own_steps, traced)))


def _of_row(step: SpeculativeStep, row: int) -> SpeculativeStep:
    """The step as a batch of that row alone would have made it."""
    if not 0 <= row < len(step.active):
        raise ValueError(f"row must be in [0, {len(step.active) - 1}], got {row}; rows count from 0")
    lists = ("drafts", "p_drafts", "q_drafts", "num_accepted", "next_tokens", "tokens", "texts", "active")
    return replace(
        step,
        **{name: getattr(step, name)[row : row + 1] for name in lists},
        p=step.p[row : row + 1],
        q=step.q[row : row + 1],
    )


def _traced(
    step: SpeculativeStep, written: list[int], decode: Decode, label: Callable[[int], str], rows: int
) -> TracedStep:
    drafts, tokens, stood = step.drafts[0], step.tokens[0], step.num_accepted[0]
    words = added_words(written, drafts, decode, label)
    fates = [_fate(place, stood, len(tokens)) for place in range(len(drafts))]
    traced = zip(words, step.p_drafts[0], step.q_drafts[0], fates, strict=True)
    own = step.next_tokens[0] if len(tokens) > stood else None  # else the text ended among the drafts
    fallen = step.rejected(0) if own is not None else None
    wanted = [token for token in (fallen, own) if token is not None]
    candidates, others = _candidates(step.p, step.q, wanted, label, rows)
    own_words = [] if own is None else added_words([*written, *drafts[:stood]], [own], decode, label)
    return TracedStep(
        drafts=tuple(TracedDraft(*draft) for draft in traced),
        own=own_words[0] if own_words else None,
        candidates=candidates,
        others=others,
    )


def _fate(place: int, stood: int, gained: int) -> Fate:
    if place < min(stood, gained):
        return "accepted"
    return "rejected" if place == stood < gained else "dropped"


def added_words(
    before: Sequence[int], tokens: Sequence[int], decode: Decode, label: Callable[[int], str]
) -> list[TracedToken]:
    """What each token adds to the text, whole characters only."""
    ends = range(len(tokens) + 1)
    texts = [decode([*before, *tokens[:end]]).rstrip(REPLACEMENT) for end in ends]
    added = [after[len(text) :] for text, after in pairwise(texts)]
    return [
        TracedToken(token, label(token), text, special=decode([token]) == "")
        for token, text in zip(tokens, added, strict=True)
    ]


def _candidates(
    p: Float[Tensor, "1 V"],
    q: Float[Tensor, "1 V"],
    wanted: Sequence[int],
    label: Callable[[int], str],
    rows: int,
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Those wanted and those of which either side is surest, sorted by that; and the sum of all others."""
    p, q, after = (side[0].double().cpu() for side in (p, q, residual(p, q)))
    surest = p.maximum(q)
    order = surest.sort(descending=True, stable=True).indices[: rows + len(wanted)].tolist()
    chosen = [*dict.fromkeys([*wanted, *order])][:rows]
    chosen = [token for token in chosen if surest[token] > 0]
    chosen.sort(key=lambda token: (-float(surest[token]), token))
    listed = tuple(
        Candidate(token, label(token), float(p[token]), float(q[token]), float(after[token]))
        for token in chosen
    )
    rest = [max(0.0, float(side.sum() - side[chosen].sum())) for side in (p, q, after)]
    return listed, Candidate(None, f"{len(p) - len(chosen):,} others", *rest)


def _phases(steps: Sequence[SpeculativeStep], traced: Sequence[TracedStep]) -> list[Phase]:
    phases, tokens = [], 0
    for number, (step, shown) in enumerate(zip(steps, traced, strict=True)):
        before = _counts(steps[:number], steps[:number], tokens)
        phases += [Phase("draft", number, drafted, before) for drafted in range(1, len(shown.drafts) + 1)]
        tokens += len(step.tokens[0])
        over = _counts(steps[: number + 1], steps[: number + 1], tokens)
        if shown.drafts:
            judged = _counts(steps[: number + 1], steps[:number], tokens - 1)
            at_verdict = over if shown.own is None else judged
            phases.append(Phase("verdict", number, len(shown.drafts), at_verdict))
        if shown.own is not None:
            phases.append(Phase("target", number, len(shown.drafts), over))
    return phases


def _counts(judged: Sequence[SpeculativeStep], over: Sequence[SpeculativeStep], tokens: int) -> Counts:
    verdicts, num_steps = tally(judged), sum(step.index > 0 for step in over)
    return Counts(
        tokens=tokens,
        steps=num_steps,
        accepted=int(verdicts.accepted),
        judged=int(verdicts.accepted + verdicts.rejected),
        tokens_per_step=tokens_per_step(over) if num_steps else None,
    )
