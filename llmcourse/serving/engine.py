"""The loop around scheduler and runner: one step after the other while there is work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llmcourse.decoding.errors import require
from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.runner import BoundedRunner, OverlappingRunner, Runner
from llmcourse.serving.schedule import Output, Sampled, Schedule
from llmcourse.serving.scheduler import Scheduler


class _Launched(NamedTuple):
    """A step on its way, and what waits for its tokens."""

    schedule: Schedule
    wait: Callable[[], Sampled]


class Engine:
    """Serves requests in steps.

    Not for several threads: whoever serves a network adds and aborts between steps, on the same thread.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        overlap: whether the next step is scheduled and launched before the tokens of the one before are
            here, so that the device never waits for the scheduler. The answers are the same; each token
            is returned by the step after the one that computes it. A request with drafts takes part in every
            other step, since they follow tokens that must be here.

    Raises:
        ValueError: the runner is none, cannot launch steps that overlap, or lacks blocks or slots that the
            scheduler hands out.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, overlap: bool = False):
        kind = type(runner).__name__
        require(isinstance(runner, Runner), "runner", "a Runner", kind, "wrap a function in FunctionRunner")
        able = not overlap or isinstance(runner, OverlappingRunner)
        require(able, "runner", "an OverlappingRunner where steps overlap", kind, "use overlap=False")
        self._bounded = runner if isinstance(runner, BoundedRunner) else None
        if self._bounded:
            pool = scheduler.pool
            self._bounded.check_scheduler(pool.num_blocks, pool.block_size, scheduler.max_running)
        self.scheduler = scheduler
        self.runner = runner
        self.overlap = overlap
        self._before: _Launched | None = None
        self._resolves_first = False

    @property
    def has_work(self) -> bool:
        """Whether a step is still to be run or to be resolved."""
        return self.scheduler.has_work

    def add(self, request: Request) -> RequestState:
        """Puts a request in line; errors as `Scheduler.add`, or ValueError: the runner cannot compute it."""
        if self._bounded:
            self._bounded.check_request(request)
        return self.scheduler.add(request)

    def abort(self, request_id: str) -> RequestState:
        """Ends a request; errors as `Scheduler.abort`."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[Output]:
        """Runs one step, or launches one and waits for the one before.

        If the runner raises, so does this, and the same tokens are computed next time.
        """
        return self._launch_and_resolve() if self.overlap else self._run()

    def stream(self) -> Iterator[Output]:
        """Every token as it comes, until all requests are finished."""
        while self.has_work:
            yield from self.step()

    def _run(self) -> list[Output]:
        schedule = self.scheduler.schedule()
        try:
            sampled = self.runner.run(schedule)
        except BaseException:
            self.scheduler.abandon(schedule)
            raise
        return self.scheduler.postprocess(schedule, sampled)

    def _launch_and_resolve(self) -> list[Output]:
        launched = None if self._resolves_first else self._launch()
        self._resolves_first = False
        before, self._before = self._before, launched
        return self._resolve(before) if before else []

    def _launch(self) -> _Launched | None:
        """Begins a step; None where nothing can be computed before the step on its way is resolved."""
        schedule = self.scheduler.schedule()
        if not schedule.chunks:
            self.scheduler.abandon(schedule)
            return None
        try:
            wait = self.runner.launch(schedule)
        except BaseException:
            self.scheduler.abandon(schedule)
            # What was launched in part may have sampled over the tokens that the next step would take.
            self._resolves_first = self._before is not None
            raise
        self.scheduler.advance(schedule)
        return _Launched(schedule, wait)

    def _resolve(self, step: _Launched) -> list[Output]:
        try:
            return self.scheduler.resolve(step.schedule, step.wait())
        except BaseException:
            self.scheduler.abandon(step.schedule)  # and with it the step that was launched after it
            self._before = None
            raise
