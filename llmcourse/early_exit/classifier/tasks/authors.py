"""Who wrote these lines? From poems that begin with `《title》author`; the four who wrote most.

A poem's side is decided by its opening, and held-out poems that are near-copies of an earlier side's, whoever
signed those, are left out, as `variants` says. Lines that poems share otherwise are not looked for.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.classifier.tasks.task import SIDES, Example, Side, Task, by_side, without_repeats
from llmcourse.early_exit.classifier.tasks.variants import HEADER, near_copies, opening

NOBODY = ("无名氏", "不详", "佚名")
LINES = 6  # of an example at most: about 80 characters
MIN_LINES = 2


def passages(poem: str) -> list[str]:
    """The lines of a poem without its header, six together."""
    lines = poem.split("\n")[1:]
    cut = [lines[start : start + LINES] for start in range(0, len(lines), LINES)]
    return ["\n".join(part) for part in cut if len(part) >= MIN_LINES]


def author_task(poems: Iterable[str], *, authors: int = 4, seed: int = 0) -> Task:
    """The task over the authors with most poems, as many passages of each.

    Args:
        authors: how many, at least 2.

    Raises:
        ValueError: too few authors; and as `Task`.
    """
    require_integer(2, "authors", authors, "there is nothing to tell apart with fewer")
    poems = list(dict.fromkeys(poems))
    signed = {poem: found[1].strip() for poem in poems if (found := HEADER.match(poem))}
    counts = Counter(author for author in signed.values() if author not in NOBODY)
    classes = tuple(author for author, _ in counts.most_common(authors))
    asked = {poem: classes.index(author) for poem, author in signed.items() if author in classes}
    sides: dict[Side, list[Example]] = {}
    for side, own in _kept(poems, asked).items():
        sides[side] = [Example(opening(poem), (t,), asked[poem]) for poem in own for t in passages(poem)]
    kept = without_repeats(sides)
    return Task("author", classes, **{side: _balanced(kept[side], f"{seed} {side}") for side in SIDES})


def _kept(poems: Sequence[str], asked: Mapping[str, int]) -> dict[Side, list[str]]:
    """The poems of each side that are asked about, without near-copies of any poem of an earlier side."""
    sides, earlier = by_side(poems, opening), []
    kept: dict[Side, list[str]] = {}
    for side in SIDES:
        own = [poem for poem in sides[side] if poem in asked]
        copied = near_copies(own, earlier) if earlier else set()
        kept[side] = [poem for poem in own if poem not in copied]
        earlier = earlier + sides[side]
    return kept


def _balanced(examples: Sequence[Example], seed: str) -> tuple[Example, ...]:
    """As many of each class, in random order: so a share of right answers is a fair score."""
    of_class = defaultdict(list)
    for example in examples:
        of_class[example.label].append(example)
    draw, least = random.Random(seed), min(map(len, of_class.values()), default=0)
    kept = [example for group in of_class.values() for example in draw.sample(group, least)]
    return tuple(draw.sample(kept, len(kept)))
