"""The recorded table as text, from rows as the benchmark writes them."""

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
        found.append(common | macro | {"name": f"early_exit_table_macro_{method.name}"})
    return found


def write(folder, device: str, found: list[dict]) -> None:
    (folder / f"{device}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in found), encoding="utf-8"
    )


def test_every_cell_stands_in_its_row(tmp_path):
    write(tmp_path, "A", rows("A"))
    first, tasks, _, *lines = exit_table.told(TASKS, tmp_path).splitlines()
    assert first == "one text at a time, operation by operation, on A, recorded 2026-01-02"
    assert tasks.split("  ")[-1].strip() == "mean"
    assert all(f"{task} (700 texts)" in tasks for task in TASKS)
    for number, (method, line) in enumerate(zip(METHODS, lines, strict=False)):
        assert line.startswith(method.title)
        cell = [f"{80 + number}.0%", "2.00×", "1.50×"]
        assert line.removeprefix(method.title).split() == [*cell, *cell, f"{90 + number}.0%"]
    assert lines[len(METHODS)].split() == ["shared", "words", "61.2%", "–"]
    assert f"of {METHODS[0].title} +4.0 (-1.0 to +2.0);" in lines[-1]
    assert lines[-1].count(" of ") == len(METHODS) - 1, "not of itself"


def test_a_device_that_has_not_all_of_it_is_left_out(tmp_path):
    write(tmp_path, "A", rows("A")[:-1])
    assert exit_table.told(TASKS, tmp_path) == ""
    write(tmp_path, "B", rows("B"))
    assert exit_table.told(TASKS, tmp_path).startswith("one text at a time, operation by operation, on B")
    write(tmp_path, "A", rows("A"))
    assert exit_table.told(TASKS, tmp_path).count("one text at a time") == 2


@pytest.mark.parametrize("key", ["value", "speed_up_layers", "past_future_ahead", "word_overlap", "examples"])
def test_a_damaged_row_is_said_to_be_one(tmp_path, key):
    damaged = [{k: v for k, v in row.items() if k != key} for row in rows("A")]
    write(tmp_path, "A", damaged)
    with pytest.raises(ValueError, match=f"a row of the table is damaged .*{key}.*; record it again"):
        exit_table.told(TASKS, tmp_path)
    with pytest.raises(ValueError, match="tasks must be at least one, got 0"):
        exit_table.told([], tmp_path)


@pytest.mark.parametrize("tasks", [("docstring", "following", "author")])
def test_the_stored_table_is_whole(tasks):
    told = exit_table.told(tasks)
    assert all(told.count(f"\n{method.title} ") >= 1 for method in METHODS)
