"""Who wrote these lines? From poems that begin with `《title》author`; the four who wrote most."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.classifier.tasks.task import SIDES, Example, Side, Task, side_of, without_repeats

HEADER = re.compile(r"《[^\n]+》([^\n]+)\n")
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
    signed = [(found[1].strip(), poem) for poem in dict.fromkeys(poems) if (found := HEADER.match(poem))]
    counts = Counter(author for author, _ in signed if author not in NOBODY)
    classes = tuple(author for author, _ in counts.most_common(authors))
    sides: dict[Side, list[Example]] = {side: [] for side in SIDES}
    for author, poem in signed:
        if author in classes:
            sides[side_of(poem)] += [Example(poem, (t,), classes.index(author)) for t in passages(poem)]
    kept = without_repeats(sides)
    return Task("author", classes, **{side: _balanced(kept[side], f"{seed} {side}") for side in SIDES})


def _balanced(examples: Sequence[Example], seed: str) -> tuple[Example, ...]:
    """As many of each class, in random order: so a share of right answers is a fair score."""
    of_class = defaultdict(list)
    for example in examples:
        of_class[example.label].append(example)
    draw, least = random.Random(seed), min(map(len, of_class.values()), default=0)
    kept = [example for group in of_class.values() for example in draw.sample(group, least)]
    return tuple(draw.sample(kept, len(kept)))
