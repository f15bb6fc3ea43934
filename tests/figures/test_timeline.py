"""The picture of a trace: the lecture's grid cell for cell, and what empty cells mean."""

import math

import pytest

from llmcourse.figures.timeline import grid_of, metrics_table, timeline
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import Cell, ClockStep, Timeline, Trace, simulate
from llmcourse.serving.lecture_grid import grid, lecture_trace
from llmcourse.serving.metrics import measure
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import Scheduler


def serve(policy, requests, slots=4, cost=lambda schedule: 1.0):
    return simulate(requests, Scheduler(BlockPool(400, 4), policy, max_running=slots), cost)


def kinds(shown, slot):
    return [box.kind for box in shown.boxes if box.slot == slot]


@pytest.mark.parametrize("policy", [TraditionalBatching(), ContinuousBatching(), ChunkedPrefill()])
def test_the_lectures_grid_comes_out_cell_for_cell(policy):
    trace = lecture_trace(policy)
    assert grid_of(timeline("a", trace, 4, until_s=8)) == grid(trace)


def test_kinds_of_the_lectures_cells():
    shown = timeline("traditional", lecture_trace(TraditionalBatching()), 4, until_s=8)
    assert kinds(shown, 0) == ["prompt", *["token"] * 4, "end", "wasted", "wasted"]
    assert shown.used == 26 / 32 and shown.same_steps == 1.0
    whole = timeline("traditional", lecture_trace(TraditionalBatching()), 4)
    assert kinds(whole, 3)[8:] == ["idle"] * 4  # nobody waits any more
    assert timeline("continuous", lecture_trace(ContinuousBatching()), 4, until_s=8).used == 1.0


def test_a_prompt_in_pieces():
    requests = [Request("a", [1], max_tokens=9), Request("b", range(2, 9), max_tokens=2)]
    requests += [Request("c", range(20, 29), max_tokens=2)]
    shown = timeline("chunked", serve(ChunkedPrefill(4), requests, 3), 3)
    assert kinds(shown, 0) == ["prompt", *["token"] * 7, "end"]
    assert kinds(shown, 1)[:4] == ["prompt", "prompt", "prompt", "end"]
    assert [box.num_tokens for box in shown.boxes if box.slot == 1 and box.kind == "prompt"] == [3, 3, 1]


def test_a_slot_is_held_between_two_pieces():
    """By hand: slot 1 computes for x in steps 0 and 2, and not in step 1."""
    steps = (
        ClockStep(
            0.0, 1.0, (Cell(0, "y", 2, False, False, False), Cell(1, "x", 1, False, False, False)), 0, 0
        ),
        ClockStep(1.0, 2.0, (Cell(0, "y", 2, True, True, False),), 0, 0),
        ClockStep(3.0, 4.0, (Cell(1, "x", 2, True, True, False),), 0, 1),
    )
    served = Timeline(Request("x", [1]), [4.0], "length")
    shown = timeline("by hand", Trace((served,), steps), 2)
    assert kinds(shown, 1) == ["prompt", "held", "idle", "end"]
    assert kinds(shown, 0) == ["prompt", "end", "idle", "wasted"]
    assert shown.used == 4 / 8 and [b.id for b in shown.boxes if b.kind == "held"] == ["x"]


def test_a_picture_that_ends_early_cuts_its_boxes_but_not_its_metrics():
    trace = lecture_trace(ContinuousBatching(), cost=lambda schedule: 2.0)
    shown = timeline("a", trace, 4, until_s=5.0)
    assert shown.end_s == max(box.end_s for box in shown.boxes) == 5.0
    assert shown.metrics == measure(trace) and shown.used == 1.0
    assert f"done after {trace.end_s:.0f} s" in shown.figures


def test_figures_are_those_of_the_metrics():
    trace = lecture_trace(TraditionalBatching())
    shown, metrics = timeline("traditional", trace, 4), measure(trace)
    assert shown.figures.startswith(
        "slots used 73% · TTFT p50 1 s, p99 9 s · ITL p50 1 s, p99 1 s · 2.92 tok"
    )
    head, row = metrics_table([shown])
    told = dict(zip(head, row, strict=True))
    assert told["policy"] == "traditional" and told["TPOT p99"] == "1 s"
    assert told["E2E p50"] == f"{metrics.e2e_p50_s:g} s" and row[-1] == f"{metrics.requests_per_s:.3g}"
    assert not {"TTFT", "ITL", "slots", "tokens/s"} & set(" ".join(head).split())  # the figures say it
    single = timeline("one", serve(ContinuousBatching(), [Request("a", [1], max_tokens=1)]), 4)
    assert "ITL p50 –, p99 –" in single.figures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_slots": 3}, "num_slots must be an integer of at least 4, got 3"),
        ({"until_s": 0}, "until_s must be above 0, got 0"),
        ({"until_s": math.nan}, "until_s must be above 0, got nan"),
    ],
)
def test_what_is_no_picture_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        timeline("a", lecture_trace(ContinuousBatching()), **({"num_slots": 4} | arguments))
