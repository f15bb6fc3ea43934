"""The socket, the start and the end: uvicorn around the application."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from llmcourse.decoding.errors import require
from llmcourse.serving.http.app import create_app
from llmcourse.serving.http.prompts import ServedModel
from llmcourse.serving.http.service import Service

GRACE_S = 5.0  # for answers that are under way when the server is told to end
MARGIN_S = 5  # after that, for clients to read what is left
WILDCARDS = ("0.0.0.0", "::")


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address, before the model is loaded for nothing.

    Args:
        port: 0 for any that is free.

    Raises:
        ValueError: the port is taken, not allowed or no port, or the host is not of this machine.
    """
    require(0 <= port <= 65_535, "port", "in [0, 65535]", port, "use 8000, or 0 for any that is free")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # elsewhere it would let two servers have one port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port must be one that is free on {host}, got {port}, which another program has; "
                "use another one, or 0 for any that is free"
            ) from error
        if error.errno == errno.EACCES:
            raise ValueError(f"port must be one that you may open, got {port}; use 8000") from error
        raise ValueError(
            f"host must be an address of this machine, got {host!r} ({error}); "
            "use 127.0.0.1, or 0.0.0.0 to be reached from others"
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listening.getsockname()[:2]
    host = "localhost" if host in WILDCARDS else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}"


def greeting(url: str, model: str) -> str:
    """What is printed once requests are taken."""
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 32})
    return (
        f"Serving {model} on {url}/v1 until Ctrl-C. Try:\n"
        f"  curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
    )


class Server(uvicorn.Server):
    """Says when it is ready; told to end, it refuses what is new and lets what runs finish, for a while.

    Args:
        hello: what to print when it is ready.
        grace_s: seconds for what runs.
    """

    def __init__(self, app: Starlette, service: Service, *, hello: str = "", grace_s: float | int = GRACE_S):
        most_s = int(grace_s) + MARGIN_S
        quiet = {"log_level": "warning", "access_log": False}
        super().__init__(
            uvicorn.Config(app, lifespan="on", ws="none", timeout_graceful_shutdown=most_s, **quiet)
        )
        self._service, self._hello, self._grace_s = service, hello, grace_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._hello:
            print(self._hello, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.close(self._grace_s)
        super().handle_exit(sig, frame)


def serve(
    listening: socket.socket, service: Service, model: ServedModel, *, grace_s: float | int = GRACE_S
) -> None:
    """Serves until Ctrl-C or SIGTERM; a second Ctrl-C waits for nothing.

    Args:
        listening: from `bind`; it is closed at the end.
        grace_s: seconds for answers that are under way at the end.
    """
    hello = greeting(url_of(listening), model.name)
    server = Server(create_app(service, model), service, hello=hello, grace_s=grace_s)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn passes it on once all is closed: for a server it is the usual end
        pass
    finally:
        listening.close()
        if not service.stop():
            print("the step that was running has not ended; leaving without it", file=sys.stderr)
