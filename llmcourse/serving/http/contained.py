"""A step that fails takes down the requests in it, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmcourse.serving.request import Request
from llmcourse.serving.runner import BoundedRunner, OverlappingRunner, Runner
from llmcourse.serving.schedule import Sampled, Schedule

LOG = logging.getLogger(__name__)


class ContainedRunner:
    """A runner whose steps do not raise: what another one raises is the error of each request in the step.

    Computing the same again, as an `Engine` would, may raise again, and clients would wait for ever.
    """

    def __init__(self, runner: Runner):
        self._runner = runner

    def run(self, schedule: Schedule) -> Sampled:
        return _contained(schedule, lambda: self._runner.run(schedule))

    def check_scheduler(self, num_blocks: int, block_size: int, max_running: int) -> None:
        if isinstance(self._runner, BoundedRunner):
            self._runner.check_scheduler(num_blocks, block_size, max_running)

    def check_request(self, request: Request) -> None:
        if isinstance(self._runner, BoundedRunner):
            self._runner.check_request(request)


class ContainedOverlappingRunner(ContainedRunner):
    """The same for a runner that begins a step and is waited for later.

    The step after one that could not be launched may be scheduled before anybody knows. Whoever was in both
    is left out of it: its last token, which the runner would take up, was never sampled.
    """

    def __init__(self, runner: OverlappingRunner):
        super().__init__(runner)
        self._failed: dict[str, Exception] = {}  # in the launch before

    def launch(self, schedule: Schedule) -> Callable[[], Sampled]:
        lost = {c.state.id: self._failed[c.state.id] for c in schedule.chunks if c.state.id in self._failed}
        self._failed = {}
        left = schedule._replace(chunks=tuple(c for c in schedule.chunks if c.state.id not in lost))
        try:
            wait = self._runner.launch(left)
        except Exception as error:
            self._failed = _all_failed(left, error)
            both = self._failed | lost
            return lambda: both
        return lambda: {**_contained(left, wait), **lost}


def contained(runner: Runner) -> ContainedRunner:
    """The runner with its failures contained."""
    overlaps = isinstance(runner, OverlappingRunner)
    return ContainedOverlappingRunner(runner) if overlaps else ContainedRunner(runner)


def _contained(schedule: Schedule, sample: Callable[[], Sampled]) -> Sampled:
    try:
        return sample()
    except Exception as error:
        return _all_failed(schedule, error)


def _all_failed(schedule: Schedule, error: Exception) -> dict[str, Exception]:
    LOG.error("step %d failed with %d requests", schedule.number, len(schedule.chunks), exc_info=error)
    return {chunk.state.id: error for chunk in schedule.chunks}
