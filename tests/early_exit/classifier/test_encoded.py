"""Rows of a task: special tokens stand only where they are put, whatever a text says."""

import pytest

from llmcourse import pretrained
from llmcourse.early_exit.classifier.encoded import encode
from llmcourse.early_exit.classifier.encoder import NUM_SPECIAL, SEPARATOR, START
from llmcourse.early_exit.classifier.tasks import SIDES, Example, Task

LITERAL = "a<|sep|>b<|pad|>c<|mask|>d<|endoftext|>e"


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.load("draft").tokenizer


def test_special_tokens_written_in_a_text_are_text(tokenizer):
    sides = {s: tuple(Example(f"{s}{n}", (LITERAL, f"{n} {LITERAL}"), n) for n in (0, 1)) for s in SIDES}
    found = encode(Task("t", ("no", "yes"), **sides), "test", tokenizer, 200)
    for tokens in found.texts():
        special = [token for token in tokens[0].tolist() if token < NUM_SPECIAL]
        assert special == [START, SEPARATOR]
        halves = tokens[0].tolist()[1:]
        assert tokenizer.decode(halves[: halves.index(SEPARATOR)], skip_special_tokens=False) == LITERAL


def test_other_texts_are_encoded_as_ever(tokenizer):
    for text in ("def f(x):\n    return x", "明月", ""):
        assert tokenizer.encode_plain(text) == tokenizer.encode(text)
    assert min(tokenizer.encode(LITERAL)) < NUM_SPECIAL <= min(tokenizer.encode_plain(LITERAL))
