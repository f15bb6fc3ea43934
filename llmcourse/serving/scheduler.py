"""Continuous service in steps: schedule → run → postprocess.

`schedule` says which tokens of which requests are computed, a runner computes them and samples, and
`postprocess` takes the samples in. Blocks are taken as answers grow; where none is left, the least urgent
running request is preempted: its blocks are freed, and it waits to be computed again, its answer so far
as part of its prompt (recomputation; Kwon et al. 2023, section 4.5).

Nobody waits for ever. With L the largest `max_length` and S slots, a request that A others go before
(by `urgency`: of those that are unfinished when it comes, and fewer than priority · ageing of those that
come later) is finished within (2A + 1) · (S + 1) · L steps:

- nobody preempts the most urgent running request, and every step computes some of its tokens;
- nobody is admitted before a more urgent request that waits, so whoever is first in line waits at most
  for the S that run, one after the other, and then runs to its end: S + 1 requests of L steps each;
- who is first in line changes when the first ends or when a more urgent one comes: 2A times at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.serving.batch import Batch
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.policies import Policy
from llmcourse.serving.request import FinishReason, Request, RequestState
from llmcourse.serving.schedule import Chunk, Schedule
from llmcourse.serving.urgency import rank


class NeverFits(ValueError):
    """A request that would not fit if it had all blocks for itself."""


class DuplicateId(ValueError):
    """A request under the id of one that is not finished."""


class UnknownRequest(LookupError):
    """No unfinished request has this id."""


class StepOrder(RuntimeError):
    """Steps that are not scheduled and postprocessed in turn."""


class Output(NamedTuple):
    """What a step brought to one request.

    Attributes:
        token: sampled; None where the request failed.
        finish_reason: if that ended it.
    """

    state: RequestState
    token: int | None
    finish_reason: FinishReason | None


class Scheduler:
    """Decides what every step computes.

    Args:
        pool: the blocks; nobody else takes any.
        policy: how a step is chosen.
        max_running: slots, the most requests in one step.
        ageing: how many later arrivals one level of priority is worth, see `urgency`.

    Raises:
        ValueError: a number out of its range, or more slots than the policy serves in one step.
    """

    def __init__(self, pool: BlockPool, policy: Policy, *, max_running: int = 256, ageing: int = 64):
        require_integer(1, "max_running", max_running, "use 1 to serve one after the other")
        require_integer(0, "ageing", ageing, "use 0 to serve in the order of arrival")
        most = policy.most_running
        require(
            most is None or max_running <= most,
            "max_running",
            f"at most {most}, the token budget",
            max_running,
            "every running request takes a token of it",
        )
        self.pool = pool
        self.policy = policy
        self.ageing = ageing
        self._batch = Batch(pool, max_running, policy.reserves)
        self._states: dict[str, RequestState] = {}
        self._num_added = 0
        self._num_steps = 0
        self._in_flight: Schedule | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._batch.waiting)

    @property
    def num_running(self) -> int:
        return len(self._batch.running)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._states)

    def add(self, request: Request) -> RequestState:
        """Puts a request in line; what is returned tells from then on how far it has come.

        Raises:
            NeverFits: it needs more blocks than there are.
            DuplicateId: an unfinished request has its id.
        """
        needed = self.pool.blocks_for(request.max_length)
        if needed > self.pool.num_blocks:
            raise NeverFits(
                f"request {request.id!r} needs {needed} blocks for a prompt of {len(request.prompt)} tokens "
                f"and max_tokens {request.max_tokens}, the pool has {self.pool.num_blocks} of "
                f"{self.pool.block_size} tokens; shorten the prompt, lower max_tokens or enlarge the pool"
            )
        if request.id in self._states:
            raise DuplicateId(
                f"id must be one that no unfinished request has, got {request.id!r}; choose another"
            )
        state = RequestState(request, rank(self._num_added, request.priority, self.ageing))
        self._num_added += 1
        self._states[request.id] = state
        self._batch.waiting.add(state)
        return state

    def abort(self, request_id: str) -> RequestState:
        """Ends a request at once, also during a step: what that samples for it is dropped.

        Raises:
            UnknownRequest: no unfinished request has this id.
        """
        if request_id not in self._states:
            raise UnknownRequest(
                f"request_id must be that of an unfinished request, got {request_id!r}; it may be finished"
            )
        state = self._states[request_id]
        self._finish(state, "abort")
        return state

    def schedule(self) -> Schedule:
        """What to compute next; without chunks only where there is no work.

        Raises:
            StepOrder: the step before has not been postprocessed.
        """
        if self._in_flight is not None:
            raise StepOrder(
                f"step {self._in_flight.number} must be postprocessed before the next is scheduled, "
                "it was not; call postprocess with what it sampled, or abandon"
            )
        step = _Step(self._batch)
        self.policy.plan(step)
        self._in_flight = Schedule(self._num_steps, step.chunks(), tuple(step.preempted))
        self._num_steps += 1
        return self._in_flight

    def postprocess(self, schedule: Schedule, sampled: Mapping[str, int | Exception]) -> list[Output]:
        """Takes in what the step sampled.

        Args:
            schedule: what `schedule` returned last.
            sampled: by id, a token for each chunk that samples, or an exception for a request that
                failed; it alone ends, and keeps the exception as its `error`.

        Raises:
            StepOrder: another step than the last, or the same one twice.
            ValueError: a token is missing; the step is not taken in then.
        """
        self._check_order(schedule)
        chunks = [chunk for chunk in schedule.chunks if chunk.state.status == "running"]
        missing = [chunk.state.id for chunk in chunks if chunk.samples and chunk.state.id not in sampled]
        require(
            not missing, "sampled", "a token for each chunk that samples", f"none for {missing}", "run it"
        )
        self._in_flight = None
        outputs = [self._take_in(chunk, sampled.get(chunk.state.id)) for chunk in chunks]
        return [output for output in outputs if output is not None]

    def abandon(self, schedule: Schedule) -> None:
        """Forgets a step that could not be run as a whole; its tokens are scheduled again.

        Raises:
            StepOrder: another step than the last.
        """
        self._check_order(schedule)
        self._in_flight = None

    def _check_order(self, schedule: Schedule) -> None:
        if schedule is not self._in_flight:
            raise StepOrder(
                f"schedule must be the step in flight, got step {schedule.number}; pass each step once"
            )

    def _take_in(self, chunk: Chunk, sampled: int | Exception | None) -> Output | None:
        state = chunk.state
        if isinstance(sampled, Exception):
            state.error = sampled
            self._finish(state, "error")
            return Output(state, None, "error")
        size = self.pool.block_size
        if chunk.stop // size > chunk.start // size:
            self.pool.register(state.blocks, state.tokens, chunk.start // size, chunk.stop // size)
        state.num_computed = chunk.stop
        if not chunk.samples:
            return None
        state.tokens.append(sampled)
        if reason := state.ending():
            self._finish(state, reason)
        return Output(state, sampled, reason)

    def _finish(self, state: RequestState, reason: FinishReason) -> None:
        self._batch.finish(state, reason)
        del self._states[state.id]


class _Step:
    """A step in the making (`policies.Plan`)."""

    def __init__(self, batch: Batch):
        self.num_tokens = 0
        self.preempted: list[RequestState] = []
        self._batch = batch
        self._chunks: dict[RequestState, Chunk] = {}

    def running(self) -> Iterator[RequestState]:
        return (state for state in self._batch.running if state.status == "running")

    def admit(self) -> RequestState | None:
        # Where blocks were just taken from one request, none are given to another.
        return None if self.preempted else self._batch.admit()

    def compute(self, state: RequestState, num_tokens: int) -> None:
        runs = state.status == "running" and state not in self._chunks
        if not runs or not 1 <= num_tokens <= state.num_pending:
            self._refuse(state, num_tokens)
        stop = state.num_computed + num_tokens
        for victim in self._batch.extend(state, stop):
            self.preempted.append(victim)
            if chunk := self._chunks.pop(victim, None):
                self.num_tokens -= chunk.num_tokens
        if state.status == "running":
            self._chunks[state] = Chunk(state, state.num_computed, stop, stop == len(state.tokens))
            self.num_tokens += num_tokens

    def _refuse(self, state: RequestState, num_tokens: int) -> NoReturn:
        """Says what a policy planned wrongly."""
        allowed = "one that runs and is not planned yet"
        got = f"{state.id!r}, which is {'planned' if state in self._chunks else state.status}"
        require(
            state.status == "running" and state not in self._chunks, "state", allowed, got, "leave it out"
        )
        allowed = f"in [1, {state.num_pending}], the pending tokens of {state.id!r}"
        require(False, "num_tokens", allowed, num_tokens, "plan these")

    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self._chunks.values())
