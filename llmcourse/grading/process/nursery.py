"""The judge's side: a worker process for each question, asked under deadlines, never believed.

    with Nursery(tier) as nursery, nursery.worker(cells) as worker:
        worker.load(20.0)
        answer = worker.call("top_p_filter", {"logits": logits, "top_p": 0.9}, {}, 5.0)

Whatever the student's code does, `load` and `call` return within their time: with a value, or with a
`Failure` that says why there is none. What is ours to answer for is raised as `MachineryError`.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from llmcourse.grading.answer import Answer, Failure, FailureKind
from llmcourse.grading.printable import clean
from llmcourse.grading.process import frames, wire
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.deadline import Deadline
from llmcourse.grading.process.fork_client import ForkClient, MachineryError, Process
from llmcourse.grading.process.replay import MAX_NOTES, MESSAGE, CellError
from llmcourse.grading.process.wire import REPLY, REQUEST
from llmcourse.grading.sandbox.policy import Tier

__all__ = ["Allowance", "CellError", "LoadReport", "MachineryError", "Nursery", "Worker"]

READY_S = 30.0  # the sandbox and the first message, on a machine that is very busy
LAST_WORDS_S = 1.0  # between a closed connection and the end of its process
GRACE_S = 1.0  # for reading what lay there in time
ORIGINS_S = 10.0
MAX_NAMES, MAX_NAME, MOST = 1_000, 100, 1 << 62
REPORTED = ("raised", "missing", "memory limit", "reply too large", "malformed reply")  # by the worker itself


@dataclass(frozen=True)
class LoadReport:
    """What running the cells came to.

    Args:
        errors: what statements raised; those after them ran.
        output_bytes: what was printed.
        failure: why the cells did not run to their end; the worker has ended then.
        stopped_in: the index of the cell that ran when it ended.
        cell_seconds: of each cell, by our clock; 0 for one that did not begin.
    """

    errors: tuple[CellError, ...] = ()
    output_bytes: int = 0
    seconds: float = 0.0
    failure: Failure | None = None
    stopped_in: int | None = None
    cell_seconds: tuple[float, ...] = ()


class _Failed(Exception):
    """The student's process gave no answer, and will give none."""

    def __init__(self, kind: FailureKind, message: str):
        super().__init__(message)
        self.failure = Failure(kind, clean(message, MESSAGE))


class _Laps:
    """Which cell runs, and how long each took by our clock, from what the worker says when one begins."""

    def __init__(self, cells: int, deadline: Deadline):
        self.seconds = [0.0] * cells
        self.running: int | None = None
        self._deadline = deadline
        self._since = 0.0

    def begin(self, index: int | None) -> None:
        """The next cell begins, or none does."""
        now = self._deadline.spent()
        if self.running is not None:
            self.seconds[self.running] += now - self._since
        self.running, self._since = index, now


class Nursery:
    """Where workers come from; a context manager that leaves no process and no file behind.

    A fork server that has died is started again by the next `worker`. One thread uses a nursery, from
    beginning to end.

    Args:
        tier: how workers are confined.
        allowance: what each may use.
    """

    def __init__(self, tier: Tier, allowance: Allowance | None = None):
        self.tier = tier
        self.allowance = allowance or Allowance()
        self._server = ForkClient(tier, self.allowance)

    def __enter__(self) -> Nursery:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop()

    def worker(self, cells: Sequence[str]) -> Worker:
        """A process for one question, which starts when the worker is entered as a context.

        Args:
            cells: the sources of the code cells that it will run.
        """
        return Worker(self._server, cells)


