"""Between many clients and one engine: who is let in, and which token is whose.

All of it runs on the event loop, so it needs no locks; the engine's thread calls in through
`call_soon_threadsafe`, once a step however many tokens that brought.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llmcourse.decoding.errors import require_integer
from llmcourse.serving.engine import Engine
from llmcourse.serving.http.contained import contained
from llmcourse.serving.http.engine_thread import EngineThread
from llmcourse.serving.http.token_rate import TokenRate
from llmcourse.serving.request import FinishReason, Request
from llmcourse.serving.runner import Runner
from llmcourse.serving.schedule import Output
from llmcourse.serving.scheduler import Scheduler

LOG = logging.getLogger(__name__)
STOP_TIMEOUT_S = 10.0  # for the step that runs, at the end


class Overloaded(RuntimeError):
    """As many requests wait as may."""


class Closed(RuntimeError):
    """The server is shutting down, or its engine has failed."""


@dataclass(frozen=True)
class Event:
    """What came to one request.

    Attributes:
        request_id: whose it is.
        token: None where there is none, but an error.
        finish_reason: if it is the last.
        error: why the request ends without having been answered.
    """

    request_id: str
    token: int | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None


class Answers:
    """The tokens of some requests as they come.

    Attributes:
        in_line: done once the engine has taken the requests, or has said why not.
    """

    def __init__(self, end: Callable[[Sequence[str]], None]):
        self.in_line: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._end = end

    def take_in(self, error: Exception | None) -> None:
        """Tells that the requests are in line, or why they are not."""
        if self.in_line.done():  # by another error, or the client has gone
            return
        if error is None:
            self.in_line.set_result(None)
        else:
            self.in_line.set_exception(error)

    def put(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def events(self) -> list[Event]:
        """All that came since, at least one: whoever is slow gets more at once."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def end(self, request_id: str) -> None:
        """No more is wanted of this request; its blocks are freed."""
        self._end([request_id])


class Service:
    """Lets requests into an engine and hands out its tokens.

    Args:
        scheduler, runner: nobody else uses them.
        queue_limit: requests that may wait; one more is refused.
        overlap: as `Engine` takes it: pays on a GPU.

    Raises:
        ValueError: a limit below 1, or a runner whose steps cannot overlap.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runner, *, queue_limit: int = 1024, overlap: bool = False
    ):
        require_integer(1, "queue_limit", queue_limit, "use 1024")
        self.queue_limit = queue_limit
        self.token_rate = TokenRate()
        self.failure: BaseException | None = None
        self._scheduler = scheduler
        self._open: dict[str, Answers] = {}
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        engine = Engine(scheduler, contained(runner), overlap)
        self._thread = EngineThread(engine, self._on_step, self._on_failure)

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Those in line, and those on their way to it."""
        return max(0, len(self._open) - self._scheduler.num_running)

    @property
    def num_blocks(self) -> int:
        return self._scheduler.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self._scheduler.pool.num_free

    def holds(self, num_tokens: int) -> bool:
        """Whether so many tokens of one request would fit if it had all blocks."""
        return self._scheduler.pool.blocks_for(num_tokens) <= self.num_blocks

    @property
    def closed(self) -> str | None:
        """Why nothing is taken any more, None if it is."""
        if self.failure is not None:
            what = f"{type(self.failure).__name__}: {self.failure}"
            return f"the engine has failed ({what}); start the server again"
        return "the server is shutting down; ask another one, or later" if self._closing else None

    def start(self) -> None:
        """Starts the engine's thread; to be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, grace_s: float | int) -> None:
        """Takes no more requests; those that are open may go on for `grace_s` seconds. For any thread."""
        self._closing = True
        if self._loop is not None:
            self._call(lambda: self._loop.call_later(grace_s, self._fail_all))

    def stop(self) -> bool:
        """Ends the engine's thread; returns whether it ended, and not only its step went on too long."""
        self._closing = True
        return self._loop is None or self._thread.stop(STOP_TIMEOUT_S)

    @asynccontextmanager
    async def answers(self, requests: Sequence[Request]) -> AsyncIterator[Answers]:
        """The answers of requests that have got into line. Leaving ends those that are not finished.

        Raises:
            Closed: nothing is taken any more.
            Overloaded: too many wait.
            NeverFits: one needs more blocks than there are; none is in line then.
        """
        if self.closed:
            raise Closed(self.closed)
        if self.num_waiting + len(requests) > self.queue_limit:
            raise Overloaded(
                f"{self.num_waiting} requests wait, {len(requests)} more would exceed {self.queue_limit}"
            )
        answers, ids = Answers(self._end), [request.id for request in requests]
        self._open |= dict.fromkeys(ids, answers)
        try:
            self._thread.add(requests, lambda error: self._call(lambda: answers.take_in(error)))
            await answers.in_line
            yield answers
        finally:
            self._end(ids)

    def _end(self, request_ids: Sequence[str]) -> None:
        open_ids = [name for name in request_ids if self._open.pop(name, None)]
        if open_ids:
            self._thread.abort(open_ids)

    def _on_step(self, outputs: list[Output]) -> None:
        events = [Event(o.state.id, o.token, o.finish_reason, o.state.error) for o in outputs]
        self._call(lambda: self._hand_out(events))

    def _on_failure(self, failure: BaseException) -> None:
        self.failure = failure
        LOG.error("the engine has failed; nothing is answered any more", exc_info=failure)
        self._call(self._fail_all)

    def _call(self, callback: Callable[[], object]) -> None:
        """On the event loop, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _hand_out(self, events: list[Event]) -> None:
        for event in events:
            self.token_rate.add(event.token is not None)
            if answers := self._open.get(event.request_id):
                answers.put(event)
                if event.finish_reason:
                    del self._open[event.request_id]

    def _fail_all(self) -> None:
        """Ends what is open with the reason."""
        for request_id, answers in self._open.items():
            answers.take_in(Closed(self.closed))
            answers.put(Event(request_id, finish_reason="error", error=Closed(self.closed)))
        self._end(list(self._open))
