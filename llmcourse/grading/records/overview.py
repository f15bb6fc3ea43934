"""The instructor's page: who has how many points, how they are spread, and what was hard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, median
from urllib.parse import quote

from llmcourse.grading.records.adjustments import Mark, Row
from llmcourse.grading.records.feedback import WORDS, file_name, page, text
from llmcourse.grading.results import QuestionResult

SIGNS = {"pass": "✓", "near": "◐", "fail": "✗", "not run": "–", "error": "!"}
BINS = 10
WIDTH, HEIGHT, MARGIN = 520, 180, 24  # of the histogram, in its own units


def overview(labs: dict[str, list[Row]]) -> str:
    """The page, with a section a lab.

    Args:
        labs: rows by lab.
    """
    sections = [_lab(lab, rows) for lab, rows in labs.items()]
    return page("Grades", "\n".join(["<h1>Grades</h1>", *(sections or ["<p>Nothing is graded yet.</p>"])]))


def _lab(lab: str, rows: list[Row]) -> str:
    shares = [row.points / row.max_points for row in rows if row.points is not None and row.max_points]
    parts = [f"<section>\n<h2>Lab {text(lab)}</h2>", f"<p>{_summary(rows, shares)}</p>"]
    if shares:
        parts += ["<h3>Points</h3>", histogram(shares), "<h3>Hardest first</h3>", _hardest(rows)]
    parts += ["<h3>Students</h3>", _students(rows), "</section>"]
    return "\n".join(parts)


def _summary(rows: list[Row], shares: list[float]) -> str:
    found = [f"{len(rows)} submissions"]
    for status in ("rejected", "error"):
        if count := sum(row.result.status == status for row in rows):
            found.append(f"{count} {status}")
    if shares:
        found.append(f"mean {mean(shares):.0%}, median {median(shares):.0%} of the points")
    return "; ".join(found)


def histogram(shares: list[float]) -> str:
    """How many students have which share of the points, as SVG; a bonus counts in the last bar."""
    counts = [0] * BINS
    for share in shares:
        counts[min(int(share * BINS), BINS - 1)] += 1
    width, room = WIDTH / BINS, HEIGHT - 2 * MARGIN
    parts = []
    for index, count in enumerate(counts):
        left, height = index * width, room * count / max(counts)
        middle, top = left + width / 2, HEIGHT - MARGIN - height
        last = "]" if index == BINS - 1 else ")"
        span = f"[{index * 100 // BINS}, {(index + 1) * 100 // BINS}{last}"
        parts.append(
            f'<rect x="{left + 2:.1f}" y="{top:.1f}" width="{width - 4:.1f}" height="{height:.1f}" '
            f'fill-opacity="0.6"><title>{count} in {span} %</title></rect>'
        )
        label = f'text-anchor="middle" font-size="12" x="{middle:.1f}"'
        parts.append(f'<text {label} y="{top - 4:.1f}">{count or ""}</text>')
        parts.append(f'<text {label} y="{HEIGHT - 6}">{index * 100 // BINS} %</text>')
    title = f"Histogram of {len(shares)} students' share of the points"
    return (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}">\n' + "\n".join(parts) + "\n</svg>"
    )


@dataclass(frozen=True)
class Judged:
    """What the judged answers to one exercise came to.

    Args:
        passed, in_part: how many earned all points, and how many a part of them.
        share: of the points, the mean.
    """

    exercise: str
    passed: int
    in_part: int
    total: int
    share: float

    def __str__(self) -> str:
        return f"{self.passed} of {self.total}" + (f", {self.in_part} in part" if self.in_part else "")


def hardest(rows: list[Row]) -> list[Judged]:
    """What each exercise came to, the lowest share of the points first."""
    judged: dict[str, list[QuestionResult]] = {}
    for row in rows:
        for question in row.result.questions:
            if question.status in ("pass", "fail"):
                judged.setdefault(question.exercise, []).append(question)
    return sorted((_judged(name, found) for name, found in judged.items()), key=lambda found: found.share)


def _judged(exercise: str, found: list[QuestionResult]) -> Judged:
    outcomes = [question.outcome for question in found]
    share = mean(question.points / question.max_points for question in found)
    return Judged(exercise, outcomes.count("pass"), outcomes.count("near"), len(found), share)


def _hardest(rows: list[Row]) -> str:
    lines = [
        f'<tr><td>{text(found.exercise)}</td><td class="number">{found}</td>'
        f'<td class="number">{found.share:.0%}</td></tr>'
        for found in hardest(rows)
    ]
    head = '<tr><th>exercise</th><th class="number">passed</th><th class="number">mean of points</th></tr>'
    return f'<div class="wide"><table>\n{head}\n' + "\n".join(lines) + "\n</table></div>"


def _students(rows: list[Row]) -> str:
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    names = "".join(f'<th class="tall">{text(name)}</th>' for name in exercises)
    head = f'<thead>\n<tr><th>student</th><th class="number">points</th>{names}</tr>\n</thead>'
    lines = [_student(row, exercises) for row in rows]
    return f'<div class="wide"><table>\n{head}\n' + "\n".join(lines) + "\n</table></div>"


def _student(row: Row, exercises: list[str]) -> str:
    """A row of points and signs and, where there is something to say, one below as wide as the table."""
    link = f'<a href="feedback/{quote(file_name(row.result.student))}">{text(row.result.student)}</a>'
    points = row.result.status if row.points is None else f"{row.points:g} of {row.max_points:g}"
    marks = {mark.question.exercise: mark for mark in row.marks}
    signs = "".join(_sign(marks.get(name)) for name in exercises)
    lines = [f'<tr><td class="long">{link}</td><td class="number">{points}</td>{signs}</tr>']
    if notes := "\n".join(f"<li>{text(note)}</li>" for note in _notes(row)):
        lines.append(f'<tr><td class="notes" colspan="{len(exercises) + 2}"><ul>\n{notes}\n</ul></td></tr>')
    return "<tbody>\n" + "\n".join(lines) + "\n</tbody>"


def _sign(mark: Mark | None) -> str:
    if mark is None:
        return "<td></td>"
    outcome = mark.question.outcome
    kind = outcome if outcome in ("pass", "fail") else "wait"
    sign = SIGNS[outcome] + ("*" if mark.adjusted else "")
    return f'<td class="sign {kind}" title="{WORDS[outcome]}">{sign}</td>'


def _notes(row: Row) -> Iterator[str]:
    """What an instructor should know; what several exercises have in common is said once."""
    yield from filter(None, (row.result.reason, *row.result.flags))
    exercises: dict[str, list[str]] = {}
    for question in row.result.questions:
        for flag in question.flags:
            exercises.setdefault(flag, []).append(question.exercise)
    for flag, (first, *others) in exercises.items():
        more = f" and {len(others)} more" if len(others) > 1 else f", {others[0]}" if others else ""
        yield f"{first}{more}: {flag}"
    yield from (f"{mark.question.exercise}: {mark.question.reason}" for mark in row.waiting)
    yield from (f"corrected: {adjustment}, {adjustment.reason}" for adjustment in row.adjustments)
