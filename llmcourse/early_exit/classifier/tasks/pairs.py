"""Pairs of texts that belong together, and as many that do not.

Every second text is once the right one and once a wrong one, so neither text alone says anything; a wrong one
is always another document's (as in BERT's next sentence prediction, Devlin et al. 2019, section 3.1).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.decoding.errors import require, require_integer
from llmcourse.early_exit.classifier.tasks.task import SIDES, Example, Side, Task, side_of

CLASSES = ("strangers", "belong together")


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and their document as in `Example`."""

    document: str
    first: str
    second: str


def strangers(documents: Sequence[str], draw: random.Random) -> list[int]:
    """For each place another one, of another document; each is taken once.

    Documents are laid in a circle in random order, and everybody takes what lies as far ahead as the largest
    document is long.

    Raises:
        ValueError: one document has more than half of the places.
    """
    counts = Counter(documents)
    largest = max(counts.values())
    allowed, remedy = f"at most {len(documents) // 2}, a half", "give more documents"
    require(2 * largest <= len(documents), "places of one document", allowed, largest, remedy)
    order = draw.sample(sorted(counts), len(counts))
    rank = {document: number for number, document in enumerate(order)}
    circle = draw.sample(range(len(documents)), len(documents))
    circle.sort(key=lambda place: rank[documents[place]])
    taken = [0] * len(documents)
    for number, place in enumerate(circle):
        taken[place] = circle[(number + largest) % len(circle)]
    return taken


def pair_task(
    name: str, pairs: Sequence[Pair], *, rounds: int = 4, seed: int = 0, first_from_end: bool = False
) -> Task:
    """A task of two classes.

    Args:
        pairs: those with a text that stood in an earlier one are left out.
        rounds: how many strangers each text of the training side meets, at least 1; elsewhere one.

    Raises:
        ValueError: `rounds` is no integer or below 1; and as `Task` and `strangers`.
    """
    require_integer(1, "rounds", rounds, "let each text meet one stranger or more")
    sides: dict[Side, list[Pair]] = {side: [] for side in SIDES}
    seen: set[str] = set()
    for pair in pairs:  # a text that stood before is left out: it might be asked about on another side
        if not seen & {pair.first, pair.second}:
            sides[side_of(pair.document)].append(pair)
        seen |= {pair.first, pair.second}
    examples = {
        side: tuple(_mixed(sides[side], rounds if side == "train" else 1, random.Random(f"{seed} {side}")))
        for side in SIDES
    }
    return Task(name, CLASSES, **examples, first_from_end=first_from_end)


def _mixed(pairs: Sequence[Pair], rounds: int, draw: random.Random) -> list[Example]:
    if not pairs:
        return []
    documents, examples = [pair.document for pair in pairs], []
    for _ in range(rounds):
        for pair, other in zip(pairs, strangers(documents, draw), strict=True):
            examples.append(Example(pair.document, (pair.first, pair.second), 1))
            examples.append(Example(pair.document, (pair.first, pairs[other].second), 0))
    draw.shuffle(examples)
    return examples
