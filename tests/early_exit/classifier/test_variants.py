"""Variants of a poem: one side for one opening, and no near-copy is asked about."""

import random

import pytest

from llmcourse.early_exit.classifier.tasks import SIDES, author_task, by_side, opening
from llmcourse.early_exit.classifier.tasks.variants import near_copies

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 600)]


def poems(count: int = 300, seed: int = 0) -> list[str]:
    """By two authors in turn, of eight lines of five characters."""
    draw = random.Random(seed)
    lines = lambda: "\n".join("".join(draw.choices(CHARACTERS, k=5)) + "，" for _ in range(8))  # noqa: E731
    return [f"《第{number}》{'甲乙'[number % 2]}\n{lines()}" for number in range(count)]


def varied(poem: str, place: int) -> str:
    """The poem with one character that no other has, in its text."""
    start = poem.index("\n") + 1
    return poem[: start + place] + "口" + poem[start + place + 1 :]


def copied(task) -> int:
    """Held-out passages that a training passage equals in all but two places."""
    near = lambda a, b: len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 2  # noqa: E731
    train = [e.texts[0] for e in task.train]
    return sum(any(near(e.texts[0], text) for text in train) for e in [*task.validation, *task.test])


def test_an_opening_by_hand():
    assert opening("《题》李白\n床前明月光，疑是地上霜。") == "床前明月光"
    assert opening("《又题》杜甫\n 床前明月光。\n") == "床前明月光"
    assert opening("床前\n明月") == "床前" and opening("。") == "。"


@pytest.mark.parametrize("place", [0, 4, 8, 30])
def test_no_variant_is_on_another_side_than_the_training(place):
    """In the opening (0, 4) the rule finds them, elsewhere the side is one."""
    own = poems()
    both = own + [varied(poem, place) for poem in own]
    assert copied(author_task(both, authors=2)) == 0
    sides = by_side(both, opening)
    across = near_copies(sides["test"], sides["train"])
    assert bool(across) == (place in (0, 4))


def test_the_count_sees_planted_variants():
    """With sides by whole texts instead of openings, most held-out poems have theirs in training."""
    own = poems()
    sides = by_side(own + [varied(poem, 8) for poem in own])
    assert len(near_copies(sides["test"], sides["train"])) > len(sides["test"]) / 2


def test_a_variant_under_a_third_author_is_dropped_too():
    own = poems()
    elsewhere = [varied(poem, 0).replace("》甲", "》丙").replace("》乙", "》丙") for poem in own[:200]]
    task = author_task(own + elsewhere, authors=2)
    trained = by_side(own + elsewhere, opening)["train"]
    asked = {e.document for side in SIDES[1:] for e in task.side(side)}
    kept = [poem for poem in own if opening(poem) in asked]
    assert kept and not near_copies(kept, trained)


def test_near_copies_by_hand():
    poem = "《甲》乙\n一二三四五六七八九十百千"  # 11 pairs
    assert near_copies([poem], ["《丙》丁\n一二三四五六七八九"]) == {poem}  # 8 shared
    assert near_copies([poem], ["一二三四五六七八"]) == set()  # 7 shared: too few
    long = "".join(CHARACTERS[100:140])
    assert near_copies([long], [long[:20] + "".join(CHARACTERS[200:221])]) == set()  # 19 of 39
    assert near_copies([long], [long[:21] + "".join(CHARACTERS[200:221])]) == {long}  # 20 of 39
    assert near_copies([long], []) == set()
