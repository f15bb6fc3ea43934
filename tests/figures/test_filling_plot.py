"""The filling's picture: its cells are the passes, its points the settings."""

import numpy as np
import pytest

from llmcourse.figures.block_filling import Filling, TextState
from llmcourse.figures.filling_plot import NEW, NOT_YET, STANDS, FillingPlot, in_words, plot_filling

LABELS = {1: "␣a", 2: "⏎", 3: "床", 4: "$"}


def state(tokens, new, block=0, number=1):
    confidence = tuple(None if token is None else 0.5 for token in tokens)
    return TextState(tuple(tokens), confidence, tuple(new), block, number)


AR = Filling(1, 1, tuple(state([1, 2, 3, 4][: n + 1] + [None] * (3 - n), [n], n) for n in range(4)), 1.5)
SEMI = Filling(2, 1, (state([1, 3, None, None], [0, 1]), state([1, 3, 4, 2], [2, 3], 1)), 2.5)
WHOLE = Filling(4, 1, (state([1, 1, 1, 1], range(4)),), 4.0)
FILLINGS = {(1, 1): AR, (2, 1): SEMI, (4, 1): WHOLE}


def cells(plot):
    """`n` new, `s` stands, `.` not yet, pass by pass."""
    names = {NEW: "n", STANDS: "s", NOT_YET: "."}
    pixels = np.asarray(plot._image.get_array())
    return ["".join(names[tuple(pixel)] for pixel in row) for row in pixels.tolist()]


@pytest.mark.parametrize(
    ("dial", "at", "expected"),
    [
        ((1, 1), 4, ["n...", "sn..", "ssn.", "sssn"]),
        ((1, 1), 2, ["n...", "sn..", "....", "...."]),
        ((2, 1), 2, ["nn..", "ssnn", "....", "...."]),
        ((4, 1), 1, ["nnnn", "....", "....", "...."]),
    ],
)
def test_cells_are_the_passes(dial, at, expected):
    plot = FillingPlot(4)
    plot.update(FILLINGS, dial, at, LABELS.get).png(1.0)
    assert cells(plot) == expected
    (box,) = plot._line.get_segments()
    assert {y for _, y in box} == {at - 1, at}
    edges = [segment[0][0] for segment in plot._edges.get_segments()]
    assert edges == ([2] if dial == (2, 1) else [])


def test_tokens_of_the_pass_are_named_and_new_ones_bold():
    plot = FillingPlot(4)
    plot.update(FILLINGS, (1, 1), 2, LABELS.get)
    assert [text.get_text() for text in plot._labels] == ["␣a", "⏎", "▢", "▢"]
    assert [text.get_fontweight() for text in plot._labels] == ["normal", "bold", "normal", "normal"]


def test_every_setting_is_a_point_and_the_one_shown_has_a_ring():
    plot = FillingPlot(4)
    plot.update(dict(reversed(FILLINGS.items())), (2, 1), 1, LABELS.get)
    lines = {passes: line.get_xydata().tolist() for passes, line in plot._points.items()}
    assert lines == {1: [[1, 1.5], [2, 2.5], [4, 4.0]], 2: [], 4: []}
    shades = [sum(line.get_color()[:3]) for line in plot._points.values()]
    assert len(set(shades)) == 3 and shades == sorted(shades), "the paler the more passes"
    assert set(plot._points.values()) <= set(plot.figure.moving), "or another setting leaves the old lines"
    assert plot._here.get_xydata().tolist() == [[2, 2.5]]
    assert plot.dial.get_ylim()[1] > 4


def test_the_axis_follows_another_text():
    plot = FillingPlot(4)
    plot.update(FILLINGS, (2, 1), 1, LABELS.get)
    before = plot.figure.still_key
    worse = FILLINGS | {(4, 1): Filling(4, 1, WHOLE.states, 9.0)}
    plot.update(worse, (2, 1), 1, LABELS.get)
    assert plot.dial.get_ylim()[1] > 9 and plot.figure.still_key != before


def test_it_is_told_in_words():
    assert in_words(SEMI, 2) == (
        "semi-autoregressive: blocks of 2, 1 pass each · 2 forward passes, 2 tokens a pass · loss 2.50, "
        "different pairs 1.00. Pass 2 writes 2 tokens of block 2; 4 of 4 stand."
    )
    assert in_words(AR, 1).startswith("autoregressive: a token at a time · 4 forward passes, 1 token a pass")
    assert in_words(WHOLE, 1).startswith("non-autoregressive: the whole text as one block, 1 pass ·")


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"dial must be one of the settings given, got \(3, 1\)"):
        plot_filling(FILLINGS, (3, 1), 1, LABELS.get)
    with pytest.raises(ValueError, match=r"at must be in \[1, 2\], got 3"):
        plot_filling(FILLINGS, (2, 1), 3, LABELS.get)
    with pytest.raises(ValueError, match="fillings must be of 8 tokens, got 4"):
        FillingPlot(8).update(FILLINGS, (2, 1), 1, LABELS.get)


def test_a_text_that_repeats_itself_says_so():
    plot = FillingPlot(4)
    alt = plot.update(FILLINGS, (4, 1), 1, LABELS.get).alt
    assert plot._here_name.get_text() == "◯ 4.00, different pairs 0.33" and "different pairs 0.33" in alt
