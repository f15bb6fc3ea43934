"""Closing a quatrain: which openings are one, and which last lines do."""

from __future__ import annotations

import pytest

from llmcourse import pretrained
from llmcourse.speculative.tasks import quatrains, write_openings
from llmcourse.tokenizer import Tokenizer

OPENING = "《静夜思》李白\n床前明月光，疑是地上霜。\n举头望明月，"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(pretrained.find_checkpoint("draft"))


@pytest.fixture(scope="module")
def question(tokenizer):
    (found,) = quatrains([OPENING], tokenizer)
    return found


def test_an_opening_becomes_a_question(question, tokenizer):
    assert question.document == "《静夜思》李白"
    assert question.lines == ("床前明月光", "疑是地上霜", "举头望明月")
    assert tokenizer.decode(question.prompt) == OPENING
    assert quatrains([OPENING + "低头思故乡。\n又"], tokenizer) == [question]


@pytest.mark.parametrize(
    "opening",
    [
        OPENING[1:],  # no title
        OPENING[:-1],  # the third line is not finished
        OPENING.replace("地上霜", "地上"),  # four characters
        OPENING.replace("望明月", "望明月明月"),  # lines of different lengths
        OPENING.replace("地上霜", "地上月"),  # an oblique rhyme
        OPENING.replace("地上霜", "地上碣"),  # a character whose sound is not known
        "",
    ],
)
def test_what_is_no_opening_is_left_out(opening, tokenizer):
    assert quatrains([opening], tokenizer) == []


@pytest.mark.parametrize(
    ("text", "correct", "fits"),
    [
        ("低头思故乡。", True, True),
        ("\n低头思故乡！后来", True, True),
        ("低头思故里。", False, True),  # no rhyme
        ("低头思地上。", False, True),  # the rhyme's group, on an oblique tone
        ("低头思秋霜。", False, True),  # the same character again
        ("低头思乡。", False, False),
        ("低头又思故乡。", False, False),
        ("低头思故乡，", False, False),
        ("低头思故乡", False, False),
        ("", False, False),
        ("\0\n", False, False),
    ],
)
def test_last_lines(question, text, correct, fits):
    assert question.correct(text) == correct
    assert question.observed(text) == (float(fits),)


def test_openings_are_the_same_for_the_same_seed():
    model, tokenizer = pretrained.load("draft")
    short = {"batch": 2, "max_new_tokens": 8}
    written = write_openings(model, tokenizer, 3, seed=1, **short)
    assert len(written) == 3 and all(text.startswith("《") for text in written)
    assert written == write_openings(model, tokenizer, 3, seed=1, **short)
    assert written != write_openings(model, tokenizer, 3, seed=2, **short)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be an integer of at least 1, got 0; ask for one opening"),
        ({"count": 1, "batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"count": 1, "max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        write_openings(*pretrained.load("draft"), **arguments)
