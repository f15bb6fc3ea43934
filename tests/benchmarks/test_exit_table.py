"""Rows of benchmarks/exit_table.py, from tiny trainings to what is recorded, and its end on bad options."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import exit_table
import record

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.training.classifier import __main__ as command
from llmcourse.training.classifier import texts
from tests.training.classifier.test_main import SMALL, arguments, source


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "standard_library", lambda: {f"{n}.py": source(n) for n in range(60)})
    monkeypatch.setattr(command, "CPU", SMALL)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(exit_table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(exit_table, "TIMED", 2)
    monkeypatch.setattr(exit_table, "REPEATS", 1)


def rows(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return {line["name"]: line for line in lines}


def test_scores_speeds_and_steps_are_recorded(tmp_path, capsys):
    assert exit_table.main(arguments(tmp_path / "out")) == 0
    found = rows(tmp_path / "results")
    for method in METHODS:
        cell = found[f"early_exit_table_docstring_{method.name}"]
        assert cell["steps"] == 2 and 0 <= cell["word_overlap"] <= 100
        assert found[f"early_exit_speed_docstring_{method.name}"]["time_s"] > 0
    assert len(list((tmp_path / "results" / "raw").iterdir())) == 1
    assert "| shared words, one threshold |" in capsys.readouterr().out


def test_scores_are_recorded_before_answers_are_timed(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exit_table, "times_of", interrupted)
    assert exit_table.main(arguments(tmp_path / "out")) == 130
    found = rows(tmp_path / "results")
    assert "early_exit_table_macro_pabee" in found and "early_exit_table_docstring_pabee" in found


def test_a_bad_option_is_one_line(tmp_path, capsys):
    assert exit_table.main(arguments(tmp_path / "out", "--layers", "0")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: num_layers must be an integer of at least 1, got 0; see --help"
    ]
