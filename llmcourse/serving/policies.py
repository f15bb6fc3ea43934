"""Three ways to choose what a step computes, from the one that wastes most.

Traditional batching runs a batch to its end before it begins another: a finished row stays empty.
Continuous batching (Yu et al. 2022, Orca) chooses anew at every step, so a finished row is filled at
once; but a whole prompt in one step makes all others wait for it. Chunked prefill (Agrawal et al. 2024,
Sarathi-Serve; the lecture's dynamic splitting) cuts prompts, so that no step exceeds a budget of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llmcourse.decoding.errors import require_integer
from llmcourse.serving.request import RequestState


@runtime_checkable
class Plan(Protocol):
    """A step in the making, as a policy sees it."""

    @property
    def num_tokens(self) -> int:
        """Planned so far, drafts included."""
        ...

    @property
    def num_running(self) -> int:
        """How many requests have a slot, those included whose last token is on its way."""
        ...

    def running(self) -> Iterator[RequestState]:
        """The running requests, the most urgent first; those preempted meanwhile are left out."""
        ...

    def admit(self) -> RequestState | None:
        """Gives the most urgent waiting request a slot and blocks; None where it has to wait."""
        ...

    def decode(self) -> list[RequestState]:
        """Plans the next token of every running request that has only one to compute.

        Returns:
            The others, the most urgent first; they may be preempted for those after them.
        """
        ...

    def compute(self, state: RequestState, num_tokens: int) -> None:
        """Plans the next tokens of a running request.

        Blocks that it lacks are taken from the least urgent requests; if it is the least urgent itself,
        it is preempted and nothing is planned.

        Raises:
            ValueError: it does not run, is planned already, or has fewer tokens to compute.
        """
        ...

    def speculate(self, num_tokens: int | None = None) -> None:
        """Adds drafts to what is planned of requests that speculate, the most urgent first.

        Drafts are a gamble, and so come last: they never take what a prompt or an answer could use. Of each
        request they are clamped to the blocks that are free (none in a step that preempts) and to what it
        may still gain, less the token that the model adds.

        Args:
            num_tokens: the most drafts together; None for any number.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """Chooses what a step computes.

    So that every request comes to its end, a plan admits while it can if nothing runs, and computes at
    least one token of the most urgent running request.
    """

    @property
    def reserves(self) -> bool:
        """Whether a request is admitted only with blocks for the longest answer that it may get."""
        ...

    @property
    def most_running(self) -> int | None:
        """Of how many running requests each can take part in a step; None for any number."""
        ...

    def plan(self, step: Plan) -> None: ...


@dataclass(frozen=True)
class TraditionalBatching:
    """A batch begins when the one before is done; its memory is set aside from the beginning."""

    reserves = True
    most_running = None

    def plan(self, step: Plan) -> None:
        if not step.num_running:
            while step.admit():
                pass
        for state in step.running():
            step.compute(state, state.num_pending)
        step.speculate()


@dataclass(frozen=True)
class ContinuousBatching:
    """One token for every running request, and whole prompts of new ones into the free slots.

    Attributes:
        token_budget: no prompt is added to a step that has as many tokens; the last one may exceed it. Drafts
            get what is left.

    Raises:
        ValueError: a budget below 1.
    """

    token_budget: int = 8192
    reserves = False
    most_running = None

    def __post_init__(self):
        require_integer(1, "token_budget", self.token_budget, "use 8192")

    def plan(self, step: Plan) -> None:
        for state in step.decode():
            if state.status == "running":  # it may have been preempted
                step.compute(state, state.num_pending)
        while step.num_tokens < self.token_budget and (state := step.admit()):
            step.compute(state, state.num_pending)
        step.speculate(self.token_budget - step.num_tokens)


@dataclass(frozen=True)
class ChunkedPrefill:
    """One token for every answer first; pieces of prompts fill what is left of the budget, then drafts.

    Attributes:
        token_budget: the most tokens of a step. Small ones keep the gaps between tokens short, large
            ones bring the first token earlier and read the weights less often.

    Raises:
        ValueError: a budget below 1.
    """

    token_budget: int = 512
    reserves = False

    def __post_init__(self):
        require_integer(1, "token_budget", self.token_budget, "use 512")

    @property
    def most_running(self) -> int:
        return self.token_budget

    def plan(self, step: Plan) -> None:
        for state in step.decode():
            if state.status == "running":  # it may have been preempted
                self._fill(step, state)
        while step.num_tokens < self.token_budget and (state := step.admit()):
            self._fill(step, state)
        step.speculate(self.token_budget - step.num_tokens)

    def _fill(self, step: Plan, state: RequestState) -> None:
        left = self.token_budget - step.num_tokens
        if left:
            step.compute(state, min(left, state.num_pending))
