"""Text of strangers neither acts nor hides, and names of any language stay as they are."""

import json
import unicodedata

import pytest

from llmcourse.grading.printable import acts, clean, escape_acting

NAMES = ["张伟", "山田　太郎", "José", "می‌خواهم", "ශ්‍රී", "شرما", "O'Brien", "👩‍🔬", "a\u0301"]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay(name):
    assert clean(name) == name and escape_acting(name) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jx", "x"),
        ("\x1b]0;title\x07x", "]0;titlex"),  # the rest of a line cannot be hidden in a title
        ("one\ntwo\r\nthree\tfour", "one two  three four"),
        ("a\u2028b\u2029c", "a b c"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("\u2066a\u2069\u200f\ufeff\u200b\u00ad", "a"),
        ("\x00\x07\x08\x7f\x85b", " b"),
        ("a\udcffb", "a\ufffdb"),
        ("\U000e0041b", "b"),
    ],
)
def test_what_acts_is_taken_out(text, shown):
    assert clean(text) == shown


def test_nothing_that_acts_is_left_of_characters():
    everything = "".join(map(chr, [*range(0x3100), *range(0xD7F0, 0xE010), *range(0xFE00, 0x110000, 97)]))
    left = set(clean(everything))
    assert {c for c in left if acts(c) or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} == set()
    whole = [c for c in everything if unicodedata.category(c) != "Cs"]  # JSON joins halves into pairs
    escaped = escape_acting(json.dumps("".join(whole), ensure_ascii=False))
    same = json.loads(escaped) == "".join(whole)
    assert same and not any(map(acts, escaped))


def test_long_text_ends_with_an_ellipsis():
    assert clean("abcdef", 4) == "abc…" and clean("abcd", 4) == "abcd"
