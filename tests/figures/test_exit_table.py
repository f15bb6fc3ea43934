"""The recorded table in Markdown, from rows as the benchmark writes them."""

import json

import pytest

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.figures import exit_table

TASKS = ("pairs", "poets")


def rows(device: str) -> list[dict]:
    common = {"device": device, "date": "2026-01-02"}
    found = []
    for number, method in enumerate(METHODS):
        for task in TASKS:
            words = 61.24 if task == "pairs" else None
            cell = {"value": 80.0 + number, "speed_up_layers": 2.0, "word_overlap": words, "examples": 700}
            found.append(common | cell | {"name": f"early_exit_table_{task}_{method.name}"})
            found.append(common | {"name": f"early_exit_speed_{task}_{method.name}", "value": 1.5})
        macro = {"value": 90.0 + number, "past_future_ahead": [4.0 - number, -1.0, 2.0]}
        macro["steps"] = dict.fromkeys(TASKS, 2000)
        found.append(common | macro | {"name": f"early_exit_table_macro_{method.name}"})
    return found


def write(folder, device: str, found: list[dict]) -> None:
    (folder / f"{device}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in found), encoding="utf-8"
    )


def test_every_cell_stands_in_its_row(tmp_path):
    write(tmp_path, "A", rows("A"))
    table = exit_table.exit_table(TASKS, tmp_path)
    first, _, heads, rule, *lines = str(table).splitlines()
    assert first.startswith("One text at a time, operation by operation, on A, recorded 2026-01-02.")
    assert first.endswith("Test texts: pairs 700, poets 700.")
    columns = [cell.strip() for cell in heads.split("|")[1:-1]]
    assert columns[1:-1] == ["pairs: right", "layers", "time", "poets: right", "layers", "time", "mean"]
    assert rule.count("|") == heads.count("|")
    for number, (method, line) in enumerate(zip(METHODS, lines, strict=False)):
        cell, last = [f"{80 + number}.0%", "2.00×", "1.50×"], f"{4 - number:+.1f} (-1.0 to +2.0)"
        wanted = [method.title, *cell, *cell, f"{90 + number}.0%"]
        wanted.append("" if number == len(METHODS) - 1 else last)  # it is not ahead of itself
        assert [part.strip() for part in line.split("|")[1:-1]] == wanted
    words = [part.strip() for part in lines[len(METHODS)].split("|")[1:-1]]
    assert words == ["shared words", "61.2%", "", "", "–", "", "", "", ""]
    assert table._repr_markdown_() == str(table) == repr(table)


def test_a_device_that_has_not_all_of_it_is_left_out(tmp_path):
    write(tmp_path, "A", rows("A")[:-1])
    assert str(exit_table.exit_table(TASKS, tmp_path)) == ""
    write(tmp_path, "B", rows("B"))
    assert str(exit_table.exit_table(TASKS, tmp_path)).startswith(
        "One text at a time, operation by operation, on B"
    )
    write(tmp_path, "A", rows("A"))
    assert str(exit_table.exit_table(TASKS, tmp_path)).count("One text at a time") == 2


def test_a_mean_over_other_tasks_is_none_of_this_table(tmp_path):
    write(tmp_path, "A", rows("A"))
    assert str(exit_table.exit_table(TASKS[:1], tmp_path)) == ""
    alone = [row | {"steps": {"pairs": 2000}} if "macro_pabee" in row["name"] else row for row in rows("A")]
    write(tmp_path, "A", alone)
    assert str(exit_table.exit_table(TASKS, tmp_path)) == ""


@pytest.mark.parametrize(
    "key", ["steps", "value", "speed_up_layers", "past_future_ahead", "word_overlap", "examples"]
)
def test_a_damaged_row_is_said_to_be_one(tmp_path, key):
    damaged = [{k: v for k, v in row.items() if k != key} for row in rows("A")]
    write(tmp_path, "A", damaged)
    with pytest.raises(ValueError, match=f"a row of the table is damaged .*{key}.*; record it again"):
        exit_table.exit_table(TASKS, tmp_path)
    with pytest.raises(ValueError, match="tasks must be at least one, got 0"):
        exit_table.exit_table([], tmp_path)


@pytest.mark.parametrize("tasks", [("docstring", "following", "author")])
def test_the_stored_table_is_whole(tasks):
    told = str(exit_table.exit_table(tasks))
    assert all(told.count(f"\n| {method.title} |") >= 1 for method in METHODS)
