"""What runs a step: the one thing that the scheduler asks of a model.

A runner that returns only when the tokens are there leaves the device idle while the scheduler thinks.
One that can `launch` a step and wait for its tokens later lets the next be scheduled meanwhile (vLLM's
asynchronous scheduling; SGLang's overlap scheduler).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.schedule import Sampled, Schedule


@runtime_checkable
class Runner(Protocol):
    """Computes the chunks of a step, and samples where they reach the last token."""

    def run(self, schedule: Schedule) -> Sampled:
        """By request id, the next token for each chunk that samples.

        For each chunk the runner computes the tokens `state.tokens[start:stop]`, writes their keys and
        values into the slots that `state.blocks` gives them, and lets them look at all before them, which
        other steps, or other requests with the same beginning, have written. `state.slot` is a row below
        `max_running` that stays the same while the request runs.

        The sample is drawn with `state.request.params` from a generator that depends on the request's
        seed and on the position `chunk.stop` alone. A request that fails gives its exception in place of
        a token. What is raised fails the step as a whole.

        A chunk whose request has tokens in `schedule.drafts` ends with these, behind `state.tokens`. It gives
        a list: the drafts that stand and one token after them (`speculation` says which stand).
        """
        ...


@runtime_checkable
class OverlappingRunner(Runner, Protocol):
    """One that can begin a step before the tokens of the step before it have arrived."""

    def launch(self, schedule: Schedule) -> Callable[[], Sampled]:
        """Begins a step and returns at once; what is returned waits for its tokens. `run` is both.

        Steps run on the device in the order in which they are launched, and at most two are under way.
        All that is needed of a state (`tokens`, `blocks`, `slot`) is read before this returns: afterwards
        the scheduler changes it. A chunk whose last token `state.tokens[stop - 1]` is `PENDING` has this
        one token, which the step launched before sampled for the same `state.slot`; the runner takes it
        from there, on the device. What it samples for a request that fails must be a token too, since
        the next step may compute it before anybody knows.

        What is returned is called once, or never where an earlier step failed. It raises where the step
        fails as a whole; so does `launch`, and then the step before is waited for before the next begins.
        """
        ...


@runtime_checkable
class BoundedRunner(Runner, Protocol):
    """One that has memory for so much and no more: an `Engine` asks it before anything is scheduled.

    Later it would be too late. A device writes where it is told to, and a block or a token that is not there
    spoils another request, or all of them.
    """

    def check_scheduler(self, num_blocks: int, block_size: int, max_running: int) -> None:
        """Raises ValueError unless it has what a scheduler of these sizes hands out."""
        ...

    def check_request(self, request: Request) -> None:
        """Raises ValueError for a request that it could not compute."""
        ...


@dataclass(frozen=True)
class FunctionRunner:
    """A stand-in for a model: the next token is a function of the request.

    Attributes:
        next_token: should depend on the request and its tokens so far alone, as a model's does. So it
            needs them all, and no step can begin before the one before is done: it does not overlap.
    """

    next_token: Callable[[RequestState], int]

    def run(self, schedule: Schedule) -> dict[str, int | list[int]]:
        states = (chunk.state for chunk in schedule.chunks if chunk.samples)
        return {
            state.id: self._gained(state, schedule.drafts[state.id].tokens)
            if state.id in schedule.drafts
            else self.next_token(state)
            for state in states
        }

    def _gained(self, state: RequestState, drafts: Sequence[int]) -> list[int]:
        """Tokens of the function, one after the other, while the drafts are these."""
        ahead = copy(state)
        ahead.tokens = list(state.tokens)
        for draft in (*drafts, None):
            ahead.tokens.append(self.next_token(ahead))
            if ahead.tokens[-1] != draft:
                break
        return ahead.tokens[len(state.tokens) :]
