"""Sounds of characters, in rhymes that every reader knows."""

from __future__ import annotations

import pytest

from llmcourse.speculative.tasks import rhyme
from llmcourse.speculative.tasks.rhyme import is_level, pronounce, rhyme_group, rhymes


@pytest.mark.parametrize(
    ("character", "sound"),
    [
        ("啊", ("a", 1)),  # the first of all
        ("座", ("zuo", 4)),  # the last
        ("月", ("yue", 4)),
        ("光", ("guang", 1)),
        ("绿", ("lü", 4)),
        ("路", ("lu", 4)),
        ("女", ("nü", 3)),
        ("春", ("chun", 1)),
        ("天", ("tian", 1)),
        ("雪", ("xue", 3)),
        ("儿", ("er", 2)),
        ("一", ("yi", 1)),
    ],
)
def test_sounds(character, sound):
    assert pronounce(character) == sound


@pytest.mark.parametrize("stranger", ["㐀", "a", "，", "碣", "", "明月", "\ud800"])
def test_what_is_not_of_the_3755_has_no_sound(stranger):
    """碣 is of level 2; a text of several characters is none."""
    assert pronounce(stranger) is None and rhyme_group(stranger) is None and is_level(stranger) is None
    assert not rhymes(stranger, stranger) and not rhymes("光", stranger)


def level_1() -> list[str]:
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [c for code in codes if (c := code.decode("gb2312", errors="ignore"))]


def test_all_characters_have_a_rhyme_and_the_runs_are_in_order():
    characters = level_1()
    assert len(characters) == 3755
    groups = {rhyme_group(character) for character in characters}
    assert groups == {name for name, _ in rhyme.GROUPS}
    codes, sounds = rhyme._runs()
    assert len(codes) == 1098 and codes == sorted(set(codes)) and len(sounds) == len(set(sounds))


@pytest.mark.parametrize("rhyming", ["光霜乡", "流楼", "闲山间", "生声", "家花斜"[:2], "诗之知", "东风中"])
def test_rhymes_of_famous_quatrains(rhyming):
    first, *others = rhyming
    assert all(rhymes(first, other) for other in others)


def test_a_character_does_not_rhyme_with_itself_or_another_group():
    assert not rhymes("光", "光") and not rhymes("光", "流") and not rhymes("路", "绿")


def test_tones():
    assert [is_level(c) for c in "床前明月光疑是地上霜"] == [
        *[True] * 3,
        False,
        True,
        True,
        *[False] * 3,
        True,
    ]
