"""The picture of the tiles shows what the walk says."""

import pytest
import torch
from matplotlib import colors

from llmcourse.figures import style as look
from llmcourse.figures.tiles import walk_tiles
from llmcourse.figures.tiles_plot import DONE, TilesPlot, happens, in_words, plot_tiles, table_rows


def walk(length=32, **settings):
    generator = torch.Generator().manual_seed(0)
    return walk_tiles(*torch.randn(3, length, 8, generator=generator), **settings)


def count(plot, color):
    wanted = colors.to_rgba(color)
    return sum(tuple(face) == wanted for face in plot._blocks.get_facecolors())


def test_blocks_have_the_colours_of_what_they_are():
    plot = TilesPlot()
    plot.update(walk(), 4, 13)  # queries 8 to 15 meet keys 8 to 15
    assert count(plot, look.ACCENT) == 1 + 1 + 2  # the tile of scores, and its blocks of Q, K and V
    assert count(plot, DONE) == 2 + 1  # two tiles of scores, one of O
    assert len(plot._skipped.get_paths()) == 3  # beside all but the last tile of queries
    plot.update(walk(), 14, 13)
    assert (count(plot, look.ACCENT), count(plot, DONE)) == (0, 10 + 4)
    plot.update(walk(causal=False), 0, 13)
    assert (count(plot, DONE), len(plot._skipped.get_paths())) == (0, 0)


def test_bars_are_the_bytes_and_the_result_that_of_the_row():
    shown, plot = walk(), TilesPlot()
    plot.update(shown, 4, 13)
    ends = [path.vertices[:, 0].max() for path in plot._moved.get_paths()]
    now = shown.steps[4]
    assert ends == pytest.approx(
        [now.read_bytes / shown.unfused_bytes, now.traffic_bytes / shown.unfused_bytes]
    )
    heights = [path.vertices[2, 1] for path in plot._bars.get_paths()]
    marks = plot._marks.get_ydata()
    scale = float(plot._bounds[1].get_text()) / max(map(abs, shown.partial(4, 13).result().tolist()))
    assert heights == pytest.approx(list(marks), abs=1e-5)  # row 13 has seen all its keys
    assert scale >= 0.99


def test_the_table_holds_the_rows_in_sram():
    shown = walk()
    table = table_rows(shown.steps[4], 13)
    assert [row for row, *_ in table] == ["8", "9", "10", "11", "12", "▸ 13", "14", "15"]
    seen = shown.partial(4, 13)
    assert table[5][1:3] == (f"{float(seen.peak):.2f}", f"{float(seen.total):.2f}")
    assert {fade for *_, fade in table_rows(shown.steps[3], 13)} == {"–"}  # the first tile rescales nothing
    assert table_rows(shown.steps[0], 13) == []
    tall = walk(query_tile=32)
    assert len(table_rows(tall.steps[1], 30)) == 8 and "▸ 30" in [
        r for r, *_ in table_rows(tall.steps[1], 30)
    ]


def test_steps_are_told_in_words():
    shown = walk()
    assert happens(shown, 0) == "Nothing is in SRAM yet."
    assert happens(shown, 4) == "Queries 8–15 meet keys 8–15: 1,344 bytes in SRAM."
    assert happens(shown, 2).startswith("The result of queries 0–7 is written: SRAM is free")
    assert happens(shown, 14).endswith("that was the last.")
    words = in_words(shown, 2, 13)
    assert (
        "of the 20,480 of an unfused attention. Causality skips 6 of 16 tiles. Row 13 has not begun." in words
    )
    assert "Causality" not in in_words(walk(causal=False), 2, 13)


def test_redrawing_leaves_nothing_of_the_last_picture():
    plot = TilesPlot()
    for length, step, row in ((16, 2, 3), (64, 9, 40), (32, 4, 13)):
        shown = walk(length)
        plot.update(shown, step, row).png(1.0)
    assert plot.figure.png(1.0) == plot_tiles(shown, 4, 13).png(1.0)


@pytest.mark.parametrize(("length", "tiles"), [(1, 2), (3, 2), (64, 2), (64, 32)])
def test_any_size_is_drawn_inside_the_page(length, tiles):
    picture = plot_tiles(walk(length, query_tile=tiles, key_tile=tiles), 1, length - 1)
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    texts = [t for t in picture.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip()]
    outside = [t.get_text() for t in texts if not _inside(t.get_window_extent(renderer), picture.bbox)]
    assert outside == []


@pytest.mark.parametrize(
    ("length", "tiles", "causal", "size"),
    [(1, 2, True, 8), (6, 2, False, 32), (16, 8, True, 32), (48, 8, True, 32), (48, 4, False, 8)],
)
def test_sums_stand_on_dark_or_on_paper(length, tiles, causal, size):
    """At every step: white in the dark bar, or dark and off the bars and the mark of the end."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, length, size, generator=generator)
    shown, plot = walk_tiles(*qkv, query_tile=tiles, key_tile=tiles, causal=causal), TilesPlot()
    plot.update(shown, 0, 0).png(1.0)
    renderer, to_shares = plot.figure.canvas.get_renderer(), plot.traffic.transData.inverted()
    for step in range(0, len(shown.steps), max(1, len(shown.steps) // 25)):
        plot._draw_traffic(shown, shown.steps[step])
        for text, bars, marks in zip(
            plot._sums, (plot._moved, plot._unfused), (plot._end.get_xdata()[:1], ()), strict=True
        ):
            left, right = to_shares.transform(text.get_window_extent(renderer))[:, 0]
            read, moved = (path.vertices[:, 0].max() for path in bars.get_paths())
            dark = text.get_color() == look.PAPER
            assert (right < read) if dark else (moved < left), (step, text.get_text())
            assert dark or not any(left <= mark <= right for mark in marks), (step, text.get_text())
            assert _inside(text.get_window_extent(renderer), plot.figure.bbox)


def _inside(box, page):
    return box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1


@pytest.mark.parametrize(
    ("step", "row", "words"),
    [(-1, 0, r"step must be in \[0, 14\], got -1"), (0, 32, r"row must be in \[0, 31\], got 32")],
)
def test_steps_and_rows_that_are_not_there_are_refused(step, row, words):
    with pytest.raises(ValueError, match=words):
        plot_tiles(walk(), step, row)
