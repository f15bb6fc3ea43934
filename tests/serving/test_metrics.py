import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcourse.serving.clock import ClockStep, Timeline, Trace
from llmcourse.serving.metrics import Objective, inter_token, measure, percentile, tpot, ttft
from llmcourse.serving.request import Request


def timeline(name: str, arrival_s: float, token_s: list[float], reason="length", **more) -> Timeline:
    return Timeline(Request(name, [1], arrival_s=arrival_s), token_s, reason, **more)


A = timeline("a", 1.0, [2.0, 2.5, 4.0])
B = timeline("b", 2.0, [5.0], "stop", num_preemptions=2)
REFUSED = timeline("c", 2.0, [], None, refusal="too long")
ABORTED = timeline("d", 2.0, [2.5], "abort")
TRACE = Trace((A, B, REFUSED, ABORTED), (ClockStep(1.0, 5.0, (), 0, 0),))


def test_the_latencies_of_one_request():
    assert ttft(A) == 1.0 and inter_token(A) == [0.5, 1.5] and tpot(A) == 1.0
    assert ttft(B) == 3.0 and inter_token(B) == [] and tpot(B) is None


def test_the_figures_of_a_service():
    metrics = measure(TRACE, Objective(ttft_s=2.0, tpot_s=1.0))
    assert metrics.duration_s == 4.0 and metrics.num_finished == 2 and metrics.num_refused == 1
    assert metrics.num_preemptions == 2
    assert metrics.output_tokens_per_s == 1.0 and metrics.requests_per_s == 0.5
    assert metrics.goodput_per_s == 0.25  # b waited too long
    assert metrics.ttft_p50_s == 2.0 and metrics.ttft_p99_s == pytest.approx(2.98)
    assert metrics.itl_p50_s == 1.0 and metrics.itl_p99_s == pytest.approx(1.49)
    assert metrics.tpot_p50_s == metrics.tpot_p99_s == 1.0
    assert metrics.e2e_p50_s == 3.0


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        (Objective(), True),
        (Objective(ttft_s=1.0, tpot_s=1.0), True),
        (Objective(ttft_s=0.99), False),
        (Objective(tpot_s=0.99), False),
    ],
)
def test_an_objective_has_two_limits(objective, kept):
    assert objective.kept(A) is kept
    assert not objective.kept(REFUSED) and not objective.kept(ABORTED)


def test_answers_of_one_token_have_no_gaps():
    metrics = measure(Trace((B,), TRACE.steps))
    assert math.isnan(metrics.tpot_p50_s) and math.isnan(metrics.itl_p99_s) and metrics.ttft_p50_s == 3.0


def test_a_service_without_answers_has_no_figures():
    with pytest.raises(ValueError, match="trace must be one with an answered request, got none"):
        measure(Trace((REFUSED,), ()))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values, percent):
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("percent", [-1, 101, math.nan])
def test_percentiles_lie_between_0_and_100(percent):
    with pytest.raises(ValueError, match=r"percent must be in \[0, 100\], got"):
        percentile([1.0], percent)


@pytest.mark.parametrize("name", ["ttft_s", "tpot_s"])
def test_a_limit_is_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0.0; use math.inf for no limit"):
        Objective(**{name: 0.0})
