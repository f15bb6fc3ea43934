"""Does this paragraph follow that one? From running prose; a wrong one is from another part or book."""

from __future__ import annotations

import random
from collections.abc import Iterable

from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.classifier.tasks.pairs import Pair, pair_task
from llmcourse.early_exit.classifier.tasks.task import Task

MIN_CHARS = 100  # of a paragraph: "Yes." follows everything
MAX_CHARS = 600


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
    documents: Iterable[str], *, per_document: int = 8, rounds: int = 2, seed: int = 0
) -> Task:
    """The task over documents whose paragraphs are separated by blank lines.

    Args:
        per_document: pairs of one document at most, at least 1.

    Raises:
        ValueError: a number that is no integer or too small; and as `pair_task`.
    """
    require_integer(1, "per_document", per_document, "take one pair of each document or more")
    pairs = [Pair(text, *pair) for text in documents for pair in neighbours(text, per_document)]
    return pair_task("following", pairs, rounds=rounds, seed=seed, first_from_end=True)
