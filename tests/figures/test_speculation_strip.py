"""The text in three colours: each piece is marked for who wrote it, and nothing is taken for markup."""

from html.parser import HTMLParser

import pytest

from llmcourse.figures.speculation_strip import (
    STYLES,
    Line,
    Piece,
    SpeculationStrip,
    line_by_step,
    strip_html,
    text_so_far,
)
from llmcourse.figures.speculation_trace import speculation_trace
from tests.figures.hand_made_steps import END, decode, label, some_steps, step

CERTAIN = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def trace():
    return speculation_trace("P:", some_steps(), decode, label)


class Reader(HTMLParser):
    """Collects text, and for each tag with a title the style and the text within."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.marked, self._open = "", [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open = (tag, dict(attrs)) if dict(attrs).get("title") else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        self.text += data
        if self._open:
            tag, attrs = self._open
            self.marked.append((tag, attrs["title"], data, attrs["style"]))


def test_a_line_for_each_step_as_in_the_lecture(trace):
    assert repr(line_by_step(trace)) == "P:{+b+}\nP:baa[-b-]{+c+}\nP:baacd {+a+}"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "P:{+b+}"),
        (2, "P:{+b+}(?a?)(?a?)"),
        (5, "P:{+b+}aa[-b-]"),
        (6, "P:{+b+}aa[-b-]{+c+}"),
        (9, "P:{+b+}aa[-b-]{+c+}d "),
        (None, "P:{+b+}aa[-b-]{+c+}d {+a+}"),
    ],
)
def test_the_text_up_to_a_phase(trace, at, text):
    assert repr(text_so_far(trace, at)) == text


def test_marks_do_not_hang_on_colour_alone(trace):
    page = Reader(strip_html(text_so_far(trace), legend=False))
    fallen = [mark for mark in page.marked if mark[0] == "del"]
    assert [(title, text) for _, title, text, _ in fallen] == [("rejected draft", "b")]
    assert "line-through" in fallen[0][3]
    styles = {title: style for _, title, _, style in page.marked}
    assert "border-bottom:2px" in styles["accepted draft"] and "color:#fff" in styles["the target's own"]
    assert page.text == "P:baabcd a"


def test_the_legend_names_what_there_is(trace):
    assert "draft, not judged yet" not in strip_html(text_so_far(trace))
    assert "draft, not judged yet" in strip_html(text_so_far(trace, 2))
    for name in ("accepted draft", "rejected draft", "the target&#x27;s own"):
        assert f">{name}".replace("&#x27;", "'") in strip_html(text_so_far(trace))


def test_markup_in_a_text_is_only_text():
    strip = SpeculationStrip((Line("<i>", (Piece("<b>&amp;", "own"), Piece("</div>", "rejected"))),))
    page = Reader(strip_html(strip, legend=False))
    assert page.text == "<i><b>&amp;</div>" and set(page.tags) == {"div", "span", "del"}


def test_line_breaks_stay_outside_the_boxes_and_fallen_ones_break_nothing():
    strip = SpeculationStrip((Line("", (Piece("a\n", "accepted"), Piece("b\n", "rejected"))),))
    page = Reader(strip_html(strip, legend=False))
    assert page.text == "a\nb⏎"
    assert [text for _, _, text, _ in page.marked] == ["a", "b⏎"]
    assert (
        Reader(strip_html(SpeculationStrip((Line("", (Piece("\n", "own"),)),)), legend=False)).text == "⏎\n"
    )


def test_characters_cut_in_two_are_one_piece_or_show_as_bytes():
    halves = {0: b"\xe9", 1: b"\x9c\x9c", 2: b"a"}
    text = lambda tokens: b"".join(halves[t] for t in tokens).decode(errors="replace")  # noqa: E731
    name = lambda token: f"<{halves[token].hex()}>"  # noqa: E731
    steps = [step(1, [0, 1], 2, 0, CERTAIN), step(2, [0], 0, 1, CERTAIN, CERTAIN)]
    trace = speculation_trace("", steps, text, name)
    last = len(trace.phases) - 1
    assert [repr(text_so_far(trace, at)) for at in (3, last - 1, last)] == [
        "霜{+<e9>+}",
        "霜{+<e9>+}[-<e9>-]",  # in the order in which they were written
        "霜[-<e9>-]{+霜+}",
    ]


def test_special_tokens_are_shown():
    trace = speculation_trace("P:", [step(1, [0, END], 2, 0, CERTAIN, tokens=[0, END])], decode, label)
    assert repr(text_so_far(trace)) == "P:a<end>" and "&lt;end&gt;" in strip_html(text_so_far(trace))


def test_it_shows_itself_and_brings_its_characters():
    strip = SpeculationStrip((Line("明", (Piece("月", "own"),)),))
    assert "unicode-range:U+660E,U+6708}" in strip._repr_html_()
    assert "@font-face" not in strip_html(strip, font=False)
    assert all(style in strip_html(strip) for mark, style in STYLES.items() if mark != "proposed")


def test_phases_that_are_not_there_are_refused(trace):
    with pytest.raises(ValueError, match=r"at must be in \[0, 10\], got -1"):
        text_so_far(trace, -1)
