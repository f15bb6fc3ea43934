"""Running text cut into books where a title page says so: a short line, and below it `by` with a name.

A book is held out whole, or not at all: its names and places would tell otherwise. So a wrong cut is worse
than a missed one, which only holds two books together. No cut is made where the author is the last one's, for
volumes and repeated title pages look just like that, nor shortly after another. Lines above the title's last
one (a first title, `THE END`) stay with the book before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MIN_CHARS = 60_000  # of a book: a poem in it may be signed, too
TITLE_CHARS = 70  # of a line of a title page at most
NAME_CHARS = 200
# A line that ends like a sentence is none of a title, and `By the ...` begins a sentence or signs a chapter.
TITLE = re.compile(r"""(?!["'])[^\n]+(?<![.?!,;:"'])|\([^\n]+\)|[^\n]+,""")
BY = re.compile(r"(?:by|BY|By)(?: (?!the )(?P<name>[A-Z][^\n,;?!]*))?")
ALSO = re.compile(r"\s*\[.*|\W+")  # what may follow a name, and what is between its parts


def author_of(title: str, by: str, below: str) -> str | None:
    """Whom a line `by` below a title names, alike for all ways to write it; None where that is no title page.

    Args:
        below: the next line, which has the name where `by` stands alone.
    """
    found = BY.fullmatch(by)
    if not found or max(len(title), len(by)) > TITLE_CHARS or not TITLE.fullmatch(title):
        return None
    name = found["name"] or below
    return ALSO.sub("", name).lower() if len(name) <= TITLE_CHARS else None


def books(paragraphs: Iterable[str]) -> list[str]:
    """The books of a file, in their order: paragraphs joined by blank lines.

    Args:
        paragraphs: of one file; one without title pages is one book.
    """
    blocks = list(paragraphs)
    starts, length, author = [0], 0, ""
    for index, title in enumerate(blocks[:-2]):
        name = author_of(title, *blocks[index + 1 : index + 3])
        if name and name != author and (length >= MIN_CHARS or not author):
            author = name
            if length >= MIN_CHARS:
                starts, length = [*starts, index], 0
        length += len(title)
    ends = [*starts[1:], len(blocks)]
    return ["\n\n".join(blocks[start:end]) for start, end in zip(starts, ends, strict=True) if start < end]


def book_name(book: str) -> str:
    """What decides on a book's side: its beginning, so later corrections leave it there."""
    return book[:NAME_CHARS]
