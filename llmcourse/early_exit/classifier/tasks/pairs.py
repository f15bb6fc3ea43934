"""Pairs of texts that belong together, and as many that do not.

Every second text is as often a right one as a wrong one, so neither text alone says anything. A wrong one is
another document's (as in BERT's next sentence prediction, Devlin et al. 2019, section 3.1), or one from far
away in the same document, whose names and subject are less of a hint.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
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


def far_within(documents: Sequence[str], draw: random.Random) -> list[int]:
    """For each place another one of the same document; each is taken once.

    All of a document take what lies as many of its places ahead, from the last one on again at the first: so
    it is at least a quarter of them away, in both directions.

    Args:
        documents: of each place, in the order in which the places stand in their document.

    Raises:
        ValueError: a document with one place.
    """
    places: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        places.setdefault(document, []).append(place)
    taken = [0] * len(documents)
    for own in places.values():
        require(len(own) >= 2, "places of one document", "2 or more", len(own), "leave it out")
        quarter = -(-len(own) // 4)
        ahead = draw.randint(quarter, len(own) - quarter)
        for number, place in enumerate(own):
            taken[place] = own[(number + ahead) % len(own)]
    return taken


def pair_task(
    name: str,
    pairs: Sequence[Pair],
    *,
    rounds: int = 4,
    seed: int = 0,
    first_from_end: bool = False,
    others: Callable[[Sequence[str], random.Random], list[int]] = strangers,
    fewest: int = 1,
) -> Task:
    """A task of two classes.

    Args:
        pairs: in their documents' order; those with a text that stood in an earlier one are left out.
        others: `strangers`, or `far_within`.
        fewest: pairs of a document; one with less is left out.
        rounds: how many strangers each text of the training side meets, at least 1; elsewhere one.

    Raises:
        ValueError: `rounds` is no integer or below 1; and as `Task` and `others`.
    """
    require_integer(1, "rounds", rounds, "let each text meet one stranger or more")
    sides: dict[Side, list[Pair]] = {side: [] for side in SIDES}
    seen: set[str] = set()
    for pair in pairs:  # a text that stood before is left out: it might be asked about on another side
        if not seen & {pair.first, pair.second}:
            sides[side_of(pair.document)].append(pair)
        seen |= {pair.first, pair.second}
    counts = Counter(pair.document for own in sides.values() for pair in own)
    examples = {}
    for side, own in sides.items():
        enough = [pair for pair in own if counts[pair.document] >= fewest]
        draw = random.Random(f"{seed} {side}")
        examples[side] = tuple(_mixed(enough, rounds if side == "train" else 1, draw, others))
    return Task(name, CLASSES, **examples, first_from_end=first_from_end)


def _mixed(pairs: Sequence[Pair], rounds: int, draw: random.Random, others: Callable) -> list[Example]:
    if not pairs:
        return []
    documents, examples = [pair.document for pair in pairs], []
    for _ in range(rounds):
        for pair, other in zip(pairs, others(documents, draw), strict=True):
            examples.append(Example(pair.document, (pair.first, pair.second), 1))
            examples.append(Example(pair.document, (pair.first, pairs[other].second), 0))
    draw.shuffle(examples)
    return examples
