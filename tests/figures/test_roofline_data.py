"""What the roofline shows, against the predictions that it is made of."""

import pytest

from llmcourse.costs import LECTURE_DECODE, LECTURE_PREFILL, LLAMA_2_7B, MODELS, Precision, Step, layer_costs
from llmcourse.figures.roofline_data import (
    Measured,
    bound_words,
    ceiling_name,
    ceilings,
    circled,
    rate,
    roofline_data,
    short,
)
from llmcourse.hardware import datasheet
from llmcourse.roofline import attainable, predict_all

A100 = datasheet("A100 80GB")


def predictions(step, shapes=LLAMA_2_7B, machine=A100, dtype="bf16", attention="unfused"):
    costs = layer_costs(shapes, step, Precision.uniform(dtype), attention=attention)
    return predict_all(costs, machine, dtype)


@pytest.fixture
def data():
    steps = {"prefill": predictions(Step.prefill(8, 1024)), "decode": predictions(LECTURE_DECODE)}
    return roofline_data(A100, steps)


def test_every_operation_is_a_point_on_the_roof(data):
    for name, points in data.series:
        assert [p.number for p in points] == list("①②③④⑤⑥⑦⑧⑨⑩"), name
        assert sum(p.share for p in points) == pytest.approx(1)
        for point in points:
            assert point.flops_per_s == pytest.approx(attainable(A100, point.intensity))
            assert point.bound == ("compute" if point.intensity > 153.02 else "memory")


def test_the_lectures_layer_is_told_in_words(data):
    assert f"{data.ridge:.1f}" == "153.0"
    prefill, decode = dict(data.series)["prefill"], dict(data.series)["decode"]
    assert [p.number for p in prefill if p.bound == "compute"] == ["①", "⑤", "⑦", "⑨"]
    words = bound_words(prefill)
    linear = "QKV projection, output projection, gate and up projection, down projection"
    assert words.startswith(f"bound by arithmetic {linear} (84% of the time); bound by memory RoPE, ")
    assert bound_words(decode) == "bound by memory all operations (100% of the time)"
    assert data.summary.startswith("ridge 153.0 FLOP/byte. prefill: bound by arithmetic QKV projection")


def test_the_axes_stay_still_until_a_point_leaves_them(data):
    assert data.limits[0] == (0.1, 1e4)
    longer = roofline_data(A100, {"prefill": predictions(Step.prefill(1, 2**16), attention="fused")})
    assert longer.limits[0] == (0.1, 1e5)
    assert data.limits[1] == (pytest.approx(0.05 * A100.bytes_per_s), pytest.approx(2.5 * 1248e12))


def test_a_slow_run_is_still_on_the_page():
    run = Measured("crawl", 1.0, 1e9)
    low, _ = roofline_data(A100, {}, measured=[run]).limits[1]
    assert low == 5e8
    assert "Measured crawl: 1 GFLOP/s at 1.00 FLOP/byte." in roofline_data(A100, {}, measured=[run]).summary


def test_formats_of_one_peak_are_one_ceiling():
    names = [ceiling_name(formats) for formats in ceilings(A100.peaks.items())]
    assert names == [
        "fp32 19.5 TFLOP/s",
        "tf32 156 TFLOP/s",
        "bf16, fp16 312 TFLOP/s",
        "int8 624 TFLOP/s",
        "int4 1.25 PFLOP/s",
    ]
    (close,) = ceilings([("fp32", 65.8e9), ("fp8", 65.4e9)])
    assert ceiling_name(close) == "fp8 65.4 GFLOP/s, fp32 65.8 GFLOP/s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(312e12, "312 TFLOP/s"), (999.9e9, "1 TFLOP/s"), (1e6, "1 MFLOP/s"), (2e3, "2,000 FLOP/s")],
)
def test_rates_have_the_prefix_that_suits(value, text):
    assert rate(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "–"), (0.624, "0.62"), (7.98, "8.0"), (2234.2, "2,234")])
def test_intensities_are_short(value, text):
    assert short(value) == text


def test_numbers_beyond_the_fonts_are_in_brackets():
    qwen = roofline_data(A100, {"decode": predictions(LECTURE_DECODE, MODELS["Qwen3-0.6B"])})
    assert [p.number for p in qwen.series[0][1]][-2:] == ["⑩", "(11)"]
    assert circled(1) == "①"


def test_what_cannot_be_drawn_is_refused():
    decode = predictions(LECTURE_DECODE)
    with pytest.raises(ValueError, match="steps must be at most 2, got 3"):
        roofline_data(A100, {name: decode for name in "abc"})
    with pytest.raises(ValueError, match="same operations, got different ones; give both a cache"):
        roofline_data(A100, {"prefill": predictions(LECTURE_PREFILL), "decode": decode})
    with pytest.raises(ValueError, match="dtype must be one whose peak is known for T4"):
        roofline_data(datasheet("T4"), {}, "bf16")
    with pytest.raises(ValueError, match="must be above 0, got 0 and 1"):
        Measured("copy", 0, 1)
