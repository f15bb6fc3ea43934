"""POST /v1/completions: checks, then the answer in one piece or as server-sent events.

    data: {"id": …, "choices": [{"text": " upon", …}]}
    …
    data: [DONE]

(WHATWG HTML, "Server-sent events"; OpenAI API reference, "Streaming".) Whatever the form, a client that
has gone is noticed, and what it asked for is ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from llmcourse.serving.http.body import parse, read_body
from llmcourse.serving.http.completion import Completion, Piece
from llmcourse.serving.http.errors import SERVER, ApiError, refuse
from llmcourse.serving.http.prompts import ServedModel, check_length, encode_prompts, split_prompts
from llmcourse.serving.http.service import Answers, Closed, Overloaded, Service
from llmcourse.serving.scheduler import NeverFits

RETRY_AFTER_S = 1
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True)
class Completions:
    """The endpoint, an ASGI application.

    Attributes:
        max_body_bytes: larger bodies are refused.
        body_timeout_s: seconds for all of a body, or a client that stalls would be waited for as long as it
            likes.
    """

    service: Service
    model: ServedModel
    max_body_bytes: int
    body_timeout_s: float | int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.body_timeout_s):
                data = await read_body(Request(scope, receive), self.max_body_bytes)
        except ClientDisconnect:  # before it had sent its request
            return
        except TimeoutError as error:
            message = f"the body must be here within {self.body_timeout_s} s; send it faster, or less"
            raise ApiError(408, message, headers={"Connection": "close"}) from error
        except asyncio.CancelledError as error:
            if not self.service.closed:
                raise
            raise ApiError(503, self.service.closed, kind=SERVER, code="unavailable") from error
        await while_connected(receive, self._answer(data, scope, receive, send))

    async def _answer(self, data: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        completion = await self._completion(data)
        with self._refusals(completion):
            async with self.service.answers(completion.requests()) as answers:
                if completion.body.stream:
                    await self._stream(completion, answers, send)
                    return
                pieces = [piece async for pieces in completion.pieces(answers) for piece in pieces]
        await JSONResponse(completion.whole(pieces))(scope, receive, send)

    async def _completion(self, data: bytes) -> Completion:
        """The call that a body makes, if it is one that can be answered.

        Raises:
            ApiError: it is not.
        """
        body = parse(data)
        check_model(body.model, self.model)
        texts = split_prompts(body.prompt)
        if len(texts) * body.n > self.service.queue_limit:
            what = f"for at most {self.service.queue_limit} answers at once, the length of the queue"
            refuse("n" if body.n > 1 else "prompt", what, len(texts) * body.n, "ask for fewer at once")
        prompts = await encode_prompts(texts, self.model)
        check_length(prompts, body.max_tokens, self.model)
        return Completion(body, texts, prompts, self.model)

    async def _stream(self, completion: Completion, answers: Answers, send: Send) -> None:
        """Sends every piece of text as soon as it is certain; what goes wrong meanwhile is an event, too."""
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        try:
            with self._refusals(completion):
                async for pieces in completion.pieces(answers):
                    events = chunks(completion, pieces)
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            last = usage_chunk(completion) + event("[DONE]")
        except ApiError as error:
            last = event(error.content())
        await send({"type": "http.response.body", "body": last})

    @contextmanager
    def _refusals(self, completion: Completion) -> Iterator[None]:
        """Turns what hinders an answer into the error that the client is sent."""
        try:
            yield
        except ApiError:
            raise
        except NeverFits as error:
            prompt_fits = self.service.holds(max(map(len, completion.prompts)))
            param = "max_tokens" if prompt_fits else "prompt"
            raise ApiError(400, str(error), param=param, code="never_fits") from error
        except Overloaded as error:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise ApiError(
                429, str(error), kind="rate_limit_error", code="queue_full", headers=retry
            ) from error
        except Closed as error:
            raise ApiError(503, str(error), kind=SERVER, code="unavailable") from error
        except Exception as error:  # of a step or of one request: the server goes on
            message = f"the model failed on this request ({type(error).__name__}: {error})"
            raise ApiError(500, message, kind=SERVER) from error


def check_model(name: str, model: ServedModel) -> None:
    """Raises ApiError where another model is asked for."""
    if name != model.name:
        message = f"model must be {model.name!r}, the one that is served, got {name[:60]!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def event(data: str) -> bytes:
    """One server-sent event; JSON has no line breaks that would end it early."""
    return f"data: {data}\n\n".encode()


def chunks(completion: Completion, pieces: Sequence[Piece]) -> bytes:
    """One event for each piece that says something."""
    usage = {"usage": None} if completion.body.include_usage else {}
    told = (piece for piece in pieces if piece.text or piece.finish_reason)
    return b"".join(event(_json(completion.content([piece]) | usage)) for piece in told)


def usage_chunk(completion: Completion) -> bytes:
    """The last event before the end, of no choice, where the client asked for it."""
    if not completion.body.include_usage:
        return b""
    return event(_json(completion.content([]) | {"usage": completion.usage()}))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, and gives it up when the client goes away."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)  # what is given up frees its blocks first
    if not tasks[0].cancelled():
        tasks[0].result()


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
