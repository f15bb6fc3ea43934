"""The loop around scheduler and runner: one step after the other while there is work."""

from __future__ import annotations

from collections.abc import Iterator

from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.runner import Runner
from llmcourse.serving.scheduler import Output, Scheduler


class Engine:
    """Serves requests in steps.

    Not for several threads: whoever serves a network adds and aborts between steps, on the same thread.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner):
        self.scheduler = scheduler
        self.runner = runner

    def add(self, request: Request) -> RequestState:
        """Puts a request in line; errors as `Scheduler.add`."""
        return self.scheduler.add(request)

    def abort(self, request_id: str) -> RequestState:
        """Ends a request; errors as `Scheduler.abort`."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[Output]:
        """Runs one step. If the runner raises, so does this, and the same tokens are computed next time."""
        schedule = self.scheduler.schedule()
        try:
            sampled = self.runner.run(schedule)
        except BaseException:
            self.scheduler.abandon(schedule)
            raise
        return self.scheduler.postprocess(schedule, sampled)

    def stream(self) -> Iterator[Output]:
        """Every token as it comes, until all requests are finished."""
        while self.scheduler.has_work:
            yield from self.step()
