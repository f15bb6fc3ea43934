"""The drawn roofline: marks at their points, labels that can be read, and a still part that is kept."""

import itertools

import numpy as np
import pytest

from llmcourse.costs import MODELS, Precision, Step, layer_costs
from llmcourse.figures.labels import overlaps
from llmcourse.figures.roofline_data import Measured, roofline_data
from llmcourse.figures.roofline_plot import RooflinePlot, plot_roofline
from llmcourse.hardware import Ceilings, datasheet
from llmcourse.roofline import predict_all

CPU = Ceilings("a CPU", None, 15e9, 17e9, {"fp16": 3.2e9, "fp8": 65.4e9, "fp32": 65.8e9, "int8": 830e9}, {})
CASES = [
    (datasheet("A100 80GB"), "Llama-2-7B", "bf16"),
    (datasheet("H200"), "Qwen3-0.6B", "bf16"),
    (datasheet("T4"), "Llama-3-8B", "fp16"),
    (datasheet("laptop CPU"), "base", "fp32"),
    (CPU, "base", "fp32"),
]
SIZES = list(itertools.product((1, 8, 64, 512), (64, 1024, 16384), ("fused", "unfused")))


def layers(machine, model, dtype, batch=8, context=1024, attention="unfused", measured=()):
    numbers = Precision.uniform(dtype)
    steps = {"prefill": Step.prefill(batch, context), "decode": Step.decode(batch, context)}
    costs = {n: layer_costs(MODELS[model], step, numbers, attention=attention) for n, step in steps.items()}
    points = {name: predict_all(layer, machine, dtype) for name, layer in costs.items()}
    return roofline_data(machine, points, dtype, measured=measured)


def marks(plot):
    return [[tuple(xy) for xy in line.get_xydata()] for pair in plot._marks for line in pair]


def test_marks_are_hollow_or_filled_by_what_bounds_them():
    plot = RooflinePlot()
    data = layers(*CASES[0])
    plot.update(data)
    memory, compute, decode_memory, decode_compute = marks(plot)
    prefill = [p for p in dict(data.series)["prefill"] if p.intensity]
    assert memory == [(p.intensity, p.flops_per_s) for p in prefill if p.bound == "memory"]
    assert compute == [(p.intensity, p.flops_per_s) for p in prefill if p.bound == "compute"]
    assert len(memory) + len(compute) == len(decode_memory) == 9 and decode_compute == []


@pytest.mark.parametrize(("machine", "model", "dtype"), CASES, ids=lambda case: getattr(case, "name", case))
def test_labels_can_be_read(machine, model, dtype):
    """Every number is written once, on no other label, nowhere across the roof, inside of the axes."""
    plot = RooflinePlot()
    for batch, context, attention in SIZES:
        data = layers(machine, model, dtype, batch, context, attention)
        plot.update(data).png(1.0)
        texts = [text for text in plot._labels if text.get_text()]
        written = sorted(n for text in texts for n in text.get_text().replace("(11)", "⑪"))
        shown = [p.number for _, points in data.series for p in points if p.intensity]
        assert written == sorted(n.replace("(11)", "⑪") for n in shown)
        assert covered(plot, texts) == [], (batch, context, attention)


def covered(plot, texts):
    """Labels that cover a tenth of another or of the roof, or leave the axes."""
    renderer = plot.figure.canvas.get_renderer()
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    page = plot.axes.get_window_extent(renderer).extents
    (roof,) = [line for line in plot._roof if getattr(line, "get_linewidth", lambda: 0)() == 1.8]
    corners = plot._pixels(roof.get_xydata())
    along = [a + (b - a) * f for a, b in itertools.pairwise(corners) for f in np.linspace(0, 1, 200)]
    line = [(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in along]
    found = []
    for index, (text, box, area) in enumerate(zip(texts, boxes, areas, strict=True)):
        others = np.delete(boxes, index, axis=0)
        if overlaps([box], others)[0] > 0.1 * area or overlaps([box], line)[0] > 0.02 * area:
            found.append(text.get_text())
        elif overlaps([box], [page])[0] < 0.9 * area:
            found.append(f"{text.get_text()} outside")
    return found


def test_runs_are_named_below_the_roof():
    run = Measured("decode × 4", 2.0, 1e10)
    plot = RooflinePlot()
    picture = plot.update(layers(*CASES[4], measured=[run]))
    assert [tuple(xy) for xy in plot._runs.get_xydata()] == [(2.0, 1e10)]
    assert "decode × 4" in [text.get_text() for text in plot._labels]
    assert "Measured decode × 4: 10 GFLOP/s at 2.0 FLOP/byte." in picture.alt
    assert "▲ measured" in plot._legend.get_text()


def test_the_key_names_every_operation_with_its_share():
    plot = RooflinePlot()
    plot.update(layers(*CASES[0]))
    assert plot._names.get_text().splitlines()[3] == "④  attention"
    intensities, shares, decode, _ = (column.get_text().splitlines() for column in plot._columns)
    assert (intensities[3], decode[3], intensities[0]) == ("○ 57.3", "□ 0.99", "● 2,234")
    assert intensities[2] == "○ –" and len(shares) == 10
    assert [head.get_text() for head in plot._heads] == ["prefill", "decode"]


@pytest.mark.parametrize(("machine", "model", "dtype"), CASES, ids=lambda case: getattr(case, "name", case))
def test_the_keys_columns_keep_apart(machine, model, dtype):
    plot = RooflinePlot()
    plot.update(layers(machine, model, dtype, 64, 16384, "fused"))
    renderer = plot.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in (plot._names, *plot._columns)]
    assert all(right.x0 - left.x1 >= 4 for left, right in itertools.pairwise(boxes))
    assert plot.axes.get_window_extent(renderer).x1 < boxes[0].x0


@pytest.mark.parametrize("case", [None, CASES[0]], ids=["the roof alone", "with a key"])
def test_the_last_number_of_the_axis_is_on_the_page(case):
    plot = RooflinePlot()
    picture = plot.update(layers(*case) if case else roofline_data(CPU, {}, "fp32"))
    picture.png(1.0)
    last = [text for text in plot.axes.get_xticklabels() if text.get_text() == "10,000"]
    assert last and all(t.get_window_extent().x1 <= picture.bbox.x1 for t in last)


def test_without_operations_the_roof_has_the_whole_page():
    plot = RooflinePlot()
    plot.update(layers(*CASES[0]))
    narrow = plot.axes.get_position().width
    plot.update(roofline_data(CASES[0][0], {}))
    assert plot.axes.get_position().width > 1.5 * narrow
    assert plot._names.get_text() == plot._legend.get_text() == ""
    assert [head.get_text() for head in plot._heads] == ["", ""]


def test_what_does_not_change_is_painted_once(monkeypatch):
    plot = RooflinePlot()
    plot.update(layers(*CASES[0])).png(1.0)
    painted = []
    draw = plot.figure.canvas.draw
    monkeypatch.setattr(plot.figure.canvas, "draw", lambda: painted.append(1) or draw())
    first = plot.update(layers(*CASES[0], batch=64)).png(1.0)
    assert painted == []
    assert first != plot.update(layers(*CASES[0], batch=1)).png(1.0)
    plot.update(layers(*CASES[1])).png(1.0)
    assert painted == [1]


def test_redrawn_pictures_are_those_of_a_fresh_figure():
    plot = RooflinePlot()
    for case in (*CASES, CASES[0]):
        plot.update(layers(*case)).png(1.0)
    assert plot.update(layers(*CASES[0], batch=2)).png(1.0) == plot_roofline(layers(*CASES[0], batch=2)).png(
        1.0
    )
