"""The batching timeline, driven by setting the values that a reader's mouse and keys would set."""

import math
from dataclasses import replace

import pytest

from llmcourse.figures.timeline import grid_of
from llmcourse.figures.widgets import batching_timeline as widget
from llmcourse.figures.widgets.batching_timeline import DRAWN, PRESETS, BatchingInputs, BatchingTimeline
from llmcourse.serving.clock import one_second
from llmcourse.serving.lecture_grid import grid, lecture_trace
from llmcourse.serving.policies import ContinuousBatching, TraditionalBatching
from tests.figures.widgets.described import described

SMALL = BatchingInputs("all three", DRAWN, 5, 1, 8, 4, 0, 3, 8)


@pytest.fixture
def view():
    return BatchingTimeline()


def test_it_starts_with_the_lectures_grid_cell_for_cell(view):
    assert view.message == "" and view.preset.value == next(iter(PRESETS)) == "the lecture's grid"
    shown = view.state.timelines
    assert grid_of(shown[0]) == grid(lecture_trace(TraditionalBatching()))
    assert grid_of(shown[1]) == grid(lecture_trace(ContinuousBatching()))
    assert "slots used 81%" in view.picture.alt and "<td>traditional</td>" in view._text.value
    assert view.requests.disabled and view.token_budget.disabled and not view.slots.disabled


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_served(view, preset):
    view.preset.value = preset
    assert view.message == "" and view.preset.value == preset
    assert view.inputs == PRESETS[preset]
    assert len(view.state.timelines) == len(PRESETS[preset].names)
    assert all(shown.metrics.num_finished >= 7 for shown in view.state.timelines)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("policies", "chunked prefill"),
        ("workload", widget.LECTURE),
        ("requests", 9),
        ("per_s", math.inf),
        ("prompt", 16),
        ("answer", 8),
        ("seed", 4),
        ("slots", 2),
        ("token_budget", 32),
        ("cost", "H200, Qwen3-0.6B"),
        ("until_s", 3.0),
    ],
)
def test_each_control_acts(control, value):
    view = BatchingTimeline(inputs=SMALL)
    picture = bytes(view._image.value)
    getattr(view, control).value = value
    assert view.message == "" and view._image.value != picture
    assert getattr(view.inputs, control) == value


def test_what_the_controls_leave_is_no_preset_any_more(view):
    view.slots.value = 3
    assert view.preset.value is None and view.message == ""
    assert view.state.timelines[0].num_slots == 3
    view.preset.value = "the lecture's grid"
    assert view.inputs == PRESETS["the lecture's grid"]


def test_a_cell_of_the_table_is_one_line_and_repeats_no_figure(view):
    view.preset.value = "long prompts, short answers"
    assert "white-space:nowrap" in view._text.value and "<td>chunked prefill</td>" in view._text.value
    assert "TTFT" not in view._text.value and "E2E p99" in view._text.value


def test_each_policy_says_how_it_fills_a_step(view):
    view.policies.value, view.token_budget.value = "all three", 256
    notes = [shown.note for shown in view.state.timelines]
    assert "8,192 tokens" in notes[1] and "up to 256 tokens" in notes[2]
    assert "0: the end" in view.until_s.description


def test_a_run_is_remembered(view, monkeypatch):
    served = []
    serve = widget.serve
    monkeypatch.setattr(widget, "serve", lambda name, *rest: served.append(name) or serve(name, *rest))
    view.policies.value = "all three"
    view.until_s.value = 0
    view.policies.value = "traditional"
    assert served == ["chunked prefill"]


def test_more_slots_than_budget_is_explained_not_raised(view):
    view.policies.value, picture = "all three", view._image.value
    view.token_budget.value = 2
    assert view.message.startswith("slots must be at most 2, the token budget of chunked prefill, got 4")
    assert 'role="alert"' in view._message.value and view.state is None
    view.token_budget.value = 4
    assert view.message == "" and view._image.value != picture


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requests": 0}, "count must be an integer of at least 1, got 0"),
        ({"per_s": -1}, "per_s must be positive, got -1"),
        ({"prompt": 0}, "median must be an integer of at least 1, got 0"),
        ({"slots": 0}, "max_running must be an integer of at least 1, got 0"),
    ],
)
def test_nonsense_is_explained_not_raised(view, monkeypatch, change, words):
    inputs = replace(SMALL, policies="continuous", **change)
    monkeypatch.setattr(BatchingTimeline, "inputs", property(lambda self: inputs))
    view.refresh()
    assert words in view.message and view.state is None


def test_a_long_or_a_tiny_stretch_is_shown(view):
    for until_s in (1e-6, 0.3, 1e6, 0):
        view.until_s.value = until_s
        assert view.message == ""


def test_costs_can_be_given():
    view = BatchingTimeline({widget.SECOND: one_second, "ten": lambda schedule: 10.0})
    assert [name for name, _ in view.preset.options][1:] == [
        "the lecture's grid",
        "prompts in pieces, step by step",
    ]
    view.until_s.value, view.cost.value = 0, "ten"
    assert view.state.timelines[0].metrics.duration_s == 120
    with pytest.raises(ValueError, match=r"preset must be one of the lecture's grid, .*, got 'x'"):
        BatchingTimeline(preset="x")


def test_every_control_has_a_name(view):
    found = described(view)
    assert len(found) == 12 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_150_ms(kernel_seconds):
    assert kernel_seconds("BatchingTimeline()", "slots") < 0.140
