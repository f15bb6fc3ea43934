"""Timing: what is counted, and how it is summed up."""

import time

import pytest

from llmcourse.timing import Timing, measure


def test_median_and_spread_are_those_of_the_middle():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median_s == 3.0
    assert timing.spread == pytest.approx((4 - 2) / 3)


@pytest.mark.parametrize("times_s", [(0.5,), (0.0, 0.0), (2.0, 2.0, 2.0)])
def test_spread_of_equal_times_is_zero(times_s):
    assert Timing(times_s).spread == 0


@pytest.mark.parametrize("times_s", [(), (0.1, -0.1)])
def test_impossible_times_are_refused(times_s):
    with pytest.raises(ValueError, match="times_s must be one or more times of at least 0 s, got"):
        Timing(times_s)


def test_warm_up_runs_are_not_counted():
    calls = []

    def slow_at_first():
        calls.append(len(calls))
        time.sleep(0.05 if len(calls) <= 2 else 0)

    timing = measure(slow_at_first, warmup=2, repeats=5)
    assert len(calls) == 7 and len(timing.times_s) == 5
    assert max(timing.times_s) < 0.05


def test_a_sleep_is_timed_right():
    timing = measure(lambda: time.sleep(0.02), warmup=0, repeats=3)
    assert 0.02 <= timing.median_s < 0.04
    assert str(timing).endswith("(median of 3)") and str(timing).startswith("2")


@pytest.mark.parametrize(("settings", "message"), [({"warmup": -1}, "warmup"), ({"repeats": 0}, "repeats")])
def test_bad_counts_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        measure(lambda: None, **settings)
