"""A speculative text as the lecture prints it, in three colours: drafts that stood, drafts that fell, and
the target's own tokens.

Leviathan et al. 2023, figure 1, prints a line for each step: the text so far, and what the step made of it.
No meaning hangs on colour alone: what stood is underlined, what fell is struck out, what the target wrote
is white on dark. What was drafted after a fallen draft is left out, as it was never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmcourse.figures import language
from llmcourse.figures.speculation_trace import SpeculationTrace, TracedStep, TracedToken
from llmcourse.figures.text_strip import boxed_html, framed_html, keys_html, unmarked_html

Mark = Literal["accepted", "rejected", "own", "proposed"]
ACCEPTED, ACCEPTED_EDGE = "#cdeae3", "#1f7a68"  # green
REJECTED, REJECTED_EDGE = "#fbe3da", "#a3350d"  # red
OWN = "#1b5587"  # blue
NAMES: dict[Mark, str] = {
    "accepted": "accepted draft",
    "rejected": "rejected draft",
    "own": "the target's own",
    "proposed": "draft, not judged yet",
}
STYLES: dict[Mark, str] = {
    "accepted": f"background:{ACCEPTED};border-bottom:2px solid {ACCEPTED_EDGE};color:#1d2733",
    "rejected": f"background:{REJECTED};color:{REJECTED_EDGE};text-decoration:line-through 2px",
    "own": f"background:{OWN};color:#fff",
    "proposed": "background:#fff;outline:1px dashed #55606c;color:#1d2733",
}
IN_TEXT: dict[Mark, tuple[str, str]] = {
    "accepted": ("", ""),
    "rejected": ("[-", "-]"),
    "own": ("{+", "+}"),
    "proposed": ("(?", "?)"),
}


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and who wrote it; a character that several tokens wrote is the last one's."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Line:
    """What stood before, unmarked, and the pieces after it."""

    before: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class SpeculationStrip:
    """Shows itself in a notebook; as text, `[-fell-]` and `{+the target's own+}`."""

    lines: tuple[Line, ...]

    def _repr_html_(self) -> str:
        return language.page(strip_html(self))

    def __repr__(self) -> str:
        return "\n".join(
            line.before + "".join(piece.text.join(IN_TEXT[piece.mark]) for piece in line.pieces)
            for line in self.lines
        )


def text_so_far(trace: SpeculationTrace, at: int | None = None) -> SpeculationStrip:
    """The whole text up to a phase, every step's pieces marked.

    Args:
        at: the phase, None for the last.

    Raises:
        ValueError: there is no such phase.
    """
    phase = trace.check(len(trace.phases) - 1 if at is None else at)
    marked = [word for step in trace.steps[: phase.step] for word in _marked(step)]
    step = trace.steps[phase.step]
    if phase.kind == "draft":
        marked += [(draft.word, "proposed") for draft in step.drafts[: phase.drafted]]
    else:
        marked += _marked(step, with_own=phase.kind == "target")
    return SpeculationStrip((Line(trace.prompt, marked_pieces(marked)),))


def line_by_step(trace: SpeculationTrace) -> SpeculationStrip:
    """A line for each step, as in the lecture: the text before it, and what it made of its drafts."""
    lines = [
        Line(trace.text(number), marked_pieces(_marked(step))) for number, step in enumerate(trace.steps)
    ]
    return SpeculationStrip(tuple(lines))


def strip_html(
    strip: SpeculationStrip,
    legend: bool = True,
    font: bool = True,
    keys: Sequence[Mark] = ("accepted", "rejected", "own"),
) -> str:
    """Self-contained HTML: nothing of the text is taken for markup.

    Args:
        keys: marks that the legend explains whether or not the text has them; others where it has.
        font: whether to bring the Chinese characters along, for machines without a Chinese font.
    """
    body = "".join(f"<div>{_line_html(line)}</div>" for line in strip.lines)
    return framed_html(body + (_legend_html(strip, keys) if legend else ""), repr(strip) if font else "")


def _marked(step: TracedStep, with_own: bool = True) -> list[tuple[TracedToken, Mark]]:
    marked = [(draft.word, draft.fate) for draft in step.drafts if draft.fate != "dropped"]
    return marked + ([(step.own, "own")] if with_own and step.own is not None else [])


def marked_pieces(marked: Sequence[tuple[TracedToken, Mark]]) -> tuple[Piece, ...]:
    """A piece for each token; one that leaves a character unfinished waits for the token that completes it.

    A fallen draft has no such token, nor has the last one of all: they show as bytes.
    """
    pieces, waiting, place = [], None, 0
    for word, mark in marked:
        whole = word.label if word.special else word.text
        if whole or mark == "rejected":
            pieces.append(Piece(whole or word.label, mark))
            waiting = waiting if mark == "rejected" else None
        else:
            place = place if waiting else len(pieces)
            waiting = Piece((waiting.text if waiting else "") + word.label, mark)
    if waiting:
        pieces.insert(place, waiting)
    return tuple(pieces)


def _line_html(line: Line) -> str:
    return unmarked_html(line.before) + "".join(_piece_html(piece) for piece in line.pieces)


def _piece_html(piece: Piece) -> str:
    style = f"{STYLES[piece.mark]};border-radius:3px;padding:1px 0;margin:0 1px"
    if piece.mark != "rejected":
        return boxed_html(piece.text, NAMES[piece.mark], style)
    text = piece.text.replace("\n", "⏎")  # it is no part of the text, which it must not break
    return boxed_html(text, NAMES[piece.mark], style, tag="del")


def _legend_html(strip: SpeculationStrip, always: Sequence[Mark]) -> str:
    shown = {piece.mark for line in strip.lines for piece in line.pieces}
    keys = " ".join(
        f'<span style="{STYLES[mark]};border-radius:3px;padding:1px 6px;margin-right:8px">{name}</span>'
        for mark, name in NAMES.items()
        if mark in always or mark in shown
    )
    return keys_html(keys)
