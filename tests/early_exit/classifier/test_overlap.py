"""Words that two texts share, and the one threshold over them."""

import pytest

from llmcourse.early_exit.classifier.overlap import best_threshold, overlap, word_overlap_score, words
from llmcourse.early_exit.classifier.tasks import SIDES, Example, Task


def test_names_are_cut_into_words():
    assert words("def read_file(HTTPServer, maxSize2):") == {
        *("def", "read", "file", "http", "server", "max", "size", "2")
    }


def test_overlap_by_hand():
    assert overlap("Read the file.", "def read_file(): pass") == pytest.approx(2 / 3)
    assert overlap("", "a") == 0 and overlap("a b", "b a c") == 1


def test_the_threshold_that_is_right_most_often():
    assert best_threshold([(0.1, 0), (0.2, 1), (0.3, 0), (0.4, 0), (0.5, 1), (0.6, 1)]) == 0.5
    assert best_threshold([(0.1, 0), (0.2, 0)]) == float("inf")
    assert best_threshold([(0.1, 1), (0.2, 1)]) == 0.1


def task(test_label: int) -> Task:
    """Validation says that sharing all words is belonging; the test agrees, or says the opposite."""
    pair = lambda side, n, label: Example(f"{side}{n}", ("a b", "a b" if label else "a c"), label)  # noqa: E731
    sides = {side: tuple(pair(side, n, n % 2) for n in range(4)) for side in SIDES}
    sides["test"] = tuple(Example(e.document, e.texts, int(e.label == test_label)) for e in sides["test"])
    return Task("t", ("no", "yes"), **sides)


def test_the_threshold_is_validations():
    assert word_overlap_score(task(1), 4) == 100
    assert word_overlap_score(task(0), 4) == 0


def test_single_texts_are_refused():
    single = {side: tuple(Example(f"{side}{n}", ("a",), n) for n in (0, 1)) for side in SIDES}
    with pytest.raises(ValueError, match="task must be one of pairs, got t"):
        word_overlap_score(Task("t", ("no", "yes"), **single), 4)
