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


class Clock:
    """A clock that only the timed function moves: no load on the machine can change the outcome."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr("llmcourse.timing.time.perf_counter", lambda: self.now_s)

    def wait(self, seconds):
        self.now_s += seconds


def test_warm_up_runs_are_not_counted(monkeypatch):
    clock, calls = Clock(monkeypatch), []

    def slow_at_first():
        calls.append(len(calls))
        clock.wait(5.0 if len(calls) <= 2 else 0.5)

    assert measure(slow_at_first, warmup=2, repeats=5).times_s == (0.5,) * 5
    assert len(calls) == 7


def test_what_the_clock_says_is_what_is_told(monkeypatch):
    clock = Clock(monkeypatch)
    timing = measure(lambda: clock.wait(0.25), warmup=0, repeats=3)
    assert timing.median_s == 0.25
    assert str(timing) == "250 ms ± 0% (median of 3)"


def test_the_real_clock_is_used():
    assert measure(lambda: time.sleep(0.02), warmup=0, repeats=1).median_s >= 0.02


@pytest.mark.parametrize(("settings", "message"), [({"warmup": -1}, "warmup"), ({"repeats": 0}, "repeats")])
def test_bad_counts_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        measure(lambda: None, **settings)
