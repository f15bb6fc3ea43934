"""The tile player's picture: the scores cut in tiles, the rows in SRAM, and the bytes that were moved.

Orange is in SRAM now, blue is done, hatched is never computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.collections import PolyCollection

from llmcourse.attention import RunningSoftmax
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.tiles import TileStep, TileWalk

DONE = "#b5d3ec"
WAITS = "#eef1f4"
WRITTEN = "#8fbfe0"
Corners = list[tuple[int | float, int | float]]  # of a box
TABLE_ROWS = 8
LETTER, ROOM = 0.027, 0.02  # of the longest bar: a digit of a sum, and its distance to what is near
STRIP, GAP = 0.055, 0.02  # of the matrix: how wide Q, K, V and O are drawn, and their distances


class TilesPlot:
    """The figure, made once and then redrawn for other steps: fast enough to follow a slider."""

    def __init__(self):
        with look.style():
            self.figure = look.Picture(look.WIDTH, 5.2)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.map = self.figure.add_axes((0.005, 0.065, 0.505, 0.81))
            self.map.set_axis_off()
            self.traffic = self.figure.add_axes((0.645, 0.735, 0.345, 0.115))
            self.output = self.figure.add_axes((0.585, 0.075, 0.405, 0.17))
            self._make_map()
            self._make_traffic()
            self._make_table()
            self._make_output()
            self._make_key()
        self.figure.moving = [
            *(self.subtitle, self._skipped, self._blocks, self._edge, self._line, self._row_name, self._size),
            *(self._moved, self._unfused, self._end, *self._sums, self._head, *self._columns),
            *(self._output_name, *self._bounds, self._bars, self._marks),
        ]

    def _make_map(self) -> None:
        """The scores fill the unit square, whatever their number, so that names keep still."""
        axes = self.map
        axes.set(xlim=(-0.10, 1.19), ylim=(1.07, -0.20))
        style = {"facecolors": look.CUT, "edgecolors": look.CUT_EDGE, "hatch": look.CUT_HATCH}
        self._skipped = PolyCollection([], linewidths=0.5, **style)
        self._blocks = PolyCollection([], linewidths=0.8, edgecolors=look.PAPER)
        for blocks in (self._skipped, self._blocks):
            axes.add_collection(blocks, autolim=False)
        self._edge = axes.plot([], [], color=look.CUT_EDGE, linewidth=1.0)[0]
        self._line = axes.plot([], [], color=look.INK, linewidth=1.1)[0]
        self._row_name = axes.text(1 + 2 * GAP + STRIP, 0, "", size=9.5, va="center")
        first, second = GAP + STRIP / 2, 2 * GAP + 1.5 * STRIP
        style = {"ha": "center", "va": "center", "color": look.MUTED}
        places = {"Q": (-first, 1.04), "O": (1 + first, 1.04), "V": (-0.05, -first), "K": (-0.05, -second)}
        for letter, place in places.items():
            axes.text(*place, letter, size=11, weight="bold", **style)
        self._size = axes.text(0.5, 1.035, "", size=9.5, **style)

    def _make_traffic(self) -> None:
        axes, style = self.traffic, {"linewidths": 0, "facecolors": (look.SERIES[0], WRITTEN)}
        self._moved, self._unfused = (PolyCollection([], **style) for _ in range(2))
        for bars in (self._moved, self._unfused):
            axes.add_collection(bars, autolim=False)
        self._end = axes.plot([], [], color=look.INK, linewidth=1.2)[0]
        self._sums = [axes.text(0, place, "", va="center", size=9.5) for place in range(2)]
        axes.set(xlim=(0, 1.01), ylim=(1.5, -0.5), xticks=[])
        axes.set_yticks(range(2), ["tiled, so far", "unfused, in all"], size=9.5)
        look.bare(axes, "left", "bottom", "top", "right")
        note = "bytes read (dark) and written (light); |: when it is done"
        axes.text(1, 1.08, note, transform=axes.transAxes, ha="right", size=9.5, color=look.MUTED)

    def _make_table(self) -> None:
        """Columns of text: one object a column, since each one costs time to draw."""
        style = {"size": 9.5, "va": "top", "linespacing": 1.5, "ha": "right"}
        self._head = self.figure.text(0.53, 0.70, "", size=10.5, weight="bold", va="top")
        names = {"row": 0.60, "max m": 0.72, "sum l": 0.84, "rescaled by": 0.985}
        for name, x in names.items():
            self.figure.text(x, 0.65, name, size=9.5, va="top", ha="right", color=look.MUTED)
        self._columns = [self.figure.text(x, 0.612, "", **style) for x in names.values()]

    def _make_output(self) -> None:
        axes = self.output
        self._output_name = self.figure.text(0.53, 0.288, "", size=10.5, weight="bold", va="top")
        self._bars = PolyCollection([], facecolors=look.KEPT, linewidths=0)
        axes.add_collection(self._bars, autolim=False)
        self._marks = axes.plot([], [], "_", color=look.INK, markersize=13, markeredgewidth=2.0)[0]
        axes.axhline(0, color=look.LINE, linewidth=0.8, zorder=0)
        axes.set(ylim=(-1.12, 1.12), xticks=[], yticks=[])
        style = {"transform": axes.get_yaxis_transform(), "size": 9.5, "ha": "right", "va": "center"}
        self._bounds = [axes.text(-0.012, y, "", **style) for y in (-1, 1)]
        look.bare(axes, "bottom", "top", "right")

    def _make_key(self) -> None:
        names = (("in SRAM", look.ACCENT, None), ("done", DONE, None), ("to do", WAITS, None))
        names += (("skipped", look.CUT, look.CUT_HATCH),)
        for place, (name, color, hatch) in enumerate(names):
            left = 0.055 + 0.105 * place
            edge = look.CUT_EDGE if hatch else look.LINE
            style = {"facecolors": color, "edgecolors": edge, "hatch": hatch, "linewidths": 0.6}
            box = _box(left, 0.022, left + 0.018, 0.045)
            self.figure.add_artist(PolyCollection([box], transform=self.figure.transFigure, **style))
            self.figure.text(left + 0.024, 0.033, name, size=9.5, va="center", color=look.MUTED)

    def update(self, walk: TileWalk, step: int, row: int, title: str = "") -> look.Picture:
        """Shows another step, and watches another row; arguments as `plot_tiles`."""
        _check(walk, step, row)
        title, now = title or "FlashAttention, tile by tile", walk.steps[step]
        with look.style():
            self.title.set_text(readable(title))
            self.figure.still_key = title
            self.subtitle.set_text(readable(happens(walk, step)))
            self._paint_blocks(walk, step)
            self._watch(walk, row)
            self._draw_traffic(walk, now)
            self._fill_table(now, row)
            self._draw_output(walk, step, row)
        self.figure.alt = f"{title}, step {step} of {len(walk.steps) - 1}. {in_words(walk, step, row)}"
        return self.figure

    def _watch(self, walk: TileWalk, row: int) -> None:
        y = (row + 0.5) / walk.queries
        self._line.set_data([-GAP - STRIP, 1 + GAP + STRIP], [y, y])
        self._row_name.set(text=f"row {row}", y=y)
        self._edge.set_data(*(_staircase(walk) if walk.causal else ([], [])))
        self._size.set_text(f"scores of {walk.queries} queries × {walk.keys} keys")

    def _draw_traffic(self, walk: TileWalk, now: TileStep) -> None:
        """Bars of both attentions on one scale, each with its sum."""
        end = walk.steps[-1].traffic_bytes
        longest = max(walk.unfused_bytes, end)
        self._moved.set_verts(_stacked(0, now.read_bytes, now.written_bytes, longest))
        self._unfused.set_verts(_stacked(1, walk.unfused_read_bytes, walk.unfused_written_bytes, longest))
        self._end.set_data([end / longest] * 2, [-0.42, 0.42])
        tiled = (now.traffic_bytes, now.read_bytes, end)
        unfused = (walk.unfused_bytes, walk.unfused_read_bytes, None)
        for text, (moved, read, mark) in zip(self._sums, (tiled, unfused), strict=True):
            width = LETTER * len(f"{moved:,}")
            x, dark = _sum_place(width, moved / longest, read / longest, mark and mark / longest)
            text.set(text=f"{moved:,}", x=x, color=look.PAPER if dark else look.INK)

    def _draw_output(self, walk: TileWalk, step: int, row: int) -> None:
        """Scaled to the largest number that the row shows on its way."""
        expected = walk.expected[row].tolist()
        on_the_way = [n for n, past in enumerate(walk.steps) if row in past.rows]
        seen = [value for n in on_the_way for value in _partial(walk, n, row)]
        bound = max(1e-9, *map(abs, expected), *map(abs, seen))
        self.output.set_xlim(-0.6, len(expected) - 0.4)
        self._bars.set_verts(_columns([value / bound for value in _partial(walk, step, row)]))
        self._marks.set_data(range(len(expected)), [value / bound for value in expected])
        self._output_name.set_text(f"Row {row}: o / l so far, and its end (−)")
        for text, sign in zip(self._bounds, ("−", "+"), strict=True):
            text.set_text(f"{sign}{bound:.2f}")

    def _paint_blocks(self, walk: TileWalk, step: int) -> None:
        now, joined = walk.steps[step], set(walk.joined(step))
        written = {s.query_tile for s in walk.steps[1 : step + 1] if s.key_tile is None}
        current = (now.query_tile, now.key_tile)
        active = now.key_tile is not None
        tiles = [tile for tile in _tiles(walk) if not _is_skipped(walk, *tile)]
        boxes = [_tile_box(walk, *tile) for tile in tiles]
        colors = [look.ACCENT if tile == current else DONE if tile in joined else WAITS for tile in tiles]
        for index in range(math.ceil(walk.queries / walk.query_tile)):
            boxes += _side_boxes(walk, index)
            colors.append(look.ACCENT if active and index == now.query_tile else WAITS)
            colors.append(DONE if index in written else WAITS)
        for index in range(math.ceil(walk.keys / walk.key_tile)):
            boxes += _top_boxes(walk, index)
            colors += [look.ACCENT if active and index == now.key_tile else WAITS] * 2
        self._blocks.set(verts=boxes, facecolors=colors)
        self._skipped.set_verts(_skipped_boxes(walk))

    def _fill_table(self, now: TileStep, row: int) -> None:
        self._head.set_text(_table_head(now))
        table = table_rows(now, row)
        for column, text in enumerate(self._columns):
            text.set_text("\n".join(cells[column] for cells in table))


def plot_tiles(walk: TileWalk, step: int, row: int, title: str = "") -> look.Picture:
    """One step of the walk.

    Args:
        step: 0 is before anything is read, `len(walk.steps) - 1` the end.
        row: of the queries, which is watched.

    Raises:
        ValueError: there is no such step or row.
    """
    return TilesPlot().update(walk, step, row, title)


def happens(walk: TileWalk, step: int) -> str:
    """What the step does, in one line."""
    now = walk.steps[step]
    if now.query_tile < 0:
        return "Nothing is in SRAM yet."
    if now.key_tile is None:
        then = "that was the last" if step == len(walk.steps) - 1 else "SRAM is free for the next tile"
        return f"The result of queries {_span(now.rows)} is written: {then}."
    return f"Queries {_span(now.rows)} meet keys {_span(now.keys)}: {now.sram_bytes:,} bytes in SRAM."


def in_words(walk: TileWalk, step: int, row: int) -> str:
    """The picture in words: the step, the bytes, and what is known of the watched row."""
    now, seen = walk.steps[step], walk.partial(step, row)
    share = walk.steps[-1].traffic_bytes / walk.unfused_bytes
    moved = f"Moved so far {now.traffic_bytes:,} bytes; in the end {share:.0%} of the {walk.unfused_bytes:,} "
    moved += "of an unfused attention."
    skipped = f" Causality skips {walk.num_skipped} of {walk.num_tiles} tiles." if walk.causal else ""
    if seen is None:
        return f"{happens(walk, step)} {moved}{skipped} Row {row} has not begun."
    off = float((seen.result() - walk.expected[row]).abs().max())
    known = f"Row {row}: m = {float(seen.peak):.2f}, l = {float(seen.total):.2f}, "
    return f"{happens(walk, step)} {moved}{skipped} {known}o / l is off by at most {_small(off)}."


def table_rows(now: TileStep, row: int) -> list[tuple[str, str, str, str]]:
    """Row, m, l and rescaling factor of the rows in SRAM, at most eight, the watched one among them."""
    if now.seen is None:
        return []
    first = min(max(0, row - now.rows.start - TABLE_ROWS // 2), max(0, len(now.rows) - TABLE_ROWS))
    shown = range(len(now.rows))[first : first + TABLE_ROWS] if row in now.rows else range(len(now.rows))
    return [_table_row(now, at, row) for at in shown[:TABLE_ROWS]]


def _table_row(now: TileStep, at: int, watched: int) -> tuple[str, str, str, str]:
    row = now.rows[at]
    seen = RunningSoftmax(now.seen.peak[at], now.seen.total[at], now.seen.mixed[at])
    fade = f"{now.fade[at]:.2f}" if now.fade and now.key_tile else "–"
    mark = "▸ " if row == watched else ""
    return f"{mark}{row}", f"{float(seen.peak):.2f}".replace("-", "−"), f"{float(seen.total):.2f}", fade


def _table_head(now: TileStep) -> str:
    if now.seen is None:
        return "What is known of the rows in SRAM"
    more = len(now.rows) - TABLE_ROWS
    hidden = f", {TABLE_ROWS} of {len(now.rows)}" if more > 0 else ""
    return f"What is known of rows {_span(now.rows)}{hidden}"


def _check(walk: TileWalk, step: int, row: int) -> None:
    for name, value, last in (("step", step, len(walk.steps) - 1), ("row", row, walk.queries - 1)):
        if not 0 <= value <= last:
            raise ValueError(f"{name} must be in [0, {last}], got {value}; {last} is the last")


def _partial(walk: TileWalk, step: int, row: int) -> list[float]:
    """o / l of a row after a step, zeros before its tile began."""
    seen = walk.partial(step, row)
    return [0.0] * walk.expected.shape[1] if seen is None else seen.result().tolist()


def _stacked(place: int, read_bytes: int, written_bytes: int, longest: int) -> list[Corners]:
    """Two bars end to end, as shares of the longest."""
    ends = (0, read_bytes / longest, (read_bytes + written_bytes) / longest)
    return [_box(left, place - 0.31, right, place + 0.31) for left, right in pairwise(ends)]


def _sum_place(width: float, moved: float, read: float, mark: float | None) -> tuple[float, bool]:
    """Where a sum begins, and whether on dark: in its bar's dark part, or behind bar and mark.

    All are shares of the longest bar. Most of what tiles move is read, so one of the places has room.
    """
    if read > width + 2 * ROOM:
        return ROOM, True
    if mark is None or moved + width + 2 * ROOM < mark:
        return moved + ROOM, False
    return mark + ROOM, False


def _columns(values: Sequence[int | float]) -> list[Corners]:
    return [_box(at - 0.31, 0, at + 0.31, value) for at, value in enumerate(values)]


def _span(which: range) -> str:
    return f"{which.start}" if len(which) == 1 else f"{which.start}–{which.stop - 1}"


def _small(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else f"{value:.0e}".replace("e-0", "e-")


def _tiles(walk: TileWalk) -> list[tuple[int, int]]:
    down, across = math.ceil(walk.queries / walk.query_tile), math.ceil(walk.keys / walk.key_tile)
    return [(row, column) for row in range(down) for column in range(across)]


def _is_skipped(walk: TileWalk, row: int, column: int) -> bool:
    last_query = min((row + 1) * walk.query_tile, walk.queries) - 1
    return walk.causal and column * walk.key_tile > last_query + walk.keys - walk.queries


def _box(left: int | float, top: int | float, right: int | float, bottom: int | float) -> Corners:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _ends(index: int, size: int, length: int) -> tuple[float, float]:
    return index * size / length, min((index + 1) * size, length) / length


def _tile_box(walk: TileWalk, row: int, column: int) -> Corners:
    top, bottom = _ends(row, walk.query_tile, walk.queries)
    left, right = _ends(column, walk.key_tile, walk.keys)
    return _box(left, top, right, bottom)


def _skipped_boxes(walk: TileWalk) -> list[Corners]:
    """One for each tile of queries: the skipped tiles beside it hang together."""
    first = {row: column for row, column in reversed(_tiles(walk)) if _is_skipped(walk, row, column)}
    boxes = []
    for row, column in first.items():
        top, bottom = _ends(row, walk.query_tile, walk.queries)
        boxes.append(_box(_ends(column, walk.key_tile, walk.keys)[0], top, 1, bottom))
    return boxes


def _side_boxes(walk: TileWalk, row: int) -> list[Corners]:
    """Of Q to the left and O to the right."""
    top, bottom = _ends(row, walk.query_tile, walk.queries)
    return [_box(-GAP - STRIP, top, -GAP, bottom), _box(1 + GAP, top, 1 + GAP + STRIP, bottom)]


def _top_boxes(walk: TileWalk, column: int) -> list[Corners]:
    """Of V above the scores, and K above it."""
    left, right = _ends(column, walk.key_tile, walk.keys)
    lift = GAP + STRIP
    return [_box(left, -GAP - STRIP - up, right, -GAP - up) for up in (0, lift)]


def _staircase(walk: TileWalk) -> tuple[list[float], list[float]]:
    """The edge between keys that a query sees and those it does not."""
    seen = [(row + 1 + walk.keys - walk.queries) / walk.keys for row in range(walk.queries)]
    ys = [row / walk.queries for row in range(walk.queries + 1)]
    return [x for x in seen for _ in range(2)], [y for pair in pairwise(ys) for y in pair]
