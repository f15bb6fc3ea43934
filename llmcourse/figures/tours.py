"""Ways through the course as tables: minutes of every chapter and lab, and six weeks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcourse.figures import language
from llmcourse.figures.course_map import Chapter, duration


@dataclass(frozen=True)
class Table:
    """A Markdown table that shows itself in a notebook, with links that open chapters and labs."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_markdown_(self) -> str:
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return language.table("\n".join("| " + " | ".join(line) + " |" for line in lines))

    def __repr__(self) -> str:
        return "\n".join(" · ".join(row) for row in (self.head, *self.rows))


def minutes_table(
    chapters: Sequence[Chapter], labs: Mapping[str, Sequence], points: Mapping[str, int]
) -> Table:
    """A row for each chapter and its lab, and the sum.

    Args:
        labs: exercises by stem; each has its `minutes`.
        points: of each lab, by stem.
    """
    rows, whole = [], [0, 0]
    for chapter in chapters:
        exercises = labs.get(chapter.stem, ())
        minutes = sum(exercise.minutes for exercise in exercises)
        whole = [whole[0] + chapter.minutes, whole[1] + minutes]
        lab = f"[lab {chapter.number}](../labs/{chapter.stem}.ipynb)" if exercises else "–"
        told = (
            (f"{len(exercises)}", f"{points[chapter.stem]}", duration(minutes)) if exercises else ("–",) * 3
        )
        rows.append((f"{chapter.number}", _link(chapter), duration(chapter.minutes), lab, *told))
    rows.append(("", "**in all**", f"**{duration(whole[0])}**", "", "", "", f"**{duration(whole[1])}**"))
    return Table(("", "chapter", "reading", "lab", "exercises", "points", "time for the lab"), tuple(rows))


def six_weeks(chapters: Sequence[Chapter], lab_minutes: Mapping[str, int]) -> Table:
    """A chapter a week: what is read, what is handed in, and the hours at home and at the machines."""
    rows, before = [], None
    for week, chapter in enumerate(chapters, 1):
        own = lab_minutes.get(chapter.stem, 0)
        due = f"lab {before.number}" if before else "–"
        hours = duration(chapter.minutes + own)
        rows.append((f"{week}", _link(chapter), f"lab {chapter.number}", due, hours))
        before = chapter
    head = ("week", "chapter", "begin", "hand in", "time of a student")
    return Table(head, tuple(rows))


def _link(chapter: Chapter) -> str:
    return f"[{chapter.title}]({chapter.stem}.ipynb)"
