"""What a student's function prints or displays: the first lines are seen, the others counted."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from IPython import get_ipython

from llmcourse.grading.printable import clean

SHOWN_LINES, SHOWN_WIDTH = 5, 160  # in a box
MOST_LINES, MOST_CHARACTERS = 30, 10_000  # that a demonstration may print
KEPT = SHOWN_LINES * (SHOWN_WIDTH + 1)  # characters


class Printed(io.TextIOBase):
    """A stream to write to, of which little is kept however much is written."""

    def __init__(self):
        self._head, self._whole_lines, self._in_line = "", 0, False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._head += text[: max(KEPT - len(self._head), 0)]
        self._whole_lines += text.count("\n")
        if text:
            self._in_line = not text.endswith("\n")
        return len(text)

    def __str__(self) -> str:
        """The first lines, cut, and how many more there are; empty where nothing was written."""
        shown = [clean(line, SHOWN_WIDTH) for line in self._head.split("\n")[:SHOWN_LINES]]
        if more := _more(self._whole_lines + self._in_line - len(shown)):
            shown.append(more)
        return "\n".join(shown).rstrip()


class Tap(io.TextIOBase):
    """A stream that lets the first lines through, as they come.

    Args:
        through: writes to where they go.
    """

    def __init__(self, through: Callable[[str], object]):
        self._through, self._lines, self._characters = through, 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = MOST_CHARACTERS - self._characters
        if self._lines < MOST_LINES and room > 0:
            first = "".join(text.splitlines(keepends=True)[: MOST_LINES - self._lines])
            self._through(first[:room])
        self._lines += text.count("\n")
        self._characters += len(text)
        return len(text)

    def end(self) -> None:
        """Says what was kept back."""
        if self._lines > MOST_LINES:
            self._through(_more(self._lines - MOST_LINES) + "\n")
        elif self._characters > MOST_CHARACTERS:
            self._through(f"… and {self._characters - MOST_CHARACTERS:,} more characters\n")


def _more(lines: int) -> str:
    return f"… and {lines:,} more line{'s' * (lines > 1)}" if lines > 0 else ""


@contextlib.contextmanager
def tapped() -> Iterator[None]:
    """Around a demonstration: what it prints is seen at once, as long as it is not too much."""
    tap = Tap(sys.stdout.write)
    try:
        with contextlib.redirect_stdout(tap):
            yield
    finally:
        tap.end()


@contextlib.contextmanager
def printed() -> Iterator[Printed]:
    """Around a call: what it writes to both streams, or displays, goes to that page and nowhere else."""
    page = Printed()
    with contextlib.redirect_stdout(page), contextlib.redirect_stderr(page), _displayed_on(page):
        yield page


@contextlib.contextmanager
def _displayed_on(page: Printed) -> Iterator[None]:
    publisher = getattr(get_ipython(), "display_pub", None)
    if not hasattr(publisher, "register_hook"):  # no notebook: there display() prints
        yield
        return

    def hook(message: dict[str, Any]) -> None:
        """Takes a message off its way to the page."""
        page.write(message["content"].get("data", {}).get("text/plain", "") + "\n")

    publisher.register_hook(hook)
    try:
        yield
    finally:
        publisher.unregister_hook(hook)
