"""What one step computes, a range of tokens of each request that takes part, and what it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from llmcourse.serving.request import FinishReason, RequestState
from llmcourse.serving.speculation import Drafts

# By request id: the token of a chunk that samples, those of one with drafts, or why the request failed.
Sampled = Mapping[str, int | Sequence[int] | Exception]
NONE: Mapping[str, object] = MappingProxyType({})


class Chunk(NamedTuple):
    """Tokens start … stop − 1 of one request; where it speculates, the last of them are its drafts.

    Attributes:
        state: the request. All its tokens before `start` are in the cache; the keys and values of these
            are written into its blocks.
        samples: whether the last token of its text is among them, so that the next one is sampled.
    """

    state: RequestState
    start: int
    stop: int
    samples: bool

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def decodes(self) -> bool:
        """Whether it is one more token of an answer, without drafts, not a piece of a prompt."""
        return self.num_tokens == 1 and self.start >= self.state.num_prompt


class Schedule(NamedTuple):
    """One step.

    Attributes:
        number: 0 for the first step.
        chunks: at most one a request.
        preempted: requests whose blocks were taken for it; they wait again.
        drafts: by id, the tokens computed after the text of a request. It takes part in no other step before
            this one is resolved; where there are none, so that its drafter can be asked.
        failed: by id, why there are none for a request whose drafter failed; it ends with this step.
    """

    number: int
    chunks: tuple[Chunk, ...]
    preempted: tuple[RequestState, ...] = ()
    drafts: Mapping[str, Drafts] = NONE
    failed: Mapping[str, Exception] = NONE

    @property
    def num_tokens(self) -> int:
        """How many tokens are computed, drafts included."""
        return sum(stop - start for _, start, stop, _ in self.chunks)

    @property
    def num_drafts(self) -> int:
        """How many of them are drafts."""
        return sum(len(drafts.tokens) for drafts in self.drafts.values())


class Output(NamedTuple):
    """A token that a step brought to one request, which may get several where it speculates.

    Attributes:
        token: sampled; None where the request failed.
        finish_reason: if that ended it.
    """

    state: RequestState
    token: int | None
    finish_reason: FinishReason | None
