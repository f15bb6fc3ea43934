"""The body of a request: read up to a limit, taken for JSON, checked argument by argument."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import Request

from llmcourse.decoding.params import SamplingParams
from llmcourse.serving.http.errors import ApiError, refuse
from llmcourse.serving.http.fields import FIELDS, Field


@dataclass(frozen=True)
class CompletionBody:
    """The arguments of /v1/completions; `fields.FIELDS` says what they may be."""

    model: str
    prompt: str | list
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    n: int
    stream: bool
    include_usage: bool
    stop: tuple[str, ...]
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    echo: bool
    priority: int
    speculation: dict | None

    def params(self, vocab_size: int) -> SamplingParams:
        """How a token is chosen. OpenAI's penalties count the tokens of the answer, not of the prompt."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=min(self.top_k, vocab_size),  # past the vocabulary it keeps everything anyway
            top_p=self.top_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            penalty_scope="generated",
        )


async def read_body(request: Request, most_bytes: int) -> bytes:
    """All bytes of the body.

    Raises:
        ApiError: there are more than `most_bytes`; no more than that are held.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        _too_large(most_bytes)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > most_bytes:
            _too_large(most_bytes)
    return bytes(data)


def _too_large(most_bytes: int) -> NoReturn:
    raise ApiError(413, f"the body must be at most {most_bytes:,} bytes; send fewer prompts at once")


def parse(data: bytes) -> CompletionBody:
    """The arguments that a body holds.

    Raises:
        ApiError: it is no JSON object, or an argument is missing, unknown or not what it may be.
    """
    given = _read_object(data)
    for name in given:
        if name not in FIELDS:
            allowed = f"one of {', '.join(FIELDS)}"
            message = f"arguments must be {allowed}, got {name[:60]!r}; leave it out"
            raise ApiError(400, message, param=name[:60], code="unknown_parameter")
    values = {name: _value(name, field, given.get(name)) for name, field in FIELDS.items()}
    stop, options = values["stop"], values["stream_options"]
    if options and not values["stream"]:
        refuse("stream_options", "left out where stream is not true", options, "set stream to true")
    kept = {name: values[name] for name in CompletionBody.__dataclass_fields__ if name in values}
    kept["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return CompletionBody(**kept, include_usage=options.get("include_usage", False))


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise ApiError(
            400, f"the body must be valid JSON, it is not ({error}); encode it with json"
        ) from error
    if not isinstance(given, dict):
        raise ApiError(
            400, f"the body must be a JSON object, got a {type(given).__name__}; send model and prompt"
        )
    return given


def _value(name: str, field: Field, given: Any) -> Any:
    if given is None:
        if name in ("model", "prompt"):
            refuse(name, field.allowed, None, field.remedy)
        return field.default
    if not field.holds(given):
        refuse(name, field.allowed, given, field.remedy)
    return float(given) if isinstance(field.default, float) else given  # in JSON, 1 is a number like 1.0
