"""A step that fails takes down the requests in it, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from llmcourse.serving.runner import Runner
from llmcourse.serving.schedule import Schedule

LOG = logging.getLogger(__name__)
Sampled = Mapping[str, int | Exception]


class ContainedRunner:
    """A runner whose steps do not raise: what another one raises is the error of each request in the step.

    Computing the same again, as an `Engine` would, may raise again, and clients would wait for ever.
    """

    def __init__(self, runner: Runner):
        self._runner = runner

    def run(self, schedule: Schedule) -> Sampled:
        return _contained(schedule, lambda: self._runner.run(schedule))


class ContainedOverlappingRunner(ContainedRunner):
    """The same for a runner that begins a step and is waited for later."""

    def launch(self, schedule: Schedule) -> Callable[[], Sampled]:
        try:
            wait = self._runner.launch(schedule)
        except Exception as error:
            failed = _all_failed(schedule, error)
            return lambda: failed
        return lambda: _contained(schedule, wait)


def contained(runner: Runner) -> ContainedRunner:
    """The runner with its failures contained."""
    return (ContainedOverlappingRunner if hasattr(runner, "launch") else ContainedRunner)(runner)


def _contained(schedule: Schedule, sample: Callable[[], Sampled]) -> Sampled:
    try:
        return sample()
    except Exception as error:
        return _all_failed(schedule, error)


def _all_failed(schedule: Schedule, error: Exception) -> Sampled:
    LOG.error("step %d failed with %d requests", schedule.number, len(schedule.chunks), exc_info=error)
    return {chunk.state.id: error for chunk in schedule.chunks}
