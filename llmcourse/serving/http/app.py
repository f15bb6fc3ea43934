"""The application: which path leads where, and errors that look alike wherever they come from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llmcourse.serving.http.endpoint import Completions, check_model
from llmcourse.serving.http.errors import SERVER, ApiError
from llmcourse.serving.http.prompts import ServedModel
from llmcourse.serving.http.service import Service
from llmcourse.serving.http.status_page import status_page

MAX_BODY_BYTES = 4 * 2**20
BODY_TIMEOUT_S = 30
PATHS = "/v1/completions, /v1/models, /health, /metrics"


def create_app(
    service: Service,
    model: ServedModel,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout_s: float | int = BODY_TIMEOUT_S,
) -> Starlette:
    """An ASGI application that serves one model; its lifespan starts and stops the engine's thread."""
    card = {"id": model.name, "object": "model", "created": int(time.time()), "owned_by": "llmcourse"}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        check_model(request.path_params["name"], model)
        return JSONResponse(card)

    async def health(request: Request) -> Response:
        if service.closed:
            return JSONResponse({"status": service.closed}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(status_page(service))

    completions = Completions(service, model, max_body_bytes, body_timeout_s)
    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _our_fault}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What Starlette finds itself: no such path, or not with this method."""
    message = f"{error.detail}: {request.method} {request.url.path[:60]}; there are {PATHS}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _our_fault(request: Request, error: Exception) -> Response:
    return ApiError(500, f"the server failed ({type(error).__name__}); see its log", kind=SERVER).response()
