"""The glossary follows the tables of symbols, and no two of them translate a term differently."""

import pytest

from tools import glossary
from tools.glossary import Term, cells, conflicts, full_width, tables, taken_apart

TABLE = r"""# Text.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $a,\ b$ | first thing; second thing | 甲;乙 | `a`, `b` |
# | $|x|$ | absolute | 绝对值 | |
#
# | other | table |
# |---|---|
# | no | term |
"""
# The same English words for different things.
ON_PURPOSE = {"queries", "keys", "chance that a draft stands"}


def test_the_glossary_is_that_of_the_tables():
    assert glossary.TARGET.read_text(encoding="utf-8") == glossary.page(), (
        "run `python -m tools.chinese glossary`"
    )


def test_no_term_is_translated_in_two_ways():
    found = [line for line in conflicts(glossary.terms()) if line.split(":")[0] not in ON_PURPOSE]
    assert found == []


def test_two_translations_of_one_term_are_told_and_what_one_leaves_out_is_not():
    told = [Term("logits", "对数几率", "$l$", "chapter 1"), Term("the logits", "逻辑值", "$z$", "lab 6")]
    assert conflicts(told) == ["logits: 对数几率 in chapter 1 but 逻辑值 in lab 6"]
    same = [Term("slow memory", "显存", "HBM", "chapter 3"), Term("slow memory", "显存 (HBM)", "", "lab 3")]
    several = [Term("work", "运算量，访存量", "", "chapter 2"), Term("work", "运算量；访存量", "", "lab 2")]
    assert conflicts(same) == conflicts(several) == []


def test_tables_of_symbols_are_found_and_others_are_not():
    assert [row[1:3] for row in tables(TABLE)] == [
        ["first thing; second thing", "甲;乙"],
        ["absolute", "绝对值"],
    ]


def test_bars_in_formulas_part_no_columns():
    assert cells(r"| $p(a \mid b)$, $|x|$ | two `a|b` | 两个 |") == [
        r"$p(a \mid b)$, $|x|$",
        "two `a|b`",
        "两个",
    ]


@pytest.mark.parametrize(
    ("row", "terms"),
    [
        (("$a$", "one", "一"), [("$a$", "one", "一")]),
        ((r"$a,\ b$", "one; two", "一;二"), [("$a$", "one", "一"), ("$b$", "two", "二")]),
        (("", "one, two", "一,二"), [("", "one", "一"), ("", "two", "二")]),
        (("", "one; two, three", "一;二,三"), [("", "one", "一"), ("", "two", "二"), ("", "three", "三")]),
        (("", "one (or two; three)", "一"), [("", "one (or two; three)", "一")]),
        (("$x$", "one, so to speak", "一"), [("$x$", "one, so to speak", "一")]),
    ],
)
def test_a_row_is_taken_apart_where_both_languages_have_as_many_parts(row, terms):
    assert list(taken_apart(*row)) == terms


def test_marks_of_the_chinese_column_are_full_width():
    assert full_width("束宽;n 元, 甲 (HBM)") == "束宽；n 元，甲 (HBM)"
