"""An engine on a thread of its own.

A step blocks for as long as the model computes, and an `Engine` is not for several threads. So commands
wait in a queue until the step is over, and what a step brings is handed out by a call from here:

    event loop ── add, abort ──▶ queue ──▶ │ carry out commands → step → report │ ──▶ event loop
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from llmcourse.serving.engine import Engine
from llmcourse.serving.request import Request
from llmcourse.serving.schedule import Output
from llmcourse.serving.scheduler import UnknownRequest

Command = Callable[[], None]


class EngineThread:
    """Runs the steps while there is work, and waits for commands while there is none.

    Args:
        engine: nobody else touches it from `start` to `stop`. Its steps should not raise (`contained`):
            that would end the thread.
        report: is called on this thread with what each step brought.
        fail: is called on this thread with what ended it before it was stopped; nothing runs afterwards.
    """

    def __init__(
        self, engine: Engine, report: Callable[[list[Output]], None], fail: Callable[[BaseException], None]
    ):
        self._engine = engine
        self._report = report
        self._fail = fail
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._stopped = False
        # A daemon: a step that never ends must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | int) -> bool:
        """Ends the thread after the step that runs; returns whether it did so in time."""
        self._commands.put(self._stop)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def add(self, requests: Sequence[Request], reply: Callable[[Exception | None], None]) -> None:
        """Puts all requests in line, or none; `reply` is called on this thread with what hindered it."""
        self._commands.put(lambda: reply(self._add(requests)))

    def abort(self, request_ids: Sequence[str]) -> None:
        """Ends those of the requests that are not finished."""
        self._commands.put(lambda: self._abort(request_ids))

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._carry_out()
                if self._engine.has_work and not self._stopped:
                    self._report(self._engine.step())
        except BaseException as error:  # reported, or clients would wait for a thread that is gone
            self._fail(error)

    def _carry_out(self) -> None:
        """All commands that wait; without work it waits for one."""
        if not self._engine.has_work:
            self._commands.get()()
        try:
            while True:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _stop(self) -> None:
        self._stopped = True

    def _add(self, requests: Sequence[Request]) -> Exception | None:
        added = []
        for request in requests:
            try:
                self._engine.add(request)
            except ValueError as error:  # NeverFits, DuplicateId
                self._abort(added)
                return error
            added.append(request.id)
        return None

    def _abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            try:
                self._engine.abort(request_id)
            except UnknownRequest:  # it finished while the command waited
                continue
