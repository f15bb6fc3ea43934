"""Timing: what is counted, and how it is summed up."""

import contextlib
import math
import time

import pytest
import torch

from llmcourse.timing import Rotation, Timing, last_level_cache_bytes, measure, measure_in_turns


def test_median_and_spread_are_those_of_the_middle():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median_s == 3.0
    assert timing.spread == pytest.approx((4 - 2) / 3)


@pytest.mark.parametrize("times_s", [(0.5,), (0.0, 0.0), (2.0, 2.0, 2.0)])
def test_spread_of_equal_times_is_zero(times_s):
    assert Timing(times_s).spread == 0


@pytest.mark.parametrize("times_s", [(), (0.1, -0.1), (math.nan, 1.0), (1.0, math.nan), (math.inf,)])
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


def test_turns_are_taken_so_that_a_slow_moment_hits_all(monkeypatch):
    clock, calls = Clock(monkeypatch), []

    def run(name, seconds):
        calls.append(name)
        clock.wait(seconds * (10 if 4 < len(calls) <= 6 else 1))  # the third round is slow

    runs = {"a": lambda: run("a", 0.5), "b": lambda: run("b", 0.25)}
    found = measure_in_turns(runs, warmup=1, repeats=3)
    assert calls == ["a", "b"] * 4
    assert found["a"].times_s == (0.5, 5.0, 0.5) and found["b"].times_s == (0.25, 2.5, 0.25)


@pytest.mark.parametrize(
    ("counts", "message"), [({"warmup": -1}, "warmup must be"), ({"repeats": 0}, "repeats")]
)
def test_turns_that_cannot_be_are_refused(counts, message):
    calls = []
    with pytest.raises(ValueError, match=message):
        measure_in_turns({"a": lambda: calls.append("a")}, **counts)
    assert not calls


def test_the_real_clock_is_used():
    assert measure(lambda: time.sleep(0.02), warmup=0, repeats=1).median_s >= 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "warmup must be at least 0, got -1; use 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0; use 1"),
        ({"repeats": -3}, "repeats must be at least 1, got -3; use 1"),
    ],
)
def test_bad_counts_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        measure(lambda: pytest.fail("nothing runs"), **settings)


class Gpu:
    """CUDA's events over a clock of the stream's own: recording notes its time, work moves it."""

    def __init__(self, monkeypatch):
        self.stream_s = self.waits = 0
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: _Event(self))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self, device):
        self.waits += 1


class _Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.time_s, self.waits = self.gpu.stream_s, self.gpu.waits

    def elapsed_time(self, end):
        assert self.gpu.waits > end.waits, "asked for the time before the work was done"
        return 1e3 * (end.time_s - self.time_s)


def test_on_cuda_events_time_each_repetition(monkeypatch):
    gpu, lengths_s = Gpu(monkeypatch), iter([9.0, 0.5, 1.0, 1.5])

    def launch():
        gpu.stream_s += next(lengths_s)

    assert measure(launch, device="cuda", warmup=1, repeats=3).times_s == pytest.approx((0.5, 1.0, 1.5))
    assert gpu.waits == 2  # before the first repetition and after the last: none in between


def test_copies_outgrow_the_cache_before_one_comes_back():
    x, weight = torch.randn(10), torch.randn(90)  # 400 bytes
    inputs = Rotation(x, weight, cache_bytes=1000)
    assert len(inputs) == 6  # five others hold 2000 bytes, twice the cache
    turns = [inputs() for _ in range(7)]
    assert turns[0][0] is x and turns[6][1] is weight
    assert len({tensors[1].data_ptr() for tensors in turns}) == 6
    assert all(torch.equal(tensors[1], weight) for tensors in turns)


def test_large_inputs_need_two_copies_and_no_cache_one():
    large = torch.randn(1000)
    assert len(Rotation(large, cache_bytes=10)) == 2 and len(Rotation(large, cache_bytes=0)) == 1
    assert 4000 * (len(Rotation(large)) - 1) >= 2 * last_level_cache_bytes("cpu")


@pytest.mark.parametrize(
    ("tensors", "cache_bytes", "message"),
    [
        ((), 10, "tensors must hold at least one byte"),
        ((torch.empty(0),), 10, "tensors must hold at least one byte"),
        ((torch.ones(1),), -1, "cache_bytes must be at least 0, got -1"),
    ],
)
def test_nothing_cannot_be_rotated(tensors, cache_bytes, message):
    with pytest.raises(ValueError, match=message):
        Rotation(*tensors, cache_bytes=cache_bytes)


def test_the_cache_of_a_cpu_is_that_of_a_cpu():
    assert 2**18 <= last_level_cache_bytes("cpu") <= 2**31
