"""Does this paragraph follow that one? From running prose; a wrong one is from far away in the same book.

So who and what a book is about does not answer; what a chapter is about still may.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.classifier.tasks.books import book_name
from llmcourse.early_exit.classifier.tasks.pairs import Pair, far_within, pair_task
from llmcourse.early_exit.classifier.tasks.task import Task

MIN_CHARS = 100  # of a paragraph: "Yes." follows everything
MAX_CHARS = 600
FEWEST = 8  # pairs of a book: of fewer, far away is near


def neighbours(document: str, count: int) -> list[tuple[str, str]]:
    """At most `count` pairs of neighbouring paragraphs, no paragraph in two of them."""
    paragraphs = document.split("\n\n")
    found, index = [], 0
    while index + 1 < len(paragraphs):
        first, second = paragraphs[index : index + 2]
        long_enough = min(len(first), len(second)) >= MIN_CHARS
        if long_enough:
            found.append((first[-MAX_CHARS:], second[:MAX_CHARS]))
        index += 2 if long_enough else 1
    draw = random.Random(document[:200])
    return [found[place] for place in sorted(draw.sample(range(len(found)), min(count, len(found))))]


def following_task(
    documents: Iterable[str], *, per_document: int = 400, rounds: int = 2, seed: int = 0
) -> Task:
    """The task over books whose paragraphs are separated by blank lines, as `books.books` makes them.

    Args:
        documents: the books; one with fewer than `FEWEST` pairs is left out.
        per_document: pairs of one book at most, at least 1.

    Raises:
        ValueError: a number that is no integer or too small; and as `pair_task`.
    """
    require_integer(1, "per_document", per_document, "take one pair of each book or more")
    pairs = [Pair(book_name(book), *pair) for book in documents for pair in neighbours(book, per_document)]
    how = {"others": far_within, "fewest": FEWEST, "first_from_end": True}
    return pair_task("following", pairs, rounds=rounds, seed=seed, **how)
