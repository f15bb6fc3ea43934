"""Messages over a socket: each is its length (4 bytes) and then itself, read with a deadline."""

from __future__ import annotations

import select
import socket
import struct

from llmcourse.grading.process.deadline import Deadline
from llmcourse.grading.process.wire import LIMITS, TooLarge

CHUNK = 1 << 16
_LENGTH = struct.Struct(">I")


class Late(TimeoutError):
    """The deadline passed."""


class Closed(ConnectionError):
    """The other side is gone."""


class Frames:
    """Messages out of a stream of bytes, of which no more than one and a chunk are held."""

    def __init__(self, max_bytes: int = LIMITS.frame_bytes):
        self.max_bytes = max_bytes
        self._held = bytearray()

    def __len__(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> None:
        """Takes what a socket gave."""
        self._held += data

    def pop(self) -> bytes | None:
        """The next message, or None while it is not whole.

        Raises:
            TooLarge: a message is announced that is larger than allowed.
        """
        if len(self._held) < _LENGTH.size:
            return None
        size = _LENGTH.unpack_from(self._held)[0]
        if size > self.max_bytes:
            raise TooLarge(f"a message of {size:,} bytes, at most {self.max_bytes:,}")
        if len(self._held) < _LENGTH.size + size:
            return None
        message = bytes(self._held[_LENGTH.size : _LENGTH.size + size])
        del self._held[: _LENGTH.size + size]
        return message


def send(sock: socket.socket, message: bytes, deadline: Deadline | None = None) -> None:
    """Writes a message as a frame.

    Args:
        deadline: None waits for ever.

    Raises:
        Late: the other side did not read it in time.
        Closed: it is gone.
    """
    left = memoryview(_LENGTH.pack(len(message)) + message)
    while left:
        wait(sock, select.POLLOUT, deadline)
        try:
            left = left[sock.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(str(error)) from None


def receive(
    sock: socket.socket, deadline: Deadline | None = None, max_bytes: int = LIMITS.frame_bytes
) -> bytes:
    """Reads one frame, and not a byte of the next.

    Raises:
        Late: it was not whole by the deadline.
        Closed: the other side is gone.
        TooLarge: it is announced to be larger than `max_bytes`.
    """
    size = _LENGTH.unpack(_exactly(sock, _LENGTH.size, deadline))[0]
    if size > max_bytes:
        raise TooLarge(f"a message of {size:,} bytes, at most {max_bytes:,}")
    return _exactly(sock, size, deadline)


def _exactly(sock: socket.socket, size: int, deadline: Deadline | None) -> bytes:
    held = bytearray()
    while len(held) < size:
        wait(sock, select.POLLIN, deadline)
        try:
            data = sock.recv(min(CHUNK, size - len(held)), socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(str(error)) from None
        if not data:
            raise Closed("the other side closed the connection")
        held += data
    return bytes(held)


def wait(sock: socket.socket, event: int, deadline: Deadline | None) -> None:
    """Returns when the socket is ready, or raises `Late`."""
    poll = select.poll()
    poll.register(sock, event)
    while not poll.poll(None if deadline is None else deadline.step() * 1000):
        if deadline is not None and deadline.left() <= 0:
            raise Late("the deadline passed")
