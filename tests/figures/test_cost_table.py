"""The lecture's tables as a notebook shows them."""

import pytest

from llmcourse.costs import LECTURE_DECODE, LECTURE_PREFILL, layer_table
from llmcourse.figures.cost_table import cost_table


def cells(table):
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in table._repr_markdown_().splitlines()
    ]


def test_every_operation_of_prefill_is_a_row():
    head, rule, *rows = cells(cost_table(layer_table(step=LECTURE_PREFILL), 153.0))
    assert head[-1] == "bound (ridge 153.0)" and set("".join(rule)) == set("-:")
    assert [row[0] for row in rows] == list("①②③④⑤⑥⑦⑧⑨")
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows if row[-1] == "arithmetic"] == ["①", "④", "⑥", "⑧"]
    assert rows[0][5:7] == ["2,730.7", "2,234"] and rows[2][5:7] == ["114.7", "57.3"]


def test_what_computes_nothing_has_a_dash():
    rows = cells(cost_table(layer_table(step=LECTURE_DECODE), 153.0))[2:]
    assert len(rows) == 10
    assert rows[2][1] == "cache write" and rows[2][4:7] == ["–", "–", "–"]
    assert [rows[0][5], rows[3][5]] == ["8.0", "1.0"]
    assert {row[-1] for row in rows} == {"memory"}


def test_the_ridge_decides():
    table = cost_table(layer_table(step=LECTURE_DECODE), 5.0)
    assert [row[0] for row in cells(table)[2:] if row[-1] == "arithmetic"] == ["①", "⑤", "⑦", "⑨"]
    assert " ".join(repr(table).splitlines()[0].split()) == "① QKV projection 6BH² 8.0 8.0 arithmetic"
    with pytest.raises(ValueError, match="ridge must be above 0 FLOP/byte, got 0"):
        cost_table(table.rows, 0)
