"""Recorded students by kind: a row of panels for each measure, a panel for each domain.

Large marks are means over seeds with their standard error, small ones the seeds. The dashed line is the
teacher. A second figure shows what is gained over the twin from scratch, seed by seed, with an interval that
leaves the truth out in one case of 20, by Student's t: over three seeds that are 4.3 standard errors, since
these are estimated too. What reaches the line at 0 is no gain that one could tell from chance; and of 20 that
do not, chance may have made one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.distillation.recorded import (
    KINDS,
    LOWER_IS_BETTER,
    OverSeeds,
    StudyRow,
    check_measure,
    gain,
    missing,
    over_seeds,
    students_of,
)
from llmcourse.early_exit.classifier.intervals import student_t
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.kernel_bars import nothing_recorded, origin

MEASURES = ("nats", "agreement", "calibration_error")
NAMES = {
    "nats": "validation loss, nats",
    "kl": "KL to the teacher, nats",
    "agreement": "agreement with the teacher",
    "acceptance": "acceptance Σ min(p, q)",
    "calibration_error": "calibration error",
}
MARKS = dict(
    zip(
        KINDS,
        (("▼", "v", look.INK), *zip("●■▲◆", look.MARKERS, look.SERIES, strict=True)),
        strict=True,
    )
)
IN_NATS = ("nats", "kl")
MOST_DOMAINS, MOST_STUDENTS = 4, 4
LEVEL = 0.95  # of the interval around a gain
LEFT, RIGHT = 0.065, 1.03


def plot_study(
    rows: Sequence[StudyRow],
    title: str = "Students by what they learned from",
    subtitle: str = "",
    *,
    measures: Sequence[str] = MEASURES,
    students: Sequence[str] = (),
    domains: Sequence[str] = (),
    num_seeds: int = 1,
) -> look.Picture:
    """The figure.

    Args:
        rows: `study_rows` of what was recorded.
        measures: of `LOWER_IS_BETTER`, from top to bottom.
        students, domains: that should have been recorded, to say what is missing; none for those of the rows.
        num_seeds: how many of each.

    Raises:
        ValueError: more domains or students than can be told apart, or another measure.
    """
    for measure in measures:
        check_measure(measure)
    domains, lacking = _expected(rows, students, domains, num_seeds)
    if not rows:
        return nothing_recorded(title, lacking)
    students, known = students_of(rows), _origin(rows)
    with look.style():
        picture, grid = _grid(len(measures), domains, title, [known, subtitle], lacking)
        for line, measure in enumerate(measures):
            ends = [
                _draw_measure(axes, rows, students, domain, measure)
                for axes, domain in zip(grid[line], domains, strict=True)
            ]
            if measure in IN_NATS:  # domains differ by far more than students
                for axes, own in zip(grid[line], ends, strict=True):
                    _scale([axes], own, measure)
            else:
                _scale(grid[line], [end for own in ends for end in own], measure)
            grid[line][0].text(0, 1.05, NAMES[measure], transform=grid[line][0].transAxes, size=10)
            better = "lower is better" if LOWER_IS_BETTER[measure] else "higher is better"
            note = {"transform": grid[line][-1].transAxes, "size": 8.5, "color": look.MUTED, "ha": "right"}
            grid[line][-1].text(1, 1.05, better, **note)
        _name_students(grid[-1], students)
        told = [_told(rows, student, domain, measures) for student in students for domain in domains]
        picture.alt = f"{', '.join(filter(None, (title, known)))}. " + " ".join(told)
    return picture


def plot_gains(
    rows: Sequence[StudyRow],
    title: str = "What distillation adds at equal tokens",
    subtitle: str = "over the twin from scratch, seed by seed",
    *,
    measure: str = "nats",
    students: Sequence[str] = (),
    domains: Sequence[str] = (),
    num_seeds: int = 1,
) -> look.Picture:
    """Gains over the twin from scratch: marks are means of differences, lines intervals of `LEVEL`.

    Arguments and errors as those of `plot_study`, and as `recorded.gain`.
    """
    check_measure(measure)
    domains, lacking = _expected(rows, students, domains, num_seeds)
    kinds = [kind for kind in KINDS if kind != "scratch"]
    if not any(gain(rows, row.student, row.kind, row.domain) for row in rows if row.kind in kinds):
        return nothing_recorded(title, lacking or ["twins from scratch"])
    students, known = students_of(rows), _origin(rows)
    with look.style():
        picture, (grid,) = _grid(1, domains, title, [known, subtitle], lacking, kinds)
        ends, told = [0.0], []
        for axes, domain in zip(grid, domains, strict=True):
            axes.axhline(0, color=look.INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2)
            for at, student in enumerate(students):
                for kind in kinds:
                    found = gain(rows, student, kind, domain, measure)
                    if found is not None:
                        ends += _draw_mark(axes, _place(at, kind), found, kind, _span(found))
                        told.append(f"{student} {KINDS[kind]} on {domain} {_gain_in_words(found)}")
        _scale(grid, ends, measure, signed=True)
        axes = grid[0]
        axes.text(0, 1.05, f"gain in {NAMES[measure]}", transform=axes.transAxes, size=10)
        note = {"transform": grid[-1].transAxes, "size": 8.5, "color": look.MUTED, "ha": "right"}
        grid[-1].text(1, 1.05, f"lines: {LEVEL:.0%} by Student's t", **note)
        _name_students(grid, students)
        picture.alt = (
            f"{', '.join(filter(None, (title, known)))}. Gain over the twin from scratch: {'; '.join(told)}."
        )
    return picture


def _expected(
    rows: Sequence[StudyRow], students: Sequence[str], domains: Sequence[str], num_seeds: int
) -> tuple[list[str], list[str]]:
    """Domains to draw, and what is missing."""
    students = list(dict.fromkeys((*students, *students_of(rows))))
    domains = list(dict.fromkeys((*domains, *(row.domain for row in rows))))
    for name, found, most in (("domains", domains, MOST_DOMAINS), ("students", students, MOST_STUDENTS)):
        if len(found) > most:
            raise ValueError(f"{name} must be at most {most}, got {len(found)}; draw some apart")
    return domains, missing(rows, students, domains, num_seeds=num_seeds)


def _grid(
    lines: int,
    domains: Sequence[str],
    title: str,
    subtitles: Sequence[str],
    lacking: Sequence[str],
    kinds: Sequence[str] = tuple(KINDS),
) -> tuple[look.Picture, list[list]]:
    """Panels, a column for each domain, with a key of the kinds above."""
    high, gap, below = 1.25, 0.42, 0.36 + 0.22 * bool(lacking)
    height = 1.56 + lines * high + (lines - 1) * gap + below
    picture = look.Picture(look.WIDTH, height)
    look.heading(picture, title, " · ".join(filter(None, subtitles)))
    key = [*kinds, *(["teacher"] if "scratch" in kinds else [])]
    for at, kind in enumerate(key):
        letter, color, name = "┄", look.MUTED, "teacher"
        if kind in MARKS:
            letter, _, color = MARKS[kind]
            name = KINDS[kind]
        picture.text(0.012 + 0.145 * at, 1 - 0.86 / height, f"{letter} {name}", color=color, size=9.5)
    share = (RIGHT - LEFT) / len(domains)
    grid = []
    for line in range(lines):
        bottom = (below + (lines - 1 - line) * (high + gap)) / height
        places = [
            (LEFT + share * column, bottom, share - 0.045, high / height) for column in range(len(domains))
        ]
        grid.append([picture.add_axes(place) for place in places])
    for axes, domain in zip(grid[0], domains, strict=True):
        words = {"transform": axes.transAxes, "weight": "bold", "size": 10.5, "ha": "center"}
        axes.text(0.5, 1.21, readable(domain), **words)
    if lacking:
        style = {"size": 9, "color": look.MUTED, "va": "bottom"}
        picture.text(0.012, 0.05 / height, look.shorten(_lacking_words(lacking), 120), **style)
    return picture, grid


def _origin(rows: Sequence[StudyRow]) -> str:
    """Device and date, of rows that know them."""
    told = [{"device": row.device, "date": row.date} for row in rows if row.device and row.date]
    return origin(told) if told else ""


def _lacking_words(lacking: Sequence[str]) -> str:
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"Not recorded yet: {lacking[0]}{more}."


def _place(student: int, kind: str) -> float:
    return student + 0.16 * (list(KINDS).index(kind) - (len(KINDS) - 1) / 2)


def _draw_measure(
    axes, rows: Sequence[StudyRow], students: Sequence[str], domain: str, measure: str
) -> list[float]:
    """Marks of one panel; returns how far they reach."""
    ends = []
    for at, student in enumerate(students):
        for kind in KINDS:
            found = over_seeds(rows, student, kind, domain, measure)
            if found is not None:
                ends += _draw_mark(axes, _place(at, kind), found, kind, 1)
    if measure == "nats":
        teacher = {row.teacher_nats for row in rows if row.domain == domain}
        for level in teacher:
            axes.axhline(level, color=look.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        ends += teacher
    return ends


def _span(found: OverSeeds) -> float:
    """Standard errors of the interval; of a single seed there is none."""
    return student_t(LEVEL, len(found.values) - 1) if len(found.values) > 1 else 0.0


def _draw_mark(axes, x: float, found: OverSeeds, kind: str, span: int | float) -> list[float]:
    _, marker, color = MARKS[kind]
    reach = span * (found.error or 0.0)
    if found.error is not None:
        axes.plot([x] * 2, [found.mean - reach, found.mean + reach], color=color, linewidth=1.6, zorder=3)
    small = {"markersize": 2.4, "linestyle": "none", "alpha": 0.55, "zorder": 2}
    axes.plot([x + 0.05] * len(found.values), found.values, "o", color=color, **small)
    axes.plot(x, found.mean, marker, color=color, markersize=6.5, zorder=4)
    return [found.mean - reach, found.mean + reach, *found.values]


def _scale(grid: Sequence, ends: Sequence[float], measure: str, signed: bool = False) -> None:
    """One scale for these panels, so that they can be compared."""
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.12 * (high - low or abs(high) or 1.0)
    for axes in grid:
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if measure in IN_NATS:
            sign = "+" if signed else ""
            words = lambda y, _, sign=sign: f"{y:{sign}.3g}".replace("-", "−") if y else "0"  # noqa: E731
            axes.yaxis.set_major_formatter(FuncFormatter(words))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}%".replace("-", "−")))
        axes.tick_params(labelsize=9, labelbottom=False)
        axes.grid(axis="y", color="#eceff2", linewidth=0.8)
        axes.set_axisbelow(True)
        look.bare(axes)
    for axes in grid[1:]:
        axes.tick_params(labelleft=False)


def _name_students(grid: Sequence, students: Sequence[str]) -> None:
    for axes in grid[0].figure.axes:
        axes.set_xlim(-0.55, len(students) - 0.45)
        axes.set_xticks(range(len(students)), [])
    for axes in grid:
        names = [readable(look.shorten(name, 12)) for name in students]
        axes.set_xticks(range(len(students)), names)
        axes.tick_params(axis="x", labelbottom=True, labelsize=9.5)


def _told(rows: Sequence[StudyRow], student: str, domain: str, measures: Sequence[str]) -> str:
    parts = []
    for kind in KINDS:
        found = {name: over_seeds(rows, student, kind, domain, name) for name in measures}
        if all(found.values()):
            numbers = ", ".join(f"{NAMES[name]} {value}" for name, value in found.items())
            parts.append(f"{KINDS[kind]}: {numbers}")
    return f"{student} on {domain}: {'; '.join(parts) or 'not recorded'}."


def _gain_in_words(found: OverSeeds) -> str:
    errors = found.errors_from_zero
    far = "" if errors is None or not math.isfinite(errors) else f", {errors:.1f} standard errors"
    return f"{found}{far}"
