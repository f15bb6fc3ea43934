"""What a classifier is asked: texts with a class each, on three sides that share no document."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmcourse.decoding.errors import require

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
HELD_OUT = 0.15  # of the documents, for validation, and as many for the test


@dataclass(frozen=True)
class Example:
    """One or two texts and their class.

    Attributes:
        document: what they come from (of a pair the first), by the name that decides on the side: a file's
            path, a poem's opening, a book's beginning.
        texts: one, or a pair.
        label: index of the class.
    """

    document: str
    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Task:
    """Examples to learn from, to choose thresholds by, and to report on.

    Attributes:
        classes: their names.
        first_from_end: of a pair that is too long, the end of the first text is kept.

    Raises:
        ValueError: fewer than two classes, two of one name, a side without examples or with a class less, a
            label that is none, or a document that is on two sides.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    first_from_end: bool = False

    def __post_init__(self):
        count = len(self.classes)
        require(count >= 2, f"classes of {self.name}", "two or more", count, "there is nothing to tell apart")
        twice = [name for name in dict.fromkeys(self.classes) if self.classes.count(name) > 1]
        allowed = "named once each"
        require(not twice, f"classes of {self.name}", allowed, twice, "call each by a name of its own")
        seen: dict[str, Side] = {}
        for side in SIDES:
            examples = self.side(side)
            what, remedy = f"examples of {self.name} for {side}", "give more text"
            require(len(examples) > 0, what, "at least 1", len(examples), remedy)
            labels = {example.label for example in examples}
            allowed = f"of all {count} classes"
            require(labels == set(range(count)), what, allowed, f"labels {sorted(labels)}", remedy)
            for document in {example.document for example in examples}:
                other = seen.setdefault(document, side)
                remedy = "split by document"
                require(
                    other == side, f"a document of {self.name}", "on one side", f"{other}, {side}", remedy
                )

    def side(self, name: Side) -> tuple[Example, ...]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def is_pair(self) -> bool:
        return len(self.train[0].texts) == 2


def side_of(name: str) -> Side:
    """Where a document belongs: a matter of its name alone, so it stays there when others are added.

    Args:
        name: what its variants share: for a file of Python its path below its root, as
            `importlib/metadata/__init__.py`, for every version of Python changes its text.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "test" if share < HELD_OUT else "validation" if share < 2 * HELD_OUT else "train"


def by_side(documents: Iterable[str], name: Callable[[str], str] = str) -> dict[Side, list[str]]:
    """The documents of each side, each once, in their order.

    Args:
        name: of a document, from its text: `opening` for poems, `book_name` for books.
    """
    sides: dict[Side, list[str]] = {side: [] for side in SIDES}
    for document in dict.fromkeys(documents):
        sides[side_of(name(document))].append(document)
    return sides


def without_repeats(sides: dict[Side, Sequence[Example]]) -> dict[Side, tuple[Example, ...]]:
    """The same without texts that an earlier side has too, character by character: what was learned is not
    asked. Texts that differ in a character stay (for poems see `variants`)."""
    seen: set[str] = set()
    kept: dict[Side, tuple[Example, ...]] = {}
    for side in SIDES:
        kept[side] = tuple(example for example in sides[side] if not seen & set(example.texts))
        seen |= {text for example in kept[side] for text in example.texts}
    return kept
