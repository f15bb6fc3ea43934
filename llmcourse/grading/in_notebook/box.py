"""A verdict to look at, in a notebook and elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping

import ipywidgets

COLOURS = {  # of the edge and of the ground, readable in light and dark pages
    "pass": ("#2e7d32", "#edf7ee"),
    "near": ("#9a6700", "#fdf6e3"),
    "fail": ("#c8481a", "#fdf1ec"),
    "not written": ("#7a828c", "#f2f3f5"),
    "not run": ("#7a828c", "#f2f3f5"),
}


PROSE = ("hint", "slip", "note")  # the other lines are values


class Report:
    """A verdict to look at: a widget, and the same words as HTML and as plain text where none runs.

    Args:
        status: a key of `COLOURS`.
        lines: texts by what they are called; a text may have several lines.
    """

    def __init__(self, status: str, title: str, lines: Mapping[str, str]):
        self.status, self.title, self.lines = status, title, lines

    def __repr__(self) -> str:
        width = max(map(len, self.lines), default=0)
        below = "\n" + " " * (width + 6)
        lines = [f"    {name:{width}}  {text.replace(chr(10), below)}" for name, text in self.lines.items()]
        return "\n".join([self.title, *lines])

    def html(self) -> str:
        """One box; nothing in it but this module's own tags."""
        edge, ground = COLOURS[self.status]
        style = (
            f"border-left:4px solid {edge};background:{ground};color:#1d2733;padding:6px 12px;line-height:1.4"
        )
        cell = "padding:1px 12px 1px 0;vertical-align:top;text-align:left;background:none"
        mono = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"
        rows = "".join(
            f'<tr><td style="{cell};white-space:nowrap">{html.escape(name)}</td>'
            f'<td style="{cell};{"" if name in PROSE else mono}">{html.escape(text)}</td></tr>'
            for name, text in self.lines.items()
        )
        table = f'<table style="border:none;margin:4px 0 0;color:inherit">{rows}</table>' if rows else ""
        return f'<div role="status" style="{style}"><b>{html.escape(self.title)}</b>{table}</div>'

    def _repr_mimebundle_(self, include=None, exclude=None):
        page = self.html()
        live = ipywidgets.HTML(page)._repr_mimebundle_()
        return {**live, "text/html": page, "text/plain": repr(self)}
