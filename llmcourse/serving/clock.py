"""The scheduler on a virtual clock: hours of service in a second, with nothing to compute.

The scheduler is the real one; only the time that a step takes comes from a cost model in place of a
machine, and its tokens from a function in place of a model. So the policies are compared on the
decisions that they really take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from llmcourse.decoding.errors import require
from llmcourse.serving.engine import Engine
from llmcourse.serving.request import FinishReason, Request, RequestState
from llmcourse.serving.runner import FunctionRunner, Runner
from llmcourse.serving.schedule import Chunk, Output, Schedule
from llmcourse.serving.scheduler import NeverFits, Scheduler

Cost = Callable[[Schedule], float]


def one_second(schedule: Schedule) -> float:
    """The lecture's cost model: every step takes as long as any other."""
    return 1.0


class Cell(NamedTuple):
    """What one slot did in one step.

    Attributes:
        decodes: whether it is one more token of an answer, perhaps with drafts, not a piece of a prompt.
    """

    slot: int
    id: str
    num_tokens: int
    sampled: bool
    ended: bool
    decodes: bool


class ClockStep(NamedTuple):
    """One step on the clock."""

    start_s: float
    end_s: float
    cells: tuple[Cell, ...]
    num_preempted: int
    num_waiting: int

    @property
    def num_tokens(self) -> int:
        return sum(cell.num_tokens for cell in self.cells)


@dataclass(slots=True)
class Timeline:
    """When one request got what.

    Attributes:
        token_s: the time of each token of the answer.
        finish_reason: None where it was refused.
        refusal: why, if it was.
        num_drafted, num_accepted: drafts computed for it, and those that its answer holds.
    """

    request: Request
    token_s: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_reused: int = 0
    refusal: str | None = None
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def answered(self) -> bool:
        """Whether it came to its end: neither refused, nor failed, nor cancelled."""
        return self.finish_reason in ("stop", "length")

    def take(self, output: Output, at_s: float) -> None:
        """What a step that ended at this time brought to the request."""
        self.finish_reason = output.finish_reason
        if output.token is not None:
            self.token_s.append(at_s)


@dataclass(frozen=True)
class Trace:
    """All that happened: a timeline for each request, in the order given, and every step."""

    timelines: tuple[Timeline, ...]
    steps: tuple[ClockStep, ...]

    @property
    def end_s(self) -> float:
        return self.steps[-1].end_s if self.steps else 0.0


def simulate(
    requests: Iterable[Request],
    scheduler: Scheduler,
    cost: Cost = one_second,
    runner: Runner | None = None,
) -> Trace:
    """Serves requests as they arrive, on a clock that starts at 0.

    Args:
        requests: in any order; each is added at the first step that begins at its `arrival_s` or later.
        scheduler: one without work.
        cost: seconds that a step takes.
        runner: gives the tokens; answers as long as allowed if None.

    Raises:
        ValueError: the scheduler has work already, two requests have one id, or the cost of a step is no
            finite time above 0.
    """
    require(not scheduler.has_work, "scheduler", "one without work", "one with requests", "make a new one")
    runner = runner or FunctionRunner(_any_token)
    timelines = empty_timelines(requests)
    arriving = deque(sorted(timelines.values(), key=lambda timeline: timeline.request.arrival_s))
    states: list[RequestState] = []
    steps: list[ClockStep] = []
    now = 0.0
    while arriving or scheduler.has_work:
        if not scheduler.has_work:
            now = max(now, arriving[0].request.arrival_s)
        while arriving and arriving[0].request.arrival_s <= now:
            admit(arriving.popleft(), scheduler, states)
        if scheduler.has_work:
            steps.append(_step(scheduler, runner, cost, now, timelines))
            now = steps[-1].end_s
    return trace_of(timelines, states, steps)


def empty_timelines(requests: Iterable[Request]) -> dict[str, Timeline]:
    """One for each request, by its id.

    Raises:
        ValueError: two have one id.
    """
    timelines: dict[str, Timeline] = {}
    for request in requests:
        unique = request.id not in timelines
        require(unique, "requests", "of different ids", f"{request.id!r} twice", "number them")
        timelines[request.id] = Timeline(request)
    return timelines


def _any_token(state: RequestState) -> int:
    return 1


def admit(timeline: Timeline, served: Scheduler | Engine, states: list[RequestState]) -> None:
    """Adds a request that has come; one that never fits is refused, and the rest is served."""
    try:
        states.append(served.add(timeline.request))
    except NeverFits as error:
        timeline.refusal = str(error)


def trace_of(
    timelines: dict[str, Timeline], states: Iterable[RequestState], steps: Iterable[ClockStep]
) -> Trace:
    """All of it, when every request has come to its end."""
    for state in states:
        timeline = timelines[state.id]
        timeline.num_preemptions, timeline.num_reused = state.num_preemptions, state.num_reused
        timeline.num_drafted, timeline.num_accepted = state.num_drafted, state.num_accepted
    return Trace(tuple(timelines.values()), tuple(steps))


def _step(
    scheduler: Scheduler, runner: Runner, cost: Cost, now: float, timelines: dict[str, Timeline]
) -> ClockStep:
    """Runs one step that begins now, and writes down when its tokens came."""
    schedule = scheduler.schedule()
    time_s = cost(schedule)
    require(0 < time_s < math.inf, "cost", "positive and finite", time_s, "let each step take some time")
    end_s = now + time_s
    slots = [chunk.state.slot for chunk in schedule.chunks]  # which postprocess takes from those that end
    ended = set()
    for output in scheduler.postprocess(schedule, runner.run(schedule)):
        timelines[output.state.id].take(output, end_s)
        if output.finish_reason:
            ended.add(output.state.id)
    cells = tuple(
        _cell(slot, chunk, schedule, chunk.state.id in ended)
        for slot, chunk in zip(slots, schedule.chunks, strict=True)
    )
    return ClockStep(now, end_s, cells, len(schedule.preempted), scheduler.num_waiting)


def _cell(slot: int, chunk: Chunk, schedule: Schedule, ended: bool) -> Cell:
    drafts = schedule.drafts.get(chunk.state.id)
    text = chunk if drafts is None else chunk._replace(stop=chunk.stop - len(drafts.tokens))
    return Cell(slot, chunk.state.id, chunk.num_tokens, chunk.samples, ended, text.decodes)
