"""A model that writes what it is told to, and a server around it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.http.app import create_app
from llmcourse.serving.http.prompts import ServedModel
from llmcourse.serving.http.server import Server, bind, url_of
from llmcourse.serving.http.service import Service
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import RequestState
from llmcourse.serving.schedule import Schedule
from llmcourse.serving.scheduler import Scheduler
from llmcourse.tokenizer import Tokenizer

END = 0  # <|endoftext|>, in the tiny tokenizer


class Script:
    """A runner that answers every prompt with given tokens, then with the end token.

    Attributes:
        answer: the tokens, or a function that gives the next one.
        gate: steps run while it is set; clear it to hold the model up.
        steps: where there is one, every step takes one from it.
        fails: asked before each step with the requests in it; what it returns is raised.
        seen: every request that was in a step.
    """

    def __init__(self, answer: Sequence[int] | Callable[[RequestState], int]):
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.steps: threading.Semaphore | None = None
        self.fails: Callable[[list[RequestState]], Exception | None] = lambda states: None
        self.seen: dict[str, RequestState] = {}

    def run(self, schedule: Schedule) -> Mapping[str, int | Exception]:
        states = [chunk.state for chunk in schedule.chunks]
        self.seen |= {state.id: state for state in states}
        assert self.gate.wait(10) and (not self.steps or self.steps.acquire(timeout=10)), "held up for ever"
        if error := self.fails(states):
            raise error
        return {chunk.state.id: self._next(chunk.state) for chunk in schedule.chunks if chunk.samples}

    def _next(self, state: RequestState) -> int:
        if callable(self.answer):
            return self.answer(state)
        return self.answer[state.num_generated] if state.num_generated < len(self.answer) else END


def service_of(
    runner: Script, *, num_blocks: int = 64, max_running: int = 8, queue_limit: int = 64
) -> Service:
    pool = BlockPool(num_blocks, block_size=4)
    scheduler = Scheduler(pool, ContinuousBatching(), max_running=max_running)
    return Service(scheduler, runner, queue_limit=queue_limit)


def model_of(tokenizer: Tokenizer, max_length: int = 64) -> ServedModel:
    return ServedModel("tiny", tokenizer, max_length, frozenset({END}))


class Running:
    """A real server on a free port, in a thread; as a context manager it is ended at the end.

    Attributes:
        address, url: of the server, the latter without /v1.
    """

    def __init__(self, service: Service, model: ServedModel, *, grace_s: float = 5.0, **settings):
        self._socket = bind("127.0.0.1", 0)
        self._server = Server(create_app(service, model, **settings), service, grace_s=grace_s)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self.address = self._socket.getsockname()
        self.url = url_of(self._socket)

    def __enter__(self) -> Running:
        self._thread.start()
        eventually(lambda: self._server.started)
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def interrupt(self) -> None:
        """What Ctrl-C does; signals reach the main thread alone."""
        self._server.handle_exit(signal.SIGINT, None)

    def end(self, timeout_s: float = 20) -> None:
        if self._thread.is_alive():
            self.interrupt()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the server hangs"


def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    """Waits for what happens on another thread."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
