"""Lookup against its definition written out, and on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decoding import History
from llmcourse.speculative import Drafter, LookupDrafter
from llmcourse.speculative.lookup import longest_matches, look_up


def by_definition(text: list[int], num_tokens: int, longest: int, shortest: int) -> list[int]:
    """Tries every end, the longest first, at every place, the latest first; copies token by token."""
    for n in range(min(longest, len(text) - 1), shortest - 1, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == text[-n:]:
                grown = list(text)
                for index in range(num_tokens):
                    grown.append(grown[start + n + index])
                return grown[len(text) :]
    return []


@given(st.lists(st.integers(0, 2), max_size=14), st.integers(0, 20), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=400, deadline=None)
def test_equals_the_definition(text, num_tokens, shortest, more):
    longest = shortest + more
    found = look_up(torch.tensor(text, dtype=torch.long), num_tokens, longest=longest, shortest=shortest)
    assert found == by_definition(text, num_tokens, longest, shortest)


def drafts(text: str, num_tokens: int, **lengths) -> str:
    return "".join(map(chr, look_up(torch.tensor(list(map(ord, text))), num_tokens, **lengths)))


def test_by_hand():
    assert drafts("the cat sat. the", 4) == " cat"
    assert drafts("abx_cbx_dbx", 2, longest=2) == "_d"  # both are "bx": the latest is taken
    assert drafts("abxy_cbx_abx", 2, longest=3) == "y_"  # the longest before the latest
    assert drafts("abxy_cbx_abx", 2, longest=2) == "_a"
    assert drafts("xyzw", 5) == ""  # nothing came before
    assert drafts("xy_wy", 3, shortest=2) == ""  # one token does not do
    assert drafts("xy_wy", 3) == "_wy"


def test_a_text_in_a_loop_goes_on_in_its_loop():
    assert drafts("so la la la", 9) == " la la la"
    assert drafts("aa", 5) == "aaaaa"


def test_texts_too_short_to_repeat():
    assert look_up(torch.tensor([], dtype=torch.long), 3) == []
    assert look_up(torch.tensor([5]), 3) == []
    assert drafts("abab", 0) == ""


def test_longest_matches():
    #         a  b  a  b  a ; the end is "a", "ba", "aba", …
    assert longest_matches([0, 1, 0, 1, 0], 9) == (3, [2])
    assert longest_matches([0, 1, 0, 1, 0], 2) == (2, [2])
    length, places = longest_matches([0, 1, 0, 1, 0], 1)
    assert length == 1 and list(places) == [0, 2]
    assert longest_matches([0, 1, 2], 3)[0] == longest_matches([], 3)[0] == 0


def test_the_drafter_takes_each_row_by_itself():
    """The prompt and what was written are one text; padding of the history is not looked at."""
    history = History.from_prompts([[1, 2, 3, 1], [4, 5, 6], [7, 7]], room=4)
    history.append(torch.tensor([2, 4, 7]))
    before = history.tokens.clone()
    drafter = LookupDrafter(vocab_size=10)
    drafter.start([[1]], capacity=9)
    draft = drafter.draft(history, [2, 3, 0])
    assert draft.num_tokens.tolist() == [2, 3, 0]
    assert draft.tokens.tolist() == [[3, 1, 0], [5, 6, 4], [0, 0, 0]]
    assert draft.q is None
    assert torch.equal(history.tokens, before)
    drafter.accept([2, 0, 0])
    assert drafter.draft(history, [2, 3, 0]).tokens.tolist() == draft.tokens.tolist()


def test_rows_without_a_match_propose_nothing():
    draft = LookupDrafter(vocab_size=10).draft(History.from_prompts([[1, 2, 3]]), [4])
    assert draft.tokens.shape == (1, 0) and draft.num_tokens.tolist() == [0]


def test_lookup_is_a_drafter_that_is_certain():
    drafter = LookupDrafter(vocab_size=4)
    assert isinstance(drafter, Drafter)
    draft = drafter.draft(History.from_prompts([[1, 2, 1]]), [2])
    assert draft.distributions(4).tolist() == [[[0, 0, 1, 0], [0, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: look_up(torch.tensor([1]), -1), "num_tokens must be an integer of at least 0, got -1"),
        (lambda: LookupDrafter(10, shortest=0), "shortest must be an integer of at least 1, got 0; use 1 to"),
        (lambda: LookupDrafter(10, longest=2, shortest=3), "longest must be an integer of at least 3, got 2"),
        (lambda: LookupDrafter(0), "vocab_size must be an integer of at least 1, got 0; take the target's"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
