"""The glossary follows the tables of symbols, and no two of them translate a term differently."""

import pytest

from tools import glossary
from tools.glossary import Term, cells, conflicts, entries, full_width, heads, named, tables, taken_apart

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
        (
            (r"$N$", "one; two; or three", "一；二；三"),
            [("$N$", "one", "一"), ("", "two", "二"), ("", "or three", "三")],
        ),
        ((r"$n$", "one, or two", "一；二"), [("$n$", "one", "一"), ("$n$", "or two", "二")]),
        (("a, b", "one and two of it", "一，二"), [("a", "one of it", "一"), ("b", "two of it", "二")]),
        (("$a,\\ b$", "x of it and of that", "一，二"), [("$a$", "x of it", "一"), ("$b$", "of that", "二")]),
        (("W8A8", "x of it and of that", "一，二"), [("W8A8", "x of it", "一"), ("W8A8", "of that", "二")]),
        (("", "kind: this, that", "种类：一，二"), [("", "kind: this, that", "种类：一，二")]),
        (("", "one and two", "一"), [("", "one and two", "一")]),
    ],
)
def test_a_row_is_taken_apart_where_both_languages_have_as_many_parts(row, terms):
    assert list(taken_apart(*row)) == terms


@pytest.mark.parametrize(
    ("parts", "listed"),
    [
        (["the score"], ["score"]),
        (["beams", "or the length of a text"], ["beams", "length of a text"]),
        (
            ["features of the stream", "and inside the MLP"],
            ["features of the stream", "features inside the MLP"],
        ),
        (["time to first token", "per token"], ["time to first token", "time per token"]),
        (["the sum of all", "that of some"], ["sum of all", "sum of some"]),
        (["a draft stands", "it falls", "is replaced"], ["draft stands", "draft falls", "draft is replaced"]),
        ([r"$\mathrm{softmax}(t / T)$, the soft labels"], ["soft labels"]),
        (["traditional", "continuous batching"], ["traditional batching", "continuous batching"]),
        (["semi-", "non-autoregressive"], ["semi-autoregressive", "non-autoregressive"]),
        (["acceptance: the chance (chapter 4)"], ["acceptance: the chance"]),
        (["what a code stands for: dequantized"], ["dequantized: what a code stands for"]),
        (["rest, one bucket", "entropy, in nats"], ["rest, one bucket", "entropy, in nats"]),
    ],
)
def test_a_term_is_listed_by_its_head_word(parts, listed):
    assert heads(parts) == listed


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        (r"$l \in \mathbb{R}^V$", "$l$"),
        ("$I$ = FLOP / byte", "$I$"),
        (r"$p' \propto \max(0, p - q)$", "$p'$"),
        (r"$P(u \mid v) = f(l)$", r"$P(u \mid v)$"),
        (r"$\min(1, p/q)$", r"$\min(1, p/q)$"),
        ("SRAM", "SRAM"),
    ],
)
def test_a_symbol_is_listed_without_what_it_is_equal_to(symbol, name):
    assert named(symbol) == name


def test_what_is_one_thing_in_both_languages_is_one_entry():
    found = [
        Term("keys that they look at", "键的个数", "$S$", "chapter 2"),
        Term("slot and block", "槽位，缓存块", "$a$", "chapter 2"),
        Term("block of the cache", "缓存块 (KV)", "$b,\\ c$", "chapter 3"),
        Term("block", "缓存块", "$c$", "lab 3"),
        Term("keys, or slots", "键的个数", "$S$", "lab 3"),
        Term("slot", "槽位", "", "lab 3"),
        Term("share", "缓存块", "", "lab 4"),
    ]
    assert entries(found) == [
        Term("keys, or slots", "键的个数", "$S$", "chapter 2"),
        Term("block", "缓存块", "$b$, $c$", "chapter 2"),
        Term("slot", "槽位", "", "chapter 2"),
        Term("share", "缓存块", "", "chapter 2"),
    ]


def test_no_entry_begins_with_what_it_leans_on():
    for term in entries(glossary.terms()):
        assert not glossary.LEADING.match(term.english) and term.english[0] not in "$(-", term
        assert term.english.split()[0] not in {"of", "per", "between", "inside", "it", "is", "that"}, term


def test_marks_of_the_chinese_column_are_full_width():
    assert full_width("束宽;n 元, 甲 (HBM)") == "束宽；n 元，甲 (HBM)"
