"""Variants of a poem: one text handed down with other characters, titles or authors.

A poem's side is decided by its opening, the first phrase without its stop, which most variants share. For
those that open otherwise there is a rule: two poems are near-copies where they share at least half of the
different pairs of neighbouring characters that the shorter one has, and at least `FEWEST`. Headers, spaces
and stops do not count.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

HEADER = re.compile(r"《[^\n]+》([^\n]+)\n")
STOP = re.compile(r"[^\w\s]|\n")
FEWEST = 8  # shared pairs: two short poems share some by chance


def body(poem: str) -> str:
    """A poem without its header `《title》author`, if it has one."""
    found = HEADER.match(poem)
    return poem[found.end() :] if found else poem


def opening(poem: str) -> str:
    """What decides on a poem's side: its first phrase; the whole text of one without words."""
    return next((phrase for part in STOP.split(body(poem)) if (phrase := "".join(part.split()))), poem)


def character_pairs(poem: str) -> frozenset[str]:
    text = re.sub(r"\W", "", body(poem))
    return frozenset(text[place : place + 2] for place in range(len(text) - 1))


def near_copies(poems: Sequence[str], others: Iterable[str]) -> set[str]:
    """Those of the poems that are near-copies of one of the others."""
    pairs = [character_pairs(poem) for poem in poems]
    having: dict[str, list[int]] = defaultdict(list)
    for number, own in enumerate(pairs):
        for pair in own:
            having[pair].append(number)
    found: set[str] = set()
    for other in map(character_pairs, others):
        shared = Counter(number for pair in other for number in having.get(pair, ()))
        for number, count in shared.items():
            if count >= max(FEWEST, min(len(pairs[number]), len(other)) / 2):
                found.add(poems[number])
    return found
