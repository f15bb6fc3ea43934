"""Text that is at hand: two halves of three domains."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.prompts import PROSE, VERSE
from llmcourse.quantization.texts import POEMS, rows_of, texts_at_hand, token_stream


@pytest.fixture(scope="module")
def draft():
    return pretrained.load("draft")


@pytest.fixture(scope="module")
def halves(draft):
    return {use: texts_at_hand(*draft, use, num_tokens=6) for use in ("calibrate", "measure")}


def test_each_half_has_all_domains_and_no_opening_of_the_other(halves):
    assert {tuple(texts) for texts in halves.values()} == {("prose", "verse", "code")}
    for domain in ("prose", "verse", "code"):
        first, second = ({text[:12] for text in texts[domain]} for texts in halves.values())
        assert first and second
        if domain != "code":
            assert not first & second
    assert not set(halves["calibrate"]["code"]) & set(halves["measure"]["code"])
    texts = [text for half in halves.values() for text in half["prose"]]
    assert sorted(opening for opening in PROSE if any(t.startswith(opening) for t in texts)) == sorted(PROSE)
    assert len(halves["calibrate"]["verse"]) + len(halves["measure"]["verse"]) == POEMS * len(VERSE)


def test_behind_the_openings_there_is_text_another_for_each_poem(halves):
    verse, openings = halves["measure"]["verse"], VERSE[1::2]
    assert verse[: len(openings)] != verse[len(openings) : 2 * len(openings)]
    assert sum(len(text) > len(opening) for text, opening in zip(verse, openings * 3, strict=True)) > 40


def test_a_seed_gives_the_same_texts_again(draft, halves):
    assert texts_at_hand(*draft, "measure", num_tokens=6) == halves["measure"]
    assert texts_at_hand(*draft, "measure", num_tokens=6, seed=6)["prose"] != halves["measure"]["prose"]


def test_texts_become_one_stream_and_streams_become_rows(draft):
    stream = token_stream(draft.tokenizer, ["Once", "def"])
    assert stream.tolist() == [*draft.tokenizer.encode_prompt("Once"), *draft.tokenizer.encode_prompt("def")]
    rows = rows_of({"a": torch.arange(7), "b": torch.arange(2), "c": torch.arange(10, 14)}, 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [10, 11, 12]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda draft: texts_at_hand(*draft, "train"), "use"),
        (lambda draft: texts_at_hand(*draft, "measure", num_tokens=0), "num_tokens must be an integer of at"),
        (lambda draft: token_stream(draft.tokenizer, []), "texts must be at least one, got none"),
        (
            lambda draft: rows_of({"a": torch.arange(3)}, 4),
            "streams must be of 4 tokens or more, got 3 at",
        ),
        (lambda draft: rows_of({}, 4), "streams must be of 4 tokens or more, got 0 at most"),
        (lambda draft: rows_of({"a": torch.arange(3)}, 0), "length must be an integer of at least 1, got 0"),
    ],
)
def test_what_gives_no_text_is_refused(draft, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(draft)
