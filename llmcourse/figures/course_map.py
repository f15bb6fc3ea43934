"""The chapters as a map: what each one needs, what it draws on, and how long it takes.

Everything but `NEEDS` is read from the saved chapters themselves: their titles, the minutes of their "Time"
lines, and which earlier chapters their texts speak of.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from llmcourse.figures import language
from llmcourse.figures import style as look

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# What must have been read before: a chapter goes on from these. Its text speaks of each of them.
NEEDS = {1: (), 2: (1,), 3: (2,), 4: (2,), 5: (2,), 6: (4, 5)}
PLACES = {1: (0, 1), 2: (1, 1), 3: (2, 0), 4: (2, 1), 5: (2, 2), 6: (3, 1)}  # column, row from above
TIME = re.compile(r"\*\*(?:Time|时间|用时|所需时间)\*\*\D*(\d+)")
SPOKEN_OF = re.compile(r"\b[Cc]hapters? (\d)(?:(?:,| and| to) (\d))?")
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 1.86, 1.0, 2.18, 1.26  # inches
LEFT, TOP = 0.10, 0.86


@dataclass(frozen=True)
class Chapter:
    """One chapter, as its notebook says.

    Attributes:
        stem: of its file, `01_decoding`, and of its lab's.
        minutes: of reading and playing.
        speaks_of: the earlier chapters that its text names.
    """

    number: int
    stem: str
    title: str
    minutes: int
    speaks_of: tuple[int, ...]

    @property
    def draws_on(self) -> tuple[int, ...]:
        """Earlier chapters that it names but that need not have been read."""
        needed = NEEDS[self.number]
        return tuple(n for n in self.speaks_of if n not in needed and n not in _below(needed))


def _below(needed: Sequence[int]) -> set[int]:
    """What comes along with what is needed."""
    found = {earlier for number in needed for earlier in NEEDS[number]}
    return found | _below(tuple(found)) if found else found


def read_course(folder: Path = NOTEBOOKS, titles: Path | None = None) -> tuple[Chapter, ...]:
    """The chapters of a folder, in their order.

    Args:
        titles: a folder of the same chapters in another language, whose titles are taken where it has them.

    Raises:
        ValueError: a chapter has no title or does not say how long it takes.
    """
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if path.stem.startswith("00"):
            continue  # this is where the map hangs
        found.append(_chapter(path, titles / path.name if titles else path))
    return tuple(found)


def _chapter(path: Path, titled: Path) -> Chapter:
    text, number = _markdown(path), int(path.stem[:2])
    title = re.match(r"# .*?·\s*(.+)", _markdown(titled) if titled.is_file() else text)
    minutes = TIME.search(text)
    if title is None or minutes is None:
        what = (
            "a title like `# Chapter 1 · Decoding`" if title is None else "a line `**Time** about 60 minutes`"
        )
        raise ValueError(f"{path.name} must have {what}, got none; mend its text and run `make notebooks`")
    named = {int(n) for match in SPOKEN_OF.finditer(text) for n in match.groups() if n}
    earlier = sorted(n for n in named if n < number)
    return Chapter(number, path.stem, title[1].strip(), int(minutes[1]), tuple(earlier))


def _markdown(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def duration(minutes: int) -> str:
    """`1 h 40`, and minutes alone below an hour."""
    return f"{minutes // 60} h {minutes % 60:02}" if minutes >= 60 else f"{minutes} min"


@dataclass(frozen=True)
class CourseMap:
    """The drawn map, each box of which opens its chapter."""

    picture: look.Picture
    chapters: tuple[Chapter, ...]

    @property
    def alt(self) -> str:
        return self.picture.alt

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        width, height = self.picture.get_size_inches()
        links = []
        for chapter in self.chapters:
            left, top = _corner(chapter.number)
            place = (left / width, top / height, BOX_WIDTH / width, BOX_HEIGHT / height)
            at = ";".join(
                f"{side}:{share:.2%}"
                for side, share in zip(("left", "top", "width", "height"), place, strict=True)
            )
            words = html.escape(f"{chapter.number} · {chapter.title}")
            links.append(
                f'<a href="{chapter.stem}.ipynb" title="{words}" style="position:absolute;{at};opacity:0;'
                f'overflow:hidden">{words}</a>'
            )
        size = f"width:100%;max-width:{width * look.PIXELS_PER_INCH:.0f}px"
        source = f"data:image/png;base64,{_small(self.picture)}"
        image = f'<img alt="{html.escape(self.alt)}" style="{size}" src="{source}">'
        return language.page(f'<div style="position:relative;{size}">{image}{"".join(links)}</div>')


def _small(picture: look.Picture) -> str:
    """The picture as a PNG of few colours, which is what is saved with the page."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(picture.png(2.0))).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _corner(number: int) -> tuple[float, float]:
    """Inches from the left and from above."""
    column, row = PLACES[number]
    return LEFT + column * COLUMN, TOP + row * ROW


