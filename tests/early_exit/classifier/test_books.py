"""Books: title pages cut running text, and what only looks like one does not."""

import pytest

from llmcourse.early_exit.classifier.tasks import book_name, books, following_task, side_of
from llmcourse.early_exit.classifier.tasks.books import MIN_CHARS, author_of

CHAPTER = [f"Paragraph {number} is a sentence. " * 20 for number in range(MIN_CHARS // 500)]
FIRST = ["ONE BOOK", "By Ann Bell", *CHAPTER]


@pytest.mark.parametrize(
    "title", [["ANOTHER", "by Carl Dorn"], ["Another", "BY", "CARL DORN"], ["(Another)", "By", "*Carl Dorn*"]]
)
def test_a_title_page_begins_a_book(title):
    found = books([*FIRST, *title, *CHAPTER])
    assert [book.split("\n\n")[0] for book in found] == ["ONE BOOK", title[0]]
    assert "\n\n".join(found) == "\n\n".join([*FIRST, *title, *CHAPTER])


@pytest.mark.parametrize(
    "page",
    [
        ["Volume II", "by ANN BELL [Mrs. Dorn]"],  # the same author's
        ["ONE BOOK", "By", "Ann Bell"],
        ["He slept.", "By Carl Dorn"],
        ['"And then', "By Carl Dorn"],
        ["CHAPTER 2", "By the river they stopped"],
        ["CHAPTER 2", "By noon, all were there."],
        ["CHAPTER 2", "by", "a paragraph that goes on for longer than any name of a person ever goes on."],
    ],
)
def test_what_begins_none(page):
    assert len(books([*FIRST, *page, *CHAPTER])) == 1


def test_a_signed_poem_soon_after_a_beginning_cuts_nothing():
    assert len(books(["ONE BOOK", "By Ann Bell", *CHAPTER[:9], "SONG", "By Carl Dorn", *CHAPTER])) == 1


def test_text_without_title_pages_is_one_book():
    assert books(CHAPTER) == ["\n\n".join(CHAPTER)]
    assert books([]) == []


def test_an_author_is_known_however_it_is_written():
    assert author_of("T", "by Ann B. Bell", "") == author_of("T", "BY", "*ANN B. BELL*") == "annbbell"
    assert author_of("T", "Ann Bell", "") is None


def test_no_book_is_on_two_sides():
    """A planted cut by length, as passages of 32,000 characters are, puts one book on all three sides."""
    book = books(FIRST)[0]
    paragraphs = [f"{number} {'sea and wind ' * 20}" for number in range(600)]
    texts = [
        "\n\n".join([f"BOOK {n}", f"by Writer {n}", *(f"{n} {p}" for p in paragraphs)]) for n in range(40)
    ]
    found = books("\n\n".join(texts).split("\n\n"))
    assert found == texts
    task = following_task(found, per_document=10)
    for side in ("train", "validation", "test"):
        assert {e.document for e in task.side(side)} == {book_name(t) for t in texts if sided(t) == side}
    pieces = [book[start : start + 1000] for start in range(0, len(book), 1000)]
    assert len({sided(book)}) == 1 and len({sided(piece) for piece in pieces}) == 3


def sided(book: str) -> str:
    return side_of(book_name(book))
