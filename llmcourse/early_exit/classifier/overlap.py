"""What counting words knows of a task of pairs: two texts belong together where they share enough of them.

    overlap = |W_1 ∩ W_2| / |W_1|         W: a text's words, names of a program cut into theirs

One threshold, chosen on validation data. A classifier that reads is worth its layers where it beats this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.tasks import Example, Task

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")  # of some_name and SomeName both


def words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in WORD.findall(text))


def overlap(first: str, second: str) -> float:
    """Share of the first text's words that the second has too: in [0, 1], 0 for a text without words."""
    own = words(first)
    return len(own & words(second)) / max(1, len(own))


def best_threshold(scored: Sequence[tuple[float, int]]) -> float:
    """The overlap from which on saying 1 is right most often; the lowest of several.

    Args:
        scored: overlaps with their labels, 0 or 1.
    """
    candidates = [*sorted({score for score, _ in scored}), float("inf")]
    return max(candidates, key=lambda edge: sum((score >= edge) == label for score, label in scored))


def word_overlap_score(task: Task, examples: int) -> float:
    """Percent of right answers on the test side.

    Args:
        examples: at most so many of validation and of the test, the first ones, as the table takes.

    Raises:
        ValueError: a task of single texts.
    """
    require(task.is_pair, "task", "one of pairs", task.name, "count words that two texts share")
    edge = best_threshold(_scored(task.validation[:examples]))
    right = [(score >= edge) == label for score, label in _scored(task.test[:examples])]
    return 100 * sum(right) / len(right)


def _scored(examples: Sequence[Example]) -> list[tuple[float, int]]:
    return [(overlap(*example.texts), example.label) for example in examples]