def course_map(chapters: Sequence[Chapter], lab_minutes: Mapping[str, int]) -> CourseMap:
    """Boxes for the chapters, arrows for what they need, dashes for what they draw on.

    Args:
        lab_minutes: of each lab, by its stem.

    Raises:
        ValueError: a chapter has no place on the map.
    """
    for chapter in chapters:
        if chapter.number not in PLACES:
            raise ValueError(
                f"chapters must be among {', '.join(map(str, PLACES))}, got {chapter.number}; give it a "
                "place in course_map.PLACES"
            )
    height = TOP + 3 * ROW
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        total = sum(c.minutes + lab_minutes.get(c.stem, 0) for c in chapters)
        look.heading(
            picture,
            "The map of the course",
            f"{duration(total)} in all: chapters to read and play with, and labs. Click a box to open it.",
        )
        axes = picture.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, look.WIDTH), ylim=(height, 0))
        axes.axis("off")
        numbers = {chapter.number for chapter in chapters}
        for chapter in chapters:
            for other in (n for n in NEEDS[chapter.number] if n in numbers):
                _arrow(axes, other, chapter.number, needed=True)
            for other in (n for n in chapter.draws_on if n in numbers):
                _arrow(axes, other, chapter.number, needed=False)
        for chapter in chapters:
            _box(axes, chapter, lab_minutes.get(chapter.stem, 0))
        _key(axes, height)
    picture.alt = _in_words(chapters, lab_minutes)
    return CourseMap(picture, tuple(chapters))


def _arrow(axes, start: int, end: int, needed: bool) -> None:
    """From the right edge of one box to the left edge of the other; within a column, from edge to edge."""
    (left, top), (to_left, to_top) = _corner(start), _corner(end)
    middle, to_middle = top + BOX_HEIGHT / 2, to_top + BOX_HEIGHT / 2
    if left == to_left:
        down = to_top > top
        begin = left + BOX_WIDTH / 2, top + (BOX_HEIGHT if down else 0)
        finish = to_left + BOX_WIDTH / 2, to_top + (0 if down else BOX_HEIGHT)
        if abs(PLACES[end][1] - PLACES[start][1]) > 1:  # around what stands between
            begin, finish = (left + BOX_WIDTH, middle), (to_left + BOX_WIDTH, to_middle)
    else:
        begin, finish = (left + BOX_WIDTH, middle), (to_left, to_middle)
    bent = "arc3,rad=-0.1" if begin[0] == finish[0] == left + BOX_WIDTH else "arc3"
    how = {"color": look.INK, "linewidth": 1.8} if needed else {"color": look.MUTED, "linewidth": 1.1}
    axes.add_patch(
        FancyArrowPatch(
            begin,
            finish,
            arrowstyle="-|>",
            mutation_scale=13,
            shrinkA=1,
            shrinkB=1,
            connectionstyle=bent,
            linestyle="-" if needed else (0, (3, 2.5)),
            zorder=2,
            **how,
        )
    )


def _box(axes, chapter: Chapter, lab: int) -> None:
    left, top = _corner(chapter.number)
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            BOX_WIDTH,
            BOX_HEIGHT,
            shape,
            facecolor="#eef3f8",
            edgecolor=look.KEPT,
            lw=1.4,
            zorder=3,
        )
    )
    place = {"ha": "left", "va": "top", "zorder": 4}
    axes.text(left + 0.10, top + 0.08, str(chapter.number), size=17, weight="bold", color=look.KEPT, **place)
    for line, words in enumerate(_lines(language.text(chapter.title))):  # broken in its own language
        axes.text(
            left + 0.36, top + 0.10 + 0.17 * line, look.readable(words), size=10, weight="bold", **place
        )
    words = f"read {chapter.minutes} min" + (f" · lab {duration(lab)}" if lab else "")
    axes.text(left + 0.10, top + 0.78, words, size=8.8, color=look.MUTED, **place)


def _lines(title: str, width: int = 17) -> list[str]:
    """A title broken between words, or anywhere in Chinese, into lines that fit a box."""
    pieces = re.findall(r"[⺀-￯]|[^\s⺀-￯]+\s*", title)
    lines = [""]
    for piece in pieces:
        wide = sum(2 if ord(ch) >= 0x2E80 else 1 for ch in lines[-1] + piece.rstrip())
        if lines[-1] and wide > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


def _key(axes, height: float) -> None:
    for row, (words, needed) in enumerate(
        (("has to be read before", True), ("helps with a section or two", False))
    ):
        y = TOP + 2 * ROW + 0.40 + 0.24 * row
        style = "-" if needed else (0, (3, 2.5))
        color = look.INK if needed else look.MUTED
        axes.plot((LEFT, LEFT + 0.4), (y, y), color=color, linestyle=style, lw=1.8 if needed else 1.1)
        axes.text(LEFT + 0.5, y, words, size=9, color=look.MUTED, va="center")


def _in_words(chapters: Sequence[Chapter], lab_minutes: Mapping[str, int]) -> str:
    found = ["The map of the course."]
    for chapter in chapters:
        needed = " and ".join(map(str, NEEDS[chapter.number])) or "none"
        also = f", draws on {' and '.join(map(str, chapter.draws_on))}" if chapter.draws_on else ""
        lab = f", lab {lab_minutes[chapter.stem]} min" if chapter.stem in lab_minutes else ""
        found.append(f"{chapter.number} {chapter.title}: {chapter.minutes} min{lab}; needs {needed}{also}.")
    return " ".join(found)
