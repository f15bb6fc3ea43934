"""Continuous service in steps: schedule → run → postprocess.

`schedule` says which tokens of which requests are computed, a runner computes them and samples, and
`postprocess` takes the samples in. That has two halves, which may be called apart, so that the scheduler
works while the device does: `advance` when a step was launched, `resolve` when its tokens are here.

    schedule 0, advance 0, schedule 1, advance 1, resolve 0, schedule 2, advance 2, resolve 1, …

An answer that turns out to end with a token of step n has one token too many in step n + 1, which is
dropped. The answers are the same.

Blocks are taken as answers grow; where none is left, the least urgent running request is preempted: its
blocks are freed, and it waits to be computed again, its answer so far as part of its prompt (recomputation;
Kwon et al. 2023, section 4.5).

Nobody waits for ever. With L the largest `max_length` and S slots, a request that A others go before
(by `urgency`: of those that are unfinished when it comes, and fewer than priority · ageing of those that
come later) is finished within (2A + 1) · (S + 1) · L steps:

- nobody preempts the most urgent running request, and every step computes some of its tokens;
- nobody is admitted before a more urgent request that waits, so whoever is first in line waits at most
  for the S that run, one after the other, and then runs to its end: S + 1 requests of L steps each;
- who is first in line changes when the first ends or when a more urgent one comes: 2A times at most.

Where steps overlap, a request keeps its slot for one step more, until its end is known: L + 1 in place of L.

A request that speculates may gain several tokens in a step, or no more than one. Where steps overlap, how far
it has come is not known before the step is resolved, and no draft can follow a token that nobody knows: so it
sits out the step that is scheduled meanwhile, and needs 2 L steps at most. The others never wait for it;
where all have drafts, steps are taken in turn. One without drafts takes part in nearly every step.
"""

from __future__ import annotations

from collections import deque

from llmcourse.decoding.errors import require, require_integer
from llmcourse.serving.batch import Batch
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.in_flight import StepInFlight
from llmcourse.serving.policies import Policy
from llmcourse.serving.request import FinishReason, Request, RequestState
from llmcourse.serving.schedule import Output, Sampled, Schedule
from llmcourse.serving.step_plan import StepPlan
from llmcourse.serving.urgency import rank


class NeverFits(ValueError):
    """A request that would not fit if it had all blocks for itself."""


class DuplicateId(ValueError):
    """A request under the id of one that is not finished."""


class UnknownRequest(LookupError):
    """No unfinished request has this id."""


class StepOrder(RuntimeError):
    """Steps that are not scheduled, advanced and resolved in turn."""


class Scheduler:
    """Decides what every step computes.

    Args:
        pool: the blocks; nobody else takes any.
        policy: how a step is chosen.
        max_running: slots, the most requests in one step.
        ageing: how many later arrivals one level of priority is worth, see `urgency`.

    Raises:
        ValueError: a number out of its range, no policy, or more slots than the policy serves in one step.
    """

    def __init__(self, pool: BlockPool, policy: Policy, *, max_running: int = 256, ageing: int = 64):
        require_integer(1, "max_running", max_running, "use 1 to serve one after the other")
        require_integer(0, "ageing", ageing, "use 0 to serve in the order of arrival")
        is_policy = isinstance(policy, Policy) and not isinstance(policy, type)
        require(is_policy, "policy", "a Policy", repr(policy), "use ChunkedPrefill()")
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
        self._scheduled: Schedule | None = None  # and not launched yet
        self._in_flight: deque[StepInFlight] = deque()  # launched and not resolved: two at most

    @property
    def num_waiting(self) -> int:
        return len(self._batch.waiting)

    @property
    def num_running(self) -> int:
        return len(self._batch.running)

    @property
    def max_running(self) -> int:
        """Slots, of which each running request has one."""
        return self._batch.num_slots

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished, or any launched step that computes something unresolved."""
        return bool(self._states) or any(step.schedule.chunks for step in self._in_flight)

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
        """What to compute next; without chunks only where there is no work before a step is resolved.

        Raises:
            StepOrder: the step before has been neither advanced nor postprocessed, or two are unresolved.
        """
        if self._scheduled is not None:
            raise StepOrder(
                f"step {self._scheduled.number} must be postprocessed before the next is scheduled, it was "
                "not; call postprocess with what it sampled, advance if it was launched, or abandon"
            )
        if len(self._in_flight) == 2:
            raise StepOrder(
                f"step {self._in_flight[0].schedule.number} must be resolved before a third is scheduled, "
                "it was not; call resolve with what it sampled, or abandon"
            )
        plan = StepPlan(self._batch)
        self.policy.plan(plan)
        self._scheduled = Schedule(
            self._num_steps, plan.chunks(), tuple(plan.preempted), plan.drafts, plan.failed
        )
        self._num_steps += 1
        return self._scheduled

    def postprocess(self, schedule: Schedule, sampled: Sampled) -> list[Output]:
        """Takes in a step that has been run: `advance` and `resolve`, whose arguments and errors it has."""
        if schedule is self._scheduled and not self._in_flight:
            self.advance(schedule)
        return self.resolve(schedule, sampled)

    def advance(self, schedule: Schedule) -> None:
        """Moves the requests of a step on that was launched, so that the next can be scheduled.

        Raises:
            StepOrder: another step than the last, or the same one twice.
        """
        if schedule is not self._scheduled:
            raise _not_in_turn(schedule, "the one scheduled last")
        self._scheduled = None
        self._in_flight.append(StepInFlight(schedule))

    def resolve(self, schedule: Schedule, sampled: Sampled) -> list[Output]:
        """Takes in what the step sampled.

        Args:
            schedule: of the launched steps the earliest.
            sampled: by id, a token for each chunk that samples (several if it has drafts), or an exception
                for a request that failed; it alone ends, and keeps the exception as its `error`.

        Raises:
            StepOrder: another step, or the same one twice.
            ValueError: a token is missing; the step is not taken in then.
        """
        if not self._in_flight or schedule is not self._in_flight[0].schedule:
            raise _not_in_turn(schedule, "the earliest step in flight")
        outputs = self._in_flight[0].resolve(sampled, self.pool, self._finish)
        self._in_flight.popleft()
        return outputs

    def abandon(self, schedule: Schedule) -> None:
        """Forgets a step that could not be run as a whole, and those after it, which build on it.

        Their tokens are scheduled again.

        Raises:
            StepOrder: a step that is neither scheduled nor in flight.
        """
        if schedule is not self._scheduled:
            if not any(schedule is step.schedule for step in self._in_flight):
                raise _not_in_turn(schedule, "a step in flight")
            while self._in_flight[-1].schedule is not schedule:
                self._in_flight.pop().undo()
            self._in_flight.pop().undo()
        self._scheduled = None

    def _finish(self, state: RequestState, reason: FinishReason) -> None:
        self._batch.finish(state, reason)
        del self._states[state.id]


def _not_in_turn(schedule: Schedule, expected: str) -> StepOrder:
    return StepOrder(f"schedule must be {expected}, got step {schedule.number}; pass each step once")
