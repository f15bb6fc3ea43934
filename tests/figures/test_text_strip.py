"""The coloured text: nothing is taken for markup, cut characters are joined, colours follow surprise."""

import math
from html.parser import HTMLParser

import pytest

from llmcourse.figures.text_strip import SHADES, StripPiece, TextStrip, shade, strip_html, text_strip
from llmcourse.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer(tiny_checkpoint)


class Reader(HTMLParser):
    """Collects text and tags."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.titles = "", set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


def test_markup_in_a_text_is_only_text(tokenizer):
    text = "<script>alert('x')</script>&amp;\"</span>"
    tokens = tokenizer.encode(text)
    strip = text_strip(tokenizer, tokens, [-1.0] * len(tokens), prompt="<img src=x onerror=y>")
    page = Reader(strip_html(strip, legend=False))
    assert page.tags == {"div", "span"}  # and no style: there is nothing Chinese in it
    assert page.text == "<img src=x onerror=y>" + text
    assert strip.text == page.text
    whole = strip_html(TextStrip("", (StripPiece("<b>x</b>", 0.5),)), legend=False)
    assert Reader(whole).text == "<b>x</b>" and "<b>" not in whole


def test_tokens_of_one_character_join_and_their_probabilities_multiply(tokenizer):
    tokens = tokenizer.encode("霜 a")
    assert len(tokens) > len("霜 a")  # the character is cut
    strip = text_strip(tokenizer, tokens, [math.log(0.5)] * len(tokens))
    assert strip.pieces[0].text == "霜"
    assert strip.pieces[0].probability == pytest.approx(0.5 ** len(tokenizer.encode("霜")))
    assert "".join(piece.text for piece in strip.pieces) == "霜 a"


def test_an_unfinished_character_shows_as_such(tokenizer):
    first = tokenizer.encode("霜")[0]
    for log_prob in (-1.0, 0.0):
        assert text_strip(tokenizer, [first], [log_prob]).pieces[-1].text == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_are_shown_but_no_part_of_the_text(tokenizer):
    end = tokenizer.token_id("<|endoftext|>")
    strip = text_strip(tokenizer, [*tokenizer.encode("a"), end], [-1.0, -0.5])
    last = strip.pieces[-1]
    assert (last.text, last.special) == ("<|endoftext|>", True)
    assert last.probability == pytest.approx(math.exp(-0.5))
    assert strip.text == "a"
    assert "&lt;|endoftext|&gt;" in strip_html(strip)


@pytest.mark.parametrize(
    ("p", "index"), [(1.0, 0), (0.26, 0), (0.24, 1), (0.06, 2), (0.001, 4), (1e-9, 5), (0.0, 5)]
)
def test_a_step_of_colour_is_two_bits(p, index):
    assert shade(p) == index
    assert f"background:{SHADES[index]}" in strip_html(TextStrip("", (StripPiece("x", p),)), legend=False)


def test_it_shows_itself_and_names_probabilities():
    strip = TextStrip("a\n", (StripPiece("b\n", 0.25), StripPiece("\n", 0.5)))
    page = Reader(strip._repr_html_())
    assert page.titles == ["'b\\n': 25.00%", "'\\n': 50.00%"]
    assert page.text.startswith("a\nb\n⏎\n")
    assert "probability:" in page.text
    assert repr(strip) == "a\nb\n\n"


def test_as_many_probabilities_as_tokens(tokenizer):
    with pytest.raises(ValueError, match="log_probs must have 2 entries, one a token, got 1"):
        text_strip(tokenizer, [5, 6], [-1.0])


def test_chinese_characters_come_along():
    page = strip_html(TextStrip("明", (StripPiece("月 a", 0.5),)))
    assert "@font-face" in page and "unicode-range:U+660E,U+6708}" in page
    assert "@font-face" not in strip_html(TextStrip("明", ()), font=False)
