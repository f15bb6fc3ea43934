"""Machines on one roofline."""

import numpy as np
import pytest

from llmcourse.figures import recorded
from llmcourse.figures.machines_plot import Roof, plot_machines, ratios, recorded_roof

SLOW, FAST = Roof("laptop", 20e9, 200e9), Roof("GPU", 4e12, 800e12, "recorded, bf16")
WORKS = {"writing": 1, "reading": 1024}


def test_the_roof_is_the_lower_of_two_limits():
    assert SLOW.ridge == 10
    assert list(SLOW.attainable(np.array([1.0, 10.0, 100.0]))) == [20e9, 200e9, 200e9]


def test_machines_are_compared_where_the_work_lies():
    assert ratios(SLOW, FAST, WORKS) == {"writing": 200, "reading": 4000}


def test_lines_marks_and_words_say_the_same():
    picture = plot_machines([SLOW, FAST], WORKS, "Two machines")
    axes = picture.axes[0]
    roofs = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert [line.get_ydata().max() for line in roofs] == [200e9, 800e12]
    marks = [line for line in axes.lines if line.get_marker() != "None"]
    assert len(marks) == 4 and len({line.get_marker() for line in marks}) == 2
    assert any("GPU (recorded, bf16): 4,000 GB/s, 800 TFLOP/s" in text.get_text() for text in axes.texts)
    assert "laptop (measured), ridge 10.0 FLOP/byte: writing 20 GFLOP/s; reading 200 GFLOP/s." in picture.alt
    picture.png(1.0)


def row(unit, limit, limit_name):
    return {"unit": unit, "limit": limit, "limit_name": limit_name}


def test_a_recorded_roof_takes_the_best_limits_of_its_device():
    rows = {
        "a": {"X": row("GB/s", 3000, "copy bandwidth"), "Y": row("GB/s", 9000, "copy bandwidth")},
        "b": {"X": row("GB/s", 3100, "copy bandwidth")},
        "c": {"X": row("TFLOP/s", 700, "bf16 matmul")},
        "d": {"X": row("TFLOP/s", 1500, "int8 matmul")},
        "e": {"X": row("tok/s", 100, "copy bandwidth")},
        "f": {"X": row("GB/s", None, None)},
    }
    assert recorded_roof("X", rows) == Roof("X", 3100e9, 700e12, "recorded, bf16")
    assert recorded_roof("Y", rows) is None and recorded_roof("Z", rows) is None


def test_the_recorded_gpu_is_there():
    roof = recorded_roof("NVIDIA H200", recorded.latest())
    assert 1e12 < roof.bytes_per_s < 4.8e12 and 4e14 < roof.flops_per_s < 9.9e14  # below its datasheet


def test_impossible_machines_are_refused():
    with pytest.raises(ValueError, match="bytes_per_s and flops_per_s of x must be above 0, got 0"):
        Roof("x", 0, 1)
    with pytest.raises(ValueError, match="roofs must be 1 to 4 machines, got 0"):
        plot_machines([], WORKS, "none")
