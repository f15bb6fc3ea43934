"""What a cascade is asked: a text to continue, and a check that tells right from wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

from llmcourse.decoding.errors import require

Split = Literal["train", "thresholds", "test"]
SPLITS: tuple[Split, ...] = ("train", "thresholds", "test")


@runtime_checkable
class Question(Protocol):
    """One question with a checkable answer.

    Attributes:
        document: the file or poem that it comes from; questions of one document stay on one side of a split.
        prompt: token ids.
    """

    document: str
    prompt: tuple[int, ...]

    def correct(self, text: str) -> bool:
        """Whether the continuation is right; what a judge has to guess."""
        ...

    def observed(self, text: str) -> tuple[float, ...]:
        """What can be seen of an answer without knowing the right one, each in [0, 1]."""
        ...


Q = TypeVar("Q", bound=Question)


def split_of(document: str) -> Split:
    """Where a document's questions belong: a matter of its name alone, each side a third of all documents.

    Judges are trained on the first, thresholds chosen on the second, results reported on the third. A hash
    decides, so that a document stays where it is when others are added.
    """
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return SPLITS[int.from_bytes(digest, "big") * len(SPLITS) >> 64]


def split(questions: Iterable[Q]) -> dict[Split, list[Q]]:
    """The questions of each side, in their order.

    A prompt that several documents share (a copied function, a proverb) is asked once, for the first of
    them: otherwise a judge could be tested on what it was trained on.

    Raises:
        ValueError: a side would be empty.
    """
    first: dict[tuple[int, ...], Q] = {}
    for question in questions:
        first.setdefault(tuple(question.prompt), question)
    sides: dict[Split, list[Q]] = {side: [] for side in SPLITS}
    for question in first.values():
        sides[split_of(question.document)].append(question)
    _check_sides(sides)
    return sides


def _check_sides(sides: dict[Split, Sequence[object]]) -> None:
    for side, members in sides.items():
        remedy = "ask about more documents"
        require(len(members) > 0, f"questions for {side}", "at least 1", len(members), remedy)
