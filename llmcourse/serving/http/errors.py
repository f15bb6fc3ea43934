"""What a client did wrong, or what went wrong here, as OpenAI's error objects say it.

    {"error": {"message": …, "type": …, "param": the argument or null, "code": a word or null}}

(OpenAI API reference, "Error codes"; the `openai` package makes one exception class of each status.)
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import NoReturn

from starlette.responses import Response

INVALID = "invalid_request_error"
SERVER = "server_error"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do about it.
        kind: the `type` of the error object.
        param: the argument that is wrong, None where it is none in particular.
        code: a word for programs, None where the status says it all.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, dict(headers or {})

    def content(self) -> str:
        """The error object in ASCII: what a client sent may hold halves of characters."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error})

    def response(self) -> Response:
        return Response(self.content(), self.status, self.headers, media_type="application/json")


def short(value: object) -> str:
    """Its beginning and its end, however large it is."""
    return _SHORT.repr(value)


def refuse(param: str, allowed: str, value: object, remedy: str) -> NoReturn:
    """Raises `top_p must be in (0, 1], got 1.3; use 1.0 to disable it` with status 400.

    However large a value is, only its beginning is repeated.
    """
    raise ApiError(400, f"{param} must be {allowed}, got {short(value)}; {remedy}", param=param)
