"""What one step computes, a range of tokens of each request that takes part, and what it brings."""

from __future__ import annotations

from typing import NamedTuple

from llmcourse.serving.request import FinishReason, RequestState


class Chunk(NamedTuple):
    """Tokens start … stop − 1 of one request.

    Attributes:
        state: the request. All its tokens before `start` are in the cache; the keys and values of these
            are written into its blocks.
        samples: whether the last of its tokens is among them, so that the next one is sampled.
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
        """Whether it is one more token of an answer, not a piece of a prompt."""
        return self.num_tokens == 1 and self.start >= self.state.num_prompt


class Schedule(NamedTuple):
    """One step.

    Attributes:
        number: 0 for the first step.
        chunks: at most one a request.
        preempted: requests whose blocks were taken for it; they wait again.
    """

    number: int
    chunks: tuple[Chunk, ...]
    preempted: tuple[RequestState, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens are computed."""
        return sum(stop - start for _, start, stop, _ in self.chunks)


class Output(NamedTuple):
    """What a step brought to one request.

    Attributes:
        token: sampled; None where the request failed.
        finish_reason: if that ended it.
    """

    state: RequestState
    token: int | None
    finish_reason: FinishReason | None
