"""Policies one below the other on one axis of time, each as the lecture's grid of slots and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from llmcourse.figures import style as look
from llmcourse.figures.fonts import FAMILIES, readable
from llmcourse.figures.timeline import BUSY, Box, Timeline

Corners = list[tuple[int | float, int | float]]

# Lightness and hatching tell the kinds apart, not hue alone.
LOOKS = {
    "prompt": {"facecolor": "#123f66", "edgecolor": look.PAPER},
    "token": {"facecolor": "#b5d3ec", "edgecolor": look.PAPER},
    "end": {"facecolor": look.ACCENT, "edgecolor": look.PAPER},
    "held": {"facecolor": look.PAPER, "edgecolor": look.SERIES[0], "hatch": "....."},
    "wasted": {"facecolor": look.CUT, "edgecolor": look.CUT_EDGE, "hatch": look.CUT_HATCH},
    "idle": {"facecolor": look.PAPER, "edgecolor": look.LINE},
}
NAMES = {
    "prompt": "prompt",
    "token": "token",
    "end": "END",
    "held": "held, no tokens",
    "wasted": "empty while others wait",
    "idle": "idle",
}
INKS = {"prompt": look.PAPER, "end": look.PAPER, "token": look.INK}
LEFT, RIGHT = 0.46, look.WIDTH - 0.12  # inches, as all lengths here: where time begins and ends
HEAD, NAME, ROOM = 0.92, 0.36, 0.30  # above the first panel, above the rows of each, and below them
AXIS = 0.17  # for the labels of time, below the last panel
LETTER = 0.075  # about the width of a letter of a name
LEAST_DIGIT = 0.07  # inches, seven pixels: where digits would be lower, nothing is named
DIGIT = 0.73  # of the size of letters: how high a digit is
ARRIVAL = 0.075  # how wide the mark of an arrival is, with its distance to the next
MOST_COLUMNS = 24  # steps that get a name, T1, T2, …
THINNEST = 0.035  # cells that are thinner get no edges
TICKS = (1, 2, 5)


@dataclass(frozen=True)
class _Panel:
    """Where one policy lies: the upper edge of its rows, their height, and inches of a second."""

    shown: Timeline
    top: float
    row_height: float
    inches: float

    @property
    def bottom(self) -> float:
        return self.top - self.shown.num_slots * self.row_height

    def x(self, time_s: int | float) -> float:
        return LEFT + time_s * self.inches

    def y(self, slot: int | float) -> float:
        return self.top - slot * self.row_height

    def width(self, box: Box) -> float:
        return (box.end_s - box.start_s) * self.inches

    def corners(self, box: Box) -> Corners:
        left, right = self.x(box.start_s), self.x(box.end_s)
        top, bottom = self.y(box.slot) - 0.008, self.y(box.slot + 1) + 0.008
        return [(left, top), (right, top), (right, bottom), (left, bottom)]


def plot_timelines(
    timelines: Sequence[Timeline], title: str = "Policies on one timeline", subtitle: str = ""
) -> look.Picture:
    """A panel for each policy, its figures below it; all panels share their axis of time.

    Raises:
        ValueError: there are none.
    """
    if not timelines:
        raise ValueError("timelines must be at least 1, got 0; make one with figures.timeline.timeline")
    inches = (RIGHT - LEFT) / max(one.end_s for one in timelines)
    row_heights = [min(0.28, max(0.09, 1.7 / one.num_slots)) for one in timelines]
    rows = sum(one.num_slots * size for one, size in zip(timelines, row_heights, strict=True))
    height = HEAD + rows + (NAME + ROOM) * len(timelines) + AXIS
    top, panels = height - HEAD, []
    for one, size in zip(timelines, row_heights, strict=True):
        panels.append(_Panel(one, top - NAME, size, inches))
        top = panels[-1].bottom - ROOM
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, subtitle)
        _draw_key(picture, timelines)
        _draw_boxes(picture, panels)
        _draw_names(picture, panels)
        for panel in panels:
            _draw_words(picture, panel, below=AXIS if panel is panels[-1] else 0.0)
        _draw_axis(picture, panels[-1])
        words = "; ".join(f"{one.name}: {one.figures}" for one in timelines)
        picture.alt = f"{title}. {words}."
    return picture


def _draw_boxes(picture: look.Picture, panels: Sequence[_Panel]) -> None:
    """One artist for each kind, which is fast."""
    joined = [(panel, _joined(panel)) for panel in panels]
    for kind, settings in LOOKS.items():
        found = [(panel, box) for panel, boxes in joined for box in boxes if box.kind == kind]
        thin = kind in BUSY and any(panel.width(box) < THINNEST for panel, box in found)
        edges = {"edgecolor": "none"} if thin else {}
        style = settings | edges | {"transform": picture.dpi_scale_trans, "linewidths": 0.8, "label": kind}
        corners = [panel.corners(box) for panel, box in found]
        if corners and "hatch" in settings:  # which Matplotlib prepares for each path anew
            whole = Path.make_compound_path(*(Path([*four, four[0]], closed=True) for four in corners))
            picture.add_artist(PathCollection([whole], snap=True, **style))
        elif corners:
            picture.add_artist(PolyCollection(corners, **style))


def _joined(panel: _Panel) -> list[Box]:
    """Neighbours of one request are joined where steps are thin or nothing runs; slot by slot."""
    found: list[list[list]] = [[] for _ in range(panel.shown.num_slots)]
    thinnest_s = THINNEST / panel.inches
    for box in panel.shown.boxes:  # in the order of time
        slot, start_s, end_s, kind, id, num_tokens = box
        last = found[slot][-1] if found[slot] else None
        thin = kind not in BUSY or end_s - start_s < thinnest_s
        if last and thin and last[2:5] == [start_s, kind, id]:
            last[2], last[5] = end_s, last[5] + num_tokens
        else:
            found[slot].append(list(box))
    return [Box(*each) for row in found for each in row]


def _draw_names(picture: look.Picture, panels: Sequence[_Panel]) -> None:
    """As outlines, all names of one colour in one artist: texts would take a millisecond each."""
    outlines: dict[str, list[Path]] = {}
    for panel in panels:
        inches = min(0.13, 0.85 * panel.row_height)
        if DIGIT * inches < LEAST_DIGIT:
            continue
        size = 72 * inches  # points
        for box, name in _names(panel):
            place = (panel.x((box.start_s + box.end_s) / 2), panel.y(box.slot + 0.5))
            outlines.setdefault(INKS[box.kind], []).append(_outline(readable(name), size, place))
        numbers = range(panel.shown.num_slots)
        places = [(f"{slot + 1}", (LEFT - 0.16, panel.y(slot + 0.5))) for slot in numbers]
        outlines.setdefault(look.MUTED, []).extend(_outline(n, size, place) for n, place in places)
    for color, paths in outlines.items():
        whole = Path.make_compound_path(*paths)
        style = {"facecolor": color, "edgecolor": "none", "transform": picture.dpi_scale_trans}
        picture.add_artist(PathPatch(whole, **style))


def _outline(text: str, size: int | float, place: tuple[int | float, int | float]) -> Path:
    """The letters around a place."""
    letters = _letters(text)
    return Path(letters.vertices * (size / 72) + place, letters.codes)


@lru_cache(maxsize=512)
def _letters(text: str) -> Path:
    """One inch high, around zero; high as digits are, so that all names of a row lie on one line."""
    letters = TextPath((0, 0), text, size=1, prop=FontProperties(family=FAMILIES))
    middle = (letters.vertices[:, 0].min() + letters.vertices[:, 0].max()) / 2 if len(letters) else 0.0
    return Path(letters.vertices - (middle, 0.36), letters.codes)


def _names(panel: _Panel) -> list[tuple[Box, str]]:
    """In every cell where there is room, else once for each stay of a request."""
    busy = [box for box in panel.shown.boxes if box.busy]
    if all(panel.width(box) > LETTER * (len(_name(box)) + 1) for box in busy):
        return [(box, _name(box)) for box in busy]
    names = []
    for (_, name), stay in groupby(sorted(busy, key=lambda b: (b.slot, b.start_s)), lambda b: (b.slot, b.id)):
        stretches = [list(stretch) for _, stretch in groupby(stay, lambda box: box.kind)]
        longest = max(stretches, key=lambda stretch: stretch[-1].end_s - stretch[0].start_s)
        middle, whole = longest[len(longest) // 2], longest[0]._replace(end_s=longest[-1].end_s)
        room = LETTER * (len(name) + 0.5)
        names += [(box, name) for box in (middle, whole) if panel.width(box) > room][:1]
    return names


def _name(box: Box) -> str:
    return "END" if box.kind == "end" else box.id


def _draw_words(picture: look.Picture, panel: _Panel, below: int | float) -> None:
    """The policy and its note above its rows, when requests come, and its figures below."""
    one, place = panel.shown, {"transform": picture.dpi_scale_trans, "va": "center"}
    picture.text(0.11, panel.top + 0.22, readable(one.name), weight="bold", size=10.5, **place)
    picture.text(LEFT, panel.bottom - below - 0.13, readable(one.figures), size=9.5, **place)
    picture.text(RIGHT, panel.top + 0.22, readable(one.note), size=9.5, ha="right", color=look.MUTED, **place)
    late = _apart([panel.x(time_s) for time_s in one.arrivals if 0 < time_s <= one.end_s])
    if late:
        style = {"transform": picture.dpi_scale_trans, "color": look.INK, "markersize": 4}
        y = [panel.top + 0.055] * len(late)
        picture.add_artist(Line2D(late, y, marker="v", linestyle="none", markeredgewidth=0, **style))


def _apart(places: Sequence[float]) -> list[float]:
    """Of places, rising, those that have room behind the last one taken: marks never overlap."""
    taken: list[float] = []
    for place in places:
        if not taken or place - taken[-1] >= ARRIVAL:
            taken.append(place)
    return taken


def _draw_axis(picture: look.Picture, panel: _Panel) -> None:
    """T1, T2, … where all steps are alike and few, else seconds."""
    one, end_s = panel.shown, (RIGHT - LEFT) / panel.inches
    style = {"transform": picture.dpi_scale_trans, "va": "center", "ha": "center", "size": 9.5}
    columns = round(end_s / one.same_steps) if one.same_steps else MOST_COLUMNS + 1
    if columns <= MOST_COLUMNS:
        labels = [((column + 0.5) * one.same_steps, f"T{column + 1}") for column in range(columns)]
    else:
        each = _tick(end_s)
        labels = [
            (n * each, look.seconds(n * each) if n else "0") for n in range(int(0.97 * end_s / each) + 1)
        ]
    for time_s, label in labels:
        picture.text(panel.x(time_s), panel.bottom - 0.10, label, color=look.MUTED, **style)


def _tick(end_s: int | float) -> float:
    """The smallest of 1, 2, 5, 10, … that makes nine steps at most."""
    decade = 10.0 ** math.floor(math.log10(end_s / 10))
    return next(size * decade for size in (*TICKS, 10, 20) if end_s / (size * decade) <= 9)


def _draw_key(picture: look.Picture, timelines: Sequence[Timeline]) -> None:
    """The kinds that occur, in one line."""
    kinds = {box.kind for one in timelines for box in one.boxes}
    x, y = LEFT, picture.get_size_inches()[1] - 0.74
    words = {"transform": picture.dpi_scale_trans, "size": 9.5, "va": "center", "color": look.MUTED}
    for kind, name in NAMES.items():
        if kind in kinds:
            corners = [(x, y - 0.06), (x + 0.2, y - 0.06), (x + 0.2, y + 0.06), (x, y + 0.06)]
            style = LOOKS[kind] | {"transform": picture.dpi_scale_trans, "linewidths": 0.7}
            picture.add_artist(PolyCollection([corners], **style))
            picture.text(x + 0.26, y, name, **words)
            x += 0.46 + 0.069 * len(name)
    if any(time_s > 0 for one in timelines for time_s in one.arrivals):
        picture.text(x, y, "▾ requests come", **words)