class Worker:
    """A process with a student's code; `Nursery.worker` makes it.

    After a failure that ended the process, every call answers with that failure.

    Attributes:
        doubt: that failure, where it may come from outside: something ended the process, or its time ran
            out although the judge was kept from running for long.
        output_bytes: what was printed.
    """

    def __init__(self, server: ForkClient, cells: Sequence[str]):
        self._server = server
        self._allowance = server.allowance
        # Half a surrogate pair can stand in a notebook's JSON, and in no Python source.
        self._cells = [cell.encode(errors="replace").decode() for cell in cells]
        self._process: Process | None = None
        self._frames = frames.Frames(REPLY.frame_bytes)
        self._failure: Failure | None = None
        self._printing = True
        self.doubt: Failure | None = None
        self.output_bytes = 0

    def __enter__(self) -> Worker:
        if not self._server.alive:
            self._server.start()
        self._process = self._server.spawn()
        try:
            ready = self._hear("", Deadline(READY_S))
            if "ready" not in ready:
                raise MachineryError(f"the sandbox cannot be entered: {ready.get('machinery')}")
        except BaseException as error:
            self._end()
            if isinstance(error, _Failed):
                raise MachineryError(f"a worker did not begin: {error.failure}") from error
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def load(self, deadline_s: float) -> LoadReport:
        """Runs the cells.

        Args:
            deadline_s: for all of them together.

        Raises:
            MachineryError: the fork server died.
        """
        started, deadline = time.monotonic(), Deadline(deadline_s)
        laps = _Laps(len(self._cells), deadline)
        try:
            nonce = self._ask({"do": "load", "cells": self._cells}, deadline)
            while "loaded" not in (message := self._hear(nonce, deadline)):
                laps.begin(_cell(message, len(self._cells)))
            laps.begin(None)
            report = LoadReport(errors=_cell_errors(message["loaded"], len(self._cells)))
        except _Failed as failed:
            stopped_in = laps.running
            laps.begin(None)
            report = LoadReport(failure=self._fail(failed, deadline), stopped_in=stopped_in)
        return replace(
            report,
            output_bytes=self.output_bytes,
            seconds=time.monotonic() - started,
            cell_seconds=tuple(laps.seconds),
        )

    def origins(self, function: str) -> frozenset[str]:
        """`Origins.names` of what the cells call so; the process can make it say anything."""
        deadline = Deadline(ORIGINS_S)
        try:
            reply = self._hear(self._ask({"do": "origins", "function": function}, deadline), deadline)
            return frozenset(_names(reply, "origins"))
        except _Failed as failed:
            self._fail(failed, deadline)
            return frozenset()

    def call(
        self,
        function: str,
        arguments: dict[str, Any],
        oracles: dict[str, Callable[..., Any]],
        time_limit_s: float,
    ) -> Answer:
        """Calls a function of the student's with fresh copies of the arguments.

        Args:
            arguments: by name; an `Oracle` becomes a function that asks `oracles` of the same name.
            time_limit_s: by our clock, what oracles take included.

        Raises:
            MachineryError: the fork server died.
            WireError: an argument cannot be sent.
        """
        started, deadline = time.monotonic(), Deadline(time_limit_s)
        counts = dict.fromkeys(oracles, 0)
        request = {"do": "call", "function": function, "arguments": arguments}
        try:
            nonce = self._ask(request, deadline)
            while "ask" in (reply := self._hear(nonce, deadline)):
                self._consult(reply, oracles, counts, deadline)
            answer = _answer(reply, arguments)
        except _Failed as failed:
            answer = Answer(error=self._fail(failed, deadline))
        return replace(answer, oracle_calls=counts, seconds=time.monotonic() - started)

    def _consult(
        self, question: dict[str, Any], oracles: dict[str, Any], counts: dict[str, int], deadline: Deadline
    ) -> None:
        """Answers a call of an oracle, or says why not; that is raised in the student's code."""
        name, arguments, options = (question.get(key) for key in ("ask", "arguments", "options"))
        if type(name) is not str or type(arguments) is not tuple or type(options) is not dict:
            raise _Failed("malformed reply", "a call of an oracle without name or arguments")
        if name not in oracles:
            raise _Failed("malformed reply", f"a call of an oracle {name:.40} that was not given")
        try:
            if counts[name] >= self._allowance.oracle_calls:
                raise ValueError(f"{name} was called more than {self._allowance.oracle_calls:,} times")
            counts[name] += 1
            message = wire.encode({"value": oracles[name](*arguments, **options)}, REQUEST)
        except Exception as error:
            refusal = clean(str(error), MESSAGE) or type(error).__name__
            message = wire.encode({"refused": refusal}, REQUEST)
        self._send(message, deadline)

    def _ask(self, request: dict[str, Any], deadline: Deadline) -> str:
        """Sends a request; its answer must carry the nonce that is returned."""
        nonce = secrets.token_hex(16)
        message = wire.encode({"nonce": nonce, **request}, REQUEST, oracles=True)
        if self._failure is not None:
            raise _Failed(self._failure.kind, self._failure.message)
        at_once = Deadline(0.0)
        while not len(self._frames) and self._wait(at_once):
            pass
        if len(self._frames):
            raise _Failed("forged reply", "sent an answer before it was asked")
        self._send(message, deadline)
        return nonce

    def _send(self, message: bytes, deadline: Deadline) -> None:
        try:
            frames.send(self._running.channel, message, deadline)
        except frames.Late:
            raise _Failed("time limit", "") from None
        except frames.Closed:
            raise self._ended() from None

    def _hear(self, nonce: str, deadline: Deadline) -> dict[str, Any]:
        try:
            while (frame := self._frames.pop()) is None:
                if not self._wait(deadline):
                    raise _Failed("time limit", "")
            message = wire.decode(frame, REPLY)
        except wire.TooLarge as error:
            raise _Failed("reply too large", f"sent {error}") from None
        except wire.WireError as error:
            raise _Failed("malformed reply", f"sent what is no message: {error}") from None
        if type(message) is not dict:
            raise _Failed("malformed reply", f"sent a {type(message).__name__}, not an answer")
        if message.get("nonce") != nonce:
            raise _Failed("forged reply", "sent an answer to another question")
        return message

    def _wait(self, deadline: Deadline) -> bool:
        """Takes what the process sends or prints, soon; False when the deadline came first."""
        process = self._running
        left = deadline.left()
        if left < -GRACE_S:  # there is always more to read, and never the answer
            return False
        poll = select.poll()
        poll.register(process.channel, select.POLLIN)
        if self._printing:
            poll.register(process.output, select.POLLIN)
        ready = dict(poll.poll(deadline.step() * 1000))
        if process.output in ready:
            self._drain(process)
        if process.channel.fileno() in ready:
            try:
                data = process.channel.recv(frames.CHUNK)
            except OSError:
                data = b""
            if not data:
                raise self._ended()
            self._frames.feed(data)
        return bool(ready) or left > 0

    def _drain(self, process: Process) -> None:
        try:
            printed = len(os.read(process.output, frames.CHUNK))
        except BlockingIOError:
            return
        self._printing = printed > 0  # it may close its output; that is no offence
        self.output_bytes += printed
        if self.output_bytes > self._allowance.output_bytes:
            raise _Failed("output limit", f"printed more than {self._allowance.output_bytes:,} bytes")

    def _ended(self) -> _Failed:
        """Why the connection was closed."""
        kind, message = self._server.why(self._running, LAST_WORDS_S) or (
            "process ended",
            "closed its connection to the judge",
        )
        return _Failed(kind, message)

    def _fail(self, failed: _Failed, deadline: Deadline) -> Failure:
        if self._failure is not None:
            return self._failure
        failure, doubtful = failed.failure, failed.failure.kind == "process ended"
        if failure.kind == "time limit" and not failure.message:
            failure = replace(failure, message=f"took more than {deadline.limit_s:g} s")
            doubtful = deadline.in_doubt
        self._failure = failure
        self.doubt = failure if doubtful else None
        self._end()
        return failure

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise MachineryError("this worker is not running; use it as a context manager")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._server.end(process)


