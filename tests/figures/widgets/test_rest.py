"""Python's search for garbage waits until no answer has come for a while, and always comes back."""

import gc
import time

import pytest

from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.rest import Collector

LONG_S = 30.0  # until the collector may go on: longer than any test


@pytest.fixture(autouse=True)
def collecting():
    gc.enable()
    yield
    gc.enable()


def wait_until_it_collects() -> bool:
    end = time.monotonic() + LONG_S
    while not gc.isenabled() and time.monotonic() < end:
        time.sleep(0.005)
    return gc.isenabled()


def test_it_waits_for_an_answer_and_for_one_inside_another():
    collector = Collector(rest_s=LONG_S)
    with collector.waiting():
        with collector.waiting():
            assert not gc.isenabled()
        assert not gc.isenabled() and collector._timer is None
    assert not gc.isenabled()
    collector._timer.cancel()


def test_it_goes_on_when_a_reader_rests():
    with Collector(rest_s=0.01).waiting():
        pass
    assert wait_until_it_collects()


def test_it_goes_on_while_answer_follows_answer():
    collector = Collector(rest_s=LONG_S, longest_s=0.05)
    with collector.waiting():
        time.sleep(0.06)
    assert wait_until_it_collects()


def test_the_next_answer_stops_the_clock():
    collector = Collector(rest_s=0.05)
    for _ in range(2):
        with collector.waiting():
            time.sleep(0.1)
            assert not gc.isenabled()
    assert wait_until_it_collects()


def test_an_interrupted_answer_ends_the_wait():
    collector = Collector(rest_s=0.01)
    with pytest.raises(KeyboardInterrupt), collector.waiting():
        raise KeyboardInterrupt
    assert wait_until_it_collects()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with Collector(rest_s=0.01).waiting():
        assert not gc.isenabled()
    time.sleep(0.1)
    assert not gc.isenabled()


def test_views_answer_without_it(monkeypatch):
    monkeypatch.setattr(v, "COLLECTOR", Collector(rest_s=0.01))
    found = []
    v.alone(lambda: found.append(gc.isenabled()))()
    assert found == [False] and wait_until_it_collects()
