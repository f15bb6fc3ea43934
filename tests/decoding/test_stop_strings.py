"""Stop strings, however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decoding.stop_strings import StopStrings


def run(stop, pieces):
    watch = StopStrings(stop)
    shown = [watch.push(piece) for piece in pieces]
    return "".join(shown) + watch.flush(), watch.found, shown


def reference(stop, text):
    """Reads one character at a time; the first stop string that is complete cuts it off."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
)
@settings(max_examples=500, deadline=None)
def test_the_cut_does_not_depend_on_the_pieces(stop, pieces):
    text, found, shown = run(stop, pieces)
    assert (text, found) == reference(stop, "".join(pieces))
    assert text.startswith("".join(shown))


@given(stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), text=st.text("abc"))
@settings(max_examples=200, deadline=None)
def test_no_more_is_held_back_than_may_become_a_stop_string(stop, text):
    watch, shown = StopStrings(stop), ""
    for text_read, character in enumerate(text, start=1):
        shown += watch.push(character)
        if watch.found is None:
            held = text[:text_read][len(shown) :]
            assert held == "" or any(s.startswith(held) and s != held for s in stop)


def test_a_possible_start_is_held_back_until_it_is_decided():
    watch = StopStrings(["\n\n"])
    assert [watch.push(piece) for piece in ("a", "\n", "b", "\n", "\nc")] == ["a", "", "\nb", "", ""]
    assert watch.found == "\n\n"
    assert watch.push("more") == "" and watch.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="stop must hold non-empty strings, got ''; leave it out to stop at"):
        StopStrings(["a", ""])
