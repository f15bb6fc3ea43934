import pytest

from llmcourse.prompts import CODE, PROSE, VERSE, first_function, one_hundred


def test_one_hundred_different_openings():
    openings = one_hundred()
    assert len(openings) == len(set(openings)) == 100
    assert [len(PROSE), len(VERSE)] == [34, 33]
    assert all(text.strip() for text in (*openings, *CODE))


def test_a_module_opens_with_its_first_function():
    assert (
        first_function("import os\n\nclass A:\n    def f(self):\n        pass\n")
        == "    def f(self):\n        pass\n"
    )


def test_or_with_its_first_class_where_it_has_no_function():
    assert first_function("import os\n\nclass A:\n    x = 1\n") == "class A:\n    x = 1\n"


def test_a_module_with_neither_is_refused():
    with pytest.raises(ValueError, match="source must hold a def or a class, got 'x = 1"):
        first_function("x = 1\n")
