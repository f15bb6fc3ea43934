"""The map of the course says what the chapters say."""

import json

import pytest

from llmcourse.figures import course_map, language
from llmcourse.figures.course_map import NEEDS, PLACES, Chapter, duration, read_course
from llmcourse.grading.exercises import catalogue

LAB_MINUTES = {stem: sum(exercise.minutes for exercise in lab) for stem, lab in catalogue.labs().items()}


def write(folder, stem, *texts):
    cells = [{"cell_type": "markdown", "source": text.splitlines(keepends=True)} for text in texts]
    path = folder / f"{stem}.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def test_chapters_are_read_from_their_own_texts(tmp_path):
    write(tmp_path, "00_start_here", "# Start here")
    write(tmp_path, "01_first", "# Chapter 1 · First\n\n**Time** about 45 minutes, see chapter 5.")
    write(
        tmp_path,
        "03_third",
        "# Chapter 3 · Third one",
        "**Time** about 100 minutes.\nAs chapters 1 and 2 say.",
    )
    assert read_course(tmp_path) == (
        Chapter(1, "01_first", "First", 45, ()),
        Chapter(3, "03_third", "Third one", 100, (1, 2)),
    )


def test_titles_may_come_from_another_language(tmp_path):
    (tmp_path / "zh").mkdir()
    write(tmp_path, "01_first", "# Chapter 1 · First\n\n**Time** about 45 minutes")
    write(tmp_path, "02_second", "# Chapter 2 · Second\n\n**Time** about 50 minutes")
    write(tmp_path / "zh", "01_first", "# 第 1 章 · 解码")
    assert [c.title for c in read_course(tmp_path, tmp_path / "zh")] == ["解码", "Second"]


@pytest.mark.parametrize(
    ("text", "lacks"), [("# First\n**Time** 5 minutes", "a title"), ("# Chapter 1 · First", "a line")]
)
def test_a_chapter_that_does_not_say_it_is_named(tmp_path, text, lacks):
    write(tmp_path, "01_first", text)
    with pytest.raises(ValueError, match=rf"01_first\.ipynb must have {lacks}"):
        read_course(tmp_path)


def test_every_chapter_has_a_place_needs_and_a_lab():
    chapters = read_course()
    assert [c.number for c in chapters] == sorted(NEEDS) == sorted(PLACES) == list(range(1, 7))
    assert [c.stem for c in chapters] == list(LAB_MINUTES)
    assert len(set(PLACES.values())) == len(PLACES)


def test_chapters_speak_of_what_they_need():
    for chapter in read_course()[2:]:  # the second goes on where the first ends
        assert set(NEEDS[chapter.number]) <= set(chapter.speaks_of), chapter.stem
    assert all(needed < number for number, every in NEEDS.items() for needed in every)


def test_what_comes_along_with_a_need_is_not_drawn_twice():
    assert Chapter(6, "06_x", "x", 1, (1, 2, 3, 4, 5)).draws_on == (3,)
    assert Chapter(5, "05_x", "x", 1, (1, 2, 3, 4)).draws_on == (3, 4)


def test_every_box_opens_its_chapter_and_lies_where_it_is_drawn():
    chapters = read_course()
    shown = course_map.course_map(chapters, LAB_MINUTES)
    page = shown._repr_html_()
    assert page.count("<a ") == 6 and page.count("<img ") == 1
    for chapter in chapters:
        assert f'href="{chapter.stem}.ipynb"' in page
    width, height = shown.picture.get_size_inches()
    for column, row in PLACES.values():
        right = course_map.LEFT + column * course_map.COLUMN + course_map.BOX_WIDTH
        assert right < width and course_map.TOP + row * course_map.ROW + course_map.BOX_HEIGHT < height
    assert len(page) < 80_000


def test_the_map_is_told_in_words_too():
    chapters = read_course()
    shown = course_map.course_map(chapters, LAB_MINUTES)
    total = sum(c.minutes for c in chapters) + sum(LAB_MINUTES.values())
    assert f"{total // 60} h {total % 60:02} in all" in shown.picture.texts[1].get_text()
    assert "6 Distillation" in repr(shown) and "needs 4 and 5" in repr(shown)


@pytest.fixture(params=language.LANGUAGES)
def spoken(request):
    language.use(request.param)
    yield
    language.use("en")


def test_titles_stay_within_their_boxes(spoken):
    shown = course_map.course_map(read_course(), LAB_MINUTES)
    axes = shown.picture.axes[0]
    renderer = shown.picture.canvas.get_renderer()
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if hasattr(patch, "get_boxstyle")]
    assert len(boxes) == 6
    for text in axes.texts[:-2]:  # the last two are the key
        extent = text.get_window_extent(renderer)
        assert any(
            box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
            for box in boxes
        ), text.get_text()


def test_long_and_chinese_titles_are_broken():
    assert course_map._lines("Speculative decoding, Medusa and early exit") == [
        "Speculative",
        "decoding, Medusa",
        "and early exit",
    ]
    assert course_map._lines("推测解码、美杜莎与提前退出") == ["推测解码、美杜莎", "与提前退出"]


def test_a_chapter_without_a_place_is_refused():
    with pytest.raises(ValueError, match="got 9; give it a place"):
        course_map.course_map([Chapter(9, "09_x", "x", 1, ())], {})


@pytest.mark.parametrize(("minutes", "words"), [(5, "5 min"), (60, "1 h 00"), (203, "3 h 23")])
def test_durations_read_well(minutes, words):
    assert duration(minutes) == words
