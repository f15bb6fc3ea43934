"""What runs a step: the one thing that the scheduler asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llmcourse.serving.request import RequestState
from llmcourse.serving.schedule import Schedule


@runtime_checkable
class Runner(Protocol):
    """Computes the chunks of a step, and samples where they reach the last token."""

    def run(self, schedule: Schedule) -> Mapping[str, int | Exception]:
        """By request id, the next token for each chunk that samples.

        For each chunk the runner computes the tokens `state.tokens[start:stop]`, writes their keys and
        values into the slots that `state.blocks` gives them, and lets them look at all before them, which
        other steps, or other requests with the same beginning, have written. `state.slot` is a row below
        `max_running` that stays the same while the request runs.

        The sample is drawn with `state.request.params` from a generator that depends on the request's
        seed and on the position `chunk.stop` alone. A request that fails gives its exception in place of
        a token. What is raised fails the step as a whole.
        """
        ...


@dataclass(frozen=True)
class FunctionRunner:
    """A stand-in for a model: the next token is a function of the request.

    Attributes:
        next_token: should depend on the request and its tokens so far alone, as a model's does.
    """

    next_token: Callable[[RequestState], int]

    def run(self, schedule: Schedule) -> dict[str, int]:
        return {chunk.state.id: self.next_token(chunk.state) for chunk in schedule.chunks if chunk.samples}
