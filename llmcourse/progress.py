"""Bars with the time left, for what takes more than a moment: widgets in a notebook, text elsewhere.

A bar goes away at its end, so that nothing of it stays in a saved notebook, whose reader would be told of a
widget that is not found; where a loop is interrupted, a line says how far it came. In a file each of its
pictures is a line, so that there it tells now and then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

LOGGED_EVERY_S = 30  # to a file
IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


def bar(
    items: Iterable[Item] | None,
    what: str,
    *,
    unit: str = "it",
    total: int | None = None,
    initial: int = 0,
    shown: bool = True,
    after_s: int | float = 0,
) -> tqdm:
    """The same items, one after the other, and a bar of how many are done and when all will be.

        for name, params in bar(remedies.items(), "remedies"):

    Args:
        items: to iterate over; None for a bar moved by hand, `with bar(None, …) as one: one.update()`.
        what: stands before the bar.
        unit: of the items.
        total: how many there are, where `items` does not know.
        initial: how many were done before.
        shown: False shows nothing.
        after_s: not before so many seconds, for what may be over by then.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    # tqdm's own switch, which its form for notebooks does not look at.
    hidden = not shown or os.environ.get("TQDM_DISABLE", "").lower() in ("1", "true")
    settings = {"total": total, "initial": initial, "unit": unit, "delay": after_s}
    in_file = not IN_NOTEBOOK and not sys.stderr.isatty()
    if in_file:
        settings |= {"mininterval": LOGGED_EVERY_S, "maxinterval": LOGGED_EVERY_S, "miniters": 1}
    kind = _InNotebook if IN_NOTEBOOK else tqdm
    return kind(items, desc=what, leave=in_file, disable=hidden, **settings)


class _InNotebook(tqdm):
    """A widget as tqdm's, in an output that can be written over when it ends."""

    def __init__(self, *args, **settings):
        self.output = None
        super().__init__(*args, display=False, **settings)
        if not self.disable and not self.delay:
            self.show()

    def show(self) -> None:
        from IPython.display import display  # there where a notebook is, and not needed elsewhere

        self.output, self.displayed = display(self.container, display_id=True), True

    def display(self, *args, check_delay: bool = True, **settings) -> None:
        if check_delay and self.delay and not self.displayed:
            self.show()
        super().display(*args, check_delay=check_delay, **settings)

    def close(self) -> None:
        already = self.disable
        super().close()
        if self.output is not None and not already:
            whole = self.format_meter(**{**self.format_dict, "bar_format": "{l_bar}{r_bar}"})
            stopped = self.total and self.n < self.total
            self.output.update({"text/plain": whole if stopped else ""}, raw=True)
