"""The joined course, step by step: bars and limits are those of the rows, and what is missing is said."""

import math

import pytest

from llmcourse.figures.pipeline_steps import PipelineStep, pipeline_steps, plot_pipeline, runs
from llmcourse.figures.recorded import raw_rows

STEPS = ("bf16", "distilled draft", "int4 weights")


def row(stage, speed=50.0, limit=100.0, **changes):
    found = {"stage": stage, "tokens_per_s": speed, "limit": limit, "kl": 0.0312, "target": "base"}
    found |= {"drafter": "draft", "scheme": "int4", "dtype": "bfloat16"}
    return found | {"device": "NVIDIA H200", "date": "2026-12-01"} | changes


ROWS = [row(STEPS[0]), row(STEPS[1], 90.0, 150.0), row(STEPS[2], 240.0, None, kl=None)]


def test_steps_are_in_the_order_of_the_rows():
    first, second, third = pipeline_steps(ROWS)
    assert first == PipelineStep("bf16", 50.0, 100.0, 0.0312, 1.0) and first.share == 0.5
    assert second.times == 1.8 and second.share == 0.6
    assert third.share is None and third.kl is None and third.times == 4.8
    again = pipeline_steps([*ROWS, row("bf16", 60.0)])  # the last one counts, at its first place
    assert [step.name for step in again] == list(STEPS) and again[0].speed == 60 and again[2].times == 4
    assert pipeline_steps([]) == []


def test_bars_and_limits_are_where_they_were_measured():
    picture = plot_pipeline(ROWS, steps=[*STEPS, "int8 cache"])
    (axes,) = picture.axes
    assert [bar.get_width() for bar in axes.patches] == [50.0, 90.0, 240.0]
    assert [one.get_xdata()[0] for one in axes.lines] == [100.0, 150.0]
    words = [text.get_text() for text in axes.texts]
    assert words[0] == "50 · 1.00× · 50% of │ · KL 0.031" and words[2] == "240 · 4.80×"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(STEPS)
    assert any("Not recorded yet: int8 cache." in text.get_text() for text in picture.texts)
    assert "recorded on NVIDIA H200, 2026-12-01 · base · drafts by draft · │ roofline" in picture.alt
    told = "distilled draft 90 tokens a second, 1.80 times the first, 60% of its limit, KL 0.031 nats"
    assert told in picture.alt
    picture.png(1.0)


@pytest.mark.parametrize("slowest", [10.0, 10.1, 9.9, 1.0, 1000.0])
def test_the_slowest_step_has_a_bar_where_the_axis_counts_powers_of_ten(slowest):
    (axes,) = plot_pipeline([row("a", slowest), row("b", 1000 * slowest)]).axes
    assert axes.get_xscale() == "log" and math.log10(axes.get_xlim()[0]) % 1 == 0
    bar = axes.patches[0]
    assert bar.get_x() + bar.get_width() == pytest.approx(slowest) and bar.get_x() <= slowest / 1.5


def test_what_was_measured_just_now_is_not_called_recorded():
    live = [{key: value for key, value in one.items() if key != "date"} for one in ROWS]
    picture = plot_pipeline(live, live=True)
    assert "measured on NVIDIA H200" in picture.alt and "recorded" not in picture.alt


def test_nothing_recorded_is_said():
    assert "Not recorded yet: bf16 and 2 more" in plot_pipeline([], steps=STEPS).alt


def test_what_is_recorded_by_now_is_drawn():
    for rows in runs(raw_rows("pipeline")):
        plot_pipeline(rows).png(1.0)


def test_runs_are_of_one_device_and_its_models():
    """A file holds lines of larger shapes, too, which are no steps of a text."""
    here, there = [row("a"), row("b")], [row("a", device="A100")]
    taught = [row("a", drafter="draft/draft")]
    others = [{"stage": "bf16", "step_ms": 3.7, "device": "NVIDIA H200"}]
    assert runs([*here[:1], *there, *others, *taught, *here[1:]]) == [here, there, taught]
    assert runs(others) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_s": 0}, "row 1: not a step .*tokens_per_s must be above 0 and finite, got 0"),
        ({"limit": -1}, "limit must be above 0"),
        ({"kl": math.nan}, "kl must be finite, got nan"),
        ({"tokens_per_s": None}, "row 1: not a step"),
    ],
)
def test_rows_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pipeline_steps([row("bf16") | changes])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"row 2: not a step .*stage"):
        pipeline_steps([row("bf16"), {"tokens_per_s": 1.0}])
    for name, other in (("device", "A100"), ("target", "small"), ("drafter", "small"), ("scheme", "int3")):
        with pytest.raises(ValueError, match=f"rows must be of one {name}, got .*; draw them apart"):
            plot_pipeline([row("bf16"), row("int4", **{name: other})])
    with pytest.raises(ValueError, match="steps must be at most 12, got 13"):
        plot_pipeline([row(str(number)) for number in range(13)])
