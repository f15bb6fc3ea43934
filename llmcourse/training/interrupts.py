"""Signals that wait for the end of a step, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading


class Interrupts:
    """Holds SIGINT and SIGTERM back until a step is complete, so that what is saved is whole."""

    def __init__(self):
        self.pending = False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.pending = True

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
