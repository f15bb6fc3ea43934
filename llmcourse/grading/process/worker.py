"""The process that runs a student's code: one question, then it ends.

It holds the cells and the arguments of the current call, nothing else. What it says is not trusted: the
student's code shares its memory, so the judge reads each of its messages as if that code had written it.
"""

from __future__ import annotations

import linecache
import os
import random
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from llmcourse.grading.answer import Oracle
from llmcourse.grading.printable import clean
from llmcourse.grading.process import replay, wire
from llmcourse.grading.process.frames import receive, send
from llmcourse.grading.process.observe import observe
from llmcourse.grading.process.origins import Origins
from llmcourse.grading.process.wire import REPLY, REQUEST

_exit = os._exit  # what the student's code puts in its place does not keep this process alive


def serve(channel: socket.socket, hidden: Sequence[str]) -> NoReturn:
    """Answers the judge until it ends this process; the sandbox is entered already."""
    conversation = _Conversation(channel)
    replay.hide(hidden)
    random.seed(0)  # the one generator that Python itself seeds anew in each fork
    conversation.say({"ready": True})
    while True:
        conversation.answer(wire.decode(receive(channel, max_bytes=REQUEST.frame_bytes), REQUEST, Oracle))


class _Conversation:
    """The worker's side of the questions and answers, one at a time."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
        self.main = replay.new_main()
        self.nonce = ""

    def say(self, message: dict[str, Any]) -> None:
        send(self.channel, wire.encode({"nonce": self.nonce, **message}, REPLY))

    def answer(self, request: dict[str, Any]) -> None:
        self.nonce = request["nonce"]
        self.say({"load": self.load, "origins": self.origins, "call": self.call}[request["do"]](request))

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        errors = replay.run(request["cells"], self.main, lambda index: self.say({"cell": index}))
        return {"loaded": [[e.cell_index, e.type, e.message, e.line] for e in errors]}

    def origins(self, request: dict[str, Any]) -> dict[str, Any]:
        function = vars(self.main).get(request["function"])
        return {"origins": sorted(Origins(function).names)}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["function"]
        function = vars(self.main).get(name)
        if not callable(function):
            found = "" if function is None else f"; what is called so is of type {type(function).__name__}"
            return {
                "failed": "missing",
                "message": clean(f"there is no function {name}{found}", replay.MESSAGE),
            }
        arguments = request["arguments"]
        names = [given.name for given in arguments.values() if type(given) is Oracle]
        seen = observe(function, arguments, {name: partial(self._ask, name) for name in names})
        reply = _returned(seen.value) if seen.raised is None else _raised(seen.raised)
        noticed = {name: list(getattr(seen, name)) for name in ("operations", "mutated", "aliased")}
        return {**reply, **noticed, "counts": seen.counts}

    def _ask(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        """What the judge's oracle answers."""
        try:
            self.say({"ask": name, "arguments": arguments, "options": options})
        except wire.WireError as error:
            raise TypeError(f"{name} was given {error}") from None
        reply = wire.decode(receive(self.channel, max_bytes=REQUEST.frame_bytes), REQUEST)
        if "refused" in reply:
            raise ValueError(reply["refused"])
        return reply["value"]


def _returned(value: Any) -> dict[str, Any]:
    try:
        wire.encode(value)
        return {"value": value}
    except wire.WireError as error:
        kind = "reply too large" if isinstance(error, wire.TooLarge) else "malformed reply"
        where = f"a value whose {error.path} is " if error.path else ""
        return {"failed": kind, "message": clean(f"returned {where}{error.what}", replay.MESSAGE)}
    except BaseException as error:
        return {
            "failed": "malformed reply",
            "message": f"returned what cannot be read: {type(error).__name__}",
        }


def _raised(error: BaseException) -> dict[str, Any]:
    text, line = replay.shown(error)
    kind = "memory limit" if replay.is_out_of_memory(error) else "raised"
    where = _line_of(error, line) if line else ""
    message = clean(f"{text}{where}", replay.MESSAGE)
    return {"failed": kind, "message": message, "kinds": list(replay.kinds(error))}


def _line_of(error: BaseException, line: int) -> str:
    files = [name for name, _ in replay.frames(error.__traceback__) if name.startswith("<cell ")]
    source = linecache.getline(files[-1], line).strip() if files else ""
    return f" (line {line}: {source:.100})" if source else f" (line {line})"


def become(channel: socket.socket, enter: Callable[[], None], hidden: Sequence[str]) -> NoReturn:
    """Enters the sandbox and serves; whatever happens, the process that calls this ends here.

    Args:
        enter: shuts the sandbox behind this process.
        hidden: the grader's modules, from `replay.grader_modules`.
    """
    status = 70
    try:
        try:
            enter()
        except Exception as error:
            message = clean(f"{type(error).__name__}: {error}", replay.MESSAGE)
            send(channel, wire.encode({"nonce": "", "machinery": message}, REPLY))
        else:
            serve(channel, hidden)
    except BaseException:
        status = 71
    finally:
        _exit(status)
