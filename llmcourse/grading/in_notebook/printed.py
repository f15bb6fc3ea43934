"""What a student's function prints or displays: the first lines are kept, the others counted."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from IPython import get_ipython

from llmcourse.grading.printable import clean

SHOWN_LINES, SHOWN_WIDTH = 5, 160
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
        more = self._whole_lines + self._in_line - len(shown)
        if more > 0:
            shown.append(f"… and {more:,} more line{'s' * (more > 1)}")
        return "\n".join(shown).rstrip()


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
