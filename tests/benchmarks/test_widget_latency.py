"""The benchmark of how fast widgets answer: it knows all of them, and moves all their controls."""

import json
import sys
import time
from pathlib import Path

import ipywidgets
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import record
import widget_latency as program

from llmcourse.figures import widgets
from llmcourse.figures.widgets.view import View

SLOW_S = 0.05


class Slow(View):
    """Answers one value of one control late, and has one of each kind."""

    name = "Slow"

    def __init__(self):
        super().__init__()
        self.slider = ipywidgets.IntSlider(0, min=0, max=30, description="slider")
        self.choice = ipywidgets.Dropdown(options=["a", "b"], description="choice")
        self.button = ipywidgets.Button(description="button")
        self.off = ipywidgets.IntSlider(0, min=0, max=3, description="off", disabled=True)
        for control in (self.slider, self.choice, self.off):
            control.observe(lambda _: self.refresh(), "value")
        self.button.on_click(lambda _: self.refresh())
        row = ipywidgets.HBox([self.slider, self.choice, self.button, self.off])
        self._assemble(row)
        self.count = 0
        self.refresh()

    def refresh(self):
        self.count += 1
        if self.slider.value == 30:
            time.sleep(SLOW_S)
        self._image.value = str(self.count).encode()


def test_every_widget_is_measured():
    assert set(program.VIEWS) == set(widgets.__all__)


def test_every_control_is_moved_over_its_range_and_put_back():
    view = Slow()
    found = list(program.answers(view, values=4, rounds=2, clock=time.perf_counter))
    by_control = {name: [one.value for one in found if one.control == name] for name in ("slider", "choice")}
    assert by_control == {"slider": ["10", "20", "30", "0"], "choice": ["b", "a"]}
    assert {one.control for one in found} == {"slider", "choice", "button"}
    assert view.slider.value == 0 and view.choice.value == "a"
    slowest = max(found, key=lambda one: one.best_s)
    assert (slowest.control, slowest.value) == ("slider", "30") and slowest.best_s >= SLOW_S


def test_its_smallest_form_writes_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    program.main(["MemoryCalculator", "--values", "2", "--rounds", "1", "--cpu"])
    (path,) = tmp_path.glob("*.jsonl")
    row = json.loads(path.read_text(encoding="utf-8"))
    assert row["name"] == "widget_latency_MemoryCalculator" and row["unit"] == "answers/s"
    assert row["limit"] == 10 and row["answers"] >= 8 and row["clock"] == "one core"
    assert row["value"] == pytest.approx(1e3 / row["median_ms"], rel=0.05)
    assert 0 < row["median_ms"] <= row["worst_ms"]


def test_an_unknown_widget_is_refused(capsys):
    with pytest.raises(SystemExit):
        program.main(["Nothing"])
    assert "BeamTreeViewer" in capsys.readouterr().err
