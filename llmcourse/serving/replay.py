"""The same requests on a real engine and a real clock: what `clock.simulate` predicts, measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from llmcourse.decoding.errors import require
from llmcourse.serving.clock import ClockStep, Timeline, Trace, admit, empty_timelines, trace_of
from llmcourse.serving.engine import Engine
from llmcourse.serving.request import Request, RequestState


def replay(requests: Iterable[Request], engine: Engine) -> Trace:
    """Serves requests as they arrive, on the clock of this machine, which starts at 0.

    A token counts as there when the step that brings it returns. Steps are without cells: what they
    computed is the scheduler's and the same as in `simulate`, as far as the times are.

    Args:
        requests: in any order; each is added before the first step that begins at its `arrival_s` or later.
        engine: one without work.

    Raises:
        ValueError: the engine has work already, or two requests have one id.
    """
    require(not engine.has_work, "engine", "one without work", "one with requests", "make a new one")
    timelines = empty_timelines(requests)
    arriving = deque(sorted(timelines.values(), key=lambda timeline: timeline.request.arrival_s))
    states: list[RequestState] = []
    steps: list[ClockStep] = []
    began = time.perf_counter()
    while arriving or engine.has_work:
        now = time.perf_counter() - began
        if not engine.has_work and arriving[0].request.arrival_s > now:
            time.sleep(arriving[0].request.arrival_s - now)
            now = arriving[0].request.arrival_s
        while arriving and arriving[0].request.arrival_s <= now:
            admit(arriving.popleft(), engine, states)
        if engine.has_work:
            steps.append(_step(engine, timelines, began))
    return trace_of(timelines, states, steps)


def _step(engine: Engine, timelines: dict[str, Timeline], began: float) -> ClockStep:
    start_s = time.perf_counter() - began
    outputs = engine.step()
    end_s = time.perf_counter() - began
    for output in outputs:
        timelines[output.state.id].take(output, end_s)
    return ClockStep(start_s, end_s, (), 0, engine.scheduler.num_waiting)