def _malformed(what: str) -> NoReturn:
    raise _Failed("malformed reply", f"sent {what}")


def _cell(message: dict[str, Any], count: int) -> int:
    index = message.get("cell")
    if type(index) is not int or not 0 <= index < count:
        _malformed("a report of cells that is none")
    return index


def _cell_errors(found: Any, count: int) -> tuple[CellError, ...]:
    if type(found) is not list or len(found) > MAX_NOTES:
        _malformed("a report of cells that is none")
    errors = []
    for entry in found:
        if type(entry) is not list or [type(part) for part in entry] != [int, str, str, int]:
            _malformed("a report of cells that is none")
        index, name, message, line = entry
        if not 0 <= index < count or not 0 <= line < 2**31:
            _malformed("a report of cells that is none")
        errors.append(CellError(index, clean(name, MAX_NAME), clean(message, MESSAGE), line))
    return tuple(errors)


def _answer(reply: dict[str, Any], arguments: dict[str, Any]) -> Answer:
    mutated, aliased = set(_names(reply, "mutated")), set(_names(reply, "aliased"))
    answer = Answer(
        operations=_names(reply, "operations"),
        mutated=tuple(name for name in arguments if name in mutated),
        aliased=tuple(name for name in arguments if name in aliased),
        counts=_counts(reply),
    )
    if "failed" not in reply:
        return replace(answer, value=reply["value"]) if "value" in reply else _malformed("no answer")
    kind, message = reply["failed"], reply.get("message")
    if kind not in REPORTED or type(message) is not str:
        _malformed("a failure that is none")
    return replace(answer, error=Failure(kind, clean(message, MESSAGE), _names(reply, "kinds")))


def _counts(reply: dict[str, Any]) -> dict[str, int]:
    counts = reply.get("counts", {})
    if type(counts) is not dict or len(counts) > MAX_NAMES or {type(n) for n in counts.values()} - {int}:
        _malformed("counts that are none")
    return {clean(name, MAX_NAME): min(number, MOST) for name, number in counts.items()}


def _names(reply: dict[str, Any], key: str) -> tuple[str, ...]:
    names = reply.get(key, [])
    if type(names) is not list or len(names) > MAX_NAMES or not all(type(name) is str for name in names):
        _malformed(f"{key} that are no names")
    return tuple(clean(name, MAX_NAME) for name in names)
