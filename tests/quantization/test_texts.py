"""Text that is at hand: two halves of three domains."""

import pytest

from llmcourse import pretrained
from llmcourse.prompts import PROSE, VERSE
from llmcourse.quantization import texts
from llmcourse.quantization.texts import POEMS, calibration_rows, texts_at_hand, token_stream


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
    prose = [text for half in halves.values() for text in half["prose"]]
    assert sorted(opening for opening in PROSE if any(t.startswith(opening) for t in prose)) == sorted(PROSE)
    assert len(halves["calibrate"]["verse"]) + len(halves["measure"]["verse"]) == POEMS * len(VERSE)


def test_behind_the_openings_there_is_text_another_for_each_poem(halves):
    verse, openings = halves["measure"]["verse"], VERSE[1::2]
    assert verse[: len(openings)] != verse[len(openings) : 2 * len(openings)]
    assert sum(len(text) > len(opening) for text, opening in zip(verse, openings * 3, strict=True)) > 40


def test_a_seed_gives_the_same_texts_again(draft, halves):
    assert texts_at_hand(*draft, "measure", num_tokens=6) == halves["measure"]
    assert texts_at_hand(*draft, "measure", num_tokens=6, seed=6)["prose"] != halves["measure"]["prose"]


def test_texts_become_one_stream(draft):
    stream = token_stream(draft.tokenizer, ["Once", "def"])
    assert stream.tolist() == [*draft.tokenizer.encode_prompt("Once"), *draft.tokenizer.encode_prompt("def")]


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
def test_rows_to_calibrate_on_are_of_all_domains_or_of_the_texts_given(draft, halves, monkeypatch):
    model, tokenizer = draft
    monkeypatch.setattr(texts, "texts_at_hand", lambda *given: halves[given[2]])
    rows = calibration_rows(model, tokenizer, count=9, length=60)
    prose, verse, code = (tokenizer.decode(part.flatten().tolist()) for part in rows.split(3))
    assert rows.shape == (9, 60) and "\n    " in code
    assert sum(letter > "一" for letter in verse) > len(verse) / 2 and " the " in prose
    rows = calibration_rows(model, tokenizer, ["a b c d e f g"], count=3, length=4)
    assert rows.shape == (3, 4)
    assert set(rows.flatten().tolist()) <= set(tokenizer.encode_prompt("a b c d e f g"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda draft: texts_at_hand(*draft, "train"), "use"),
        (lambda draft: texts_at_hand(*draft, "measure", num_tokens=0), "num_tokens must be an integer of at"),
        (lambda draft: token_stream(draft.tokenizer, []), "texts must be at least one, got none"),
        (lambda draft: calibration_rows(*draft, ["a b"]), "texts must have the 256 tokens of a window"),
    ],
)
def test_what_gives_no_text_is_refused(draft, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(draft)
