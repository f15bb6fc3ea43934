"""Python's search for garbage waits until no answer has come for a while, and always comes back."""

import asyncio
import gc
import threading
import time

import pytest
from IPython.core.events import EventManager

from llmcourse.figures.style import DRAWING
from llmcourse.figures.widgets import rest
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.rest import COLLECTOR, NEVER, PAUSE_S, Cells, Collector, Idle

LONG_S = 30.0  # until the collector may go on: longer than any test


@pytest.fixture(autouse=True)
def collecting():
    """What the view of an earlier test has put off goes on first: its timer is not to come into this one."""
    if COLLECTOR._timer is not None:
        COLLECTOR._timer.join()
    thresholds = gc.get_threshold()
    yield
    gc.enable()
    gc.set_threshold(*thresholds)


def waits() -> bool:
    return gc.get_threshold()[0] == NEVER


def wait_until_it_collects() -> bool:
    end = time.monotonic() + LONG_S
    while waits() and time.monotonic() < end:
        time.sleep(0.005)
    return not waits()


def test_it_waits_for_an_answer_and_for_one_inside_another():
    collector = Collector(rest_s=LONG_S)
    with collector.waiting():
        with collector.waiting():
            assert waits()
        assert waits() and collector._timer is None
    assert waits()
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
            assert waits()
    assert wait_until_it_collects()


def test_an_interrupted_answer_ends_the_wait():
    collector = Collector(rest_s=0.01)
    with pytest.raises(KeyboardInterrupt), collector.waiting():
        raise KeyboardInterrupt
    assert wait_until_it_collects()


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_collector_that_somebody_turns_off_stays_off(when):
    for now in ("before", "during", "after"):
        if now == "during":
            with Collector(rest_s=0.01).waiting():
                if when == now:
                    gc.disable()
        elif when == now:
            gc.disable()
    assert wait_until_it_collects() and not gc.isenabled()


def test_thresholds_are_those_of_before_or_those_that_somebody_set():
    before = gc.get_threshold()
    with Collector(rest_s=0.01).waiting():
        assert gc.get_threshold() == (NEVER, *before[1:])
    assert wait_until_it_collects() and gc.get_threshold() == before
    collector = Collector(rest_s=0.01)
    with collector.waiting():
        gc.set_threshold(0)
    collector._timer.join()
    assert gc.get_threshold()[0] == 0


def test_no_search_comes_while_it_waits():
    collector, found = Collector(rest_s=LONG_S), []

    def heard(phase, info):
        found.append(phase)

    gc.callbacks.append(heard)
    try:
        with collector.waiting():
            found.clear()
            kept = [[] for _ in range(200_000)]
            assert kept and not found
    finally:
        gc.callbacks.remove(heard)
        collector._timer.cancel()


def test_views_answer_without_it(monkeypatch):
    monkeypatch.setattr(v, "COLLECTOR", Collector(rest_s=0.01))
    found = []
    v.alone(lambda: found.append(waits()))()
    assert found == [True] and wait_until_it_collects()


def plan(idle: Idle, done: list, *names: str) -> bool:
    def work():
        for name in names:
            done.append((name, threading.current_thread()))
            yield

    return idle.plan(work())


async def until_done(idle: Idle) -> None:
    async with asyncio.timeout(LONG_S):
        while idle.planned:
            await asyncio.sleep(PAUSE_S)


def test_idle_work_goes_on_a_piece_at_a_time_and_other_work_between():
    idle, done, between = Idle(), [], []

    async def run():
        assert plan(idle, done, "a", "b", "c") and not done
        while idle.planned:
            await asyncio.sleep(0)
            between.append(len(done))

    asyncio.run(run())
    assert [name for name, _ in done] == ["a", "b", "c"] and {0, 1, 2, 3} <= set(between)
    assert {thread for _, thread in done} == {threading.current_thread()}


def test_the_newest_plan_is_the_only_one():
    idle, done = Idle(), []

    async def run():
        plan(idle, done, "old", "old")
        plan(idle, done, "new", "new")
        await until_done(idle)
        await asyncio.sleep(3 * PAUSE_S)

    asyncio.run(run())
    assert [name for name, _ in done] == ["new", "new"]


def test_an_interrupt_ends_the_work_and_not_the_loop():
    idle, done = Idle(), []

    def interrupted():
        done.append("begun")
        yield
        raise KeyboardInterrupt

    async def run():
        idle.plan(interrupted())
        await until_done(idle)
        plan(idle, done, "next")
        await until_done(idle)

    asyncio.run(run())
    assert done[0] == "begun" and done[1][0] == "next"


def test_idle_work_waits_for_whoever_draws():
    idle, done, waited = Idle(), [], []
    drawing, enough = threading.Event(), threading.Event()

    def draw():
        with DRAWING:
            drawing.set()
            enough.wait(0.3)
            waited.append(not done)

    async def run():
        other = threading.Thread(target=draw)
        other.start()
        drawing.wait()
        plan(idle, done, "a")
        await until_done(idle)
        other.join()

    asyncio.run(run())
    assert waited == [True] and len(done) == 1


def test_work_is_finished_at_once_where_it_is_asked_for():
    idle, done = Idle(), []

    async def run():
        plan(idle, done, "a", "b")
        idle.finish()
        assert len(done) == 2 and not idle.planned

    asyncio.run(run())


def test_without_an_event_loop_nothing_is_planned():
    idle, done = Idle(), []
    assert not plan(idle, done, "a") and not idle.planned and not done


def test_idle_work_waits_for_the_end_of_a_cell(monkeypatch):
    cells, idle, done = Cells(), Idle(), []
    events = EventManager(None, dict.fromkeys(("pre_run_cell", "post_run_cell")))
    monkeypatch.setattr(rest, "CELLS", cells)
    monkeypatch.setattr(rest, "REST_S", PAUSE_S)
    cells.watch(events)
    cells.watch(events)  # once is enough
    assert len(events.callbacks["pre_run_cell"]) == 1

    async def run():
        events.trigger("pre_run_cell", None)
        plan(idle, done, "a")
        await asyncio.sleep(5 * PAUSE_S)
        assert idle.planned and not done
        idle.drop()
        plan(idle, done, "b")
        events.trigger("post_run_cell", None)
        await until_done(idle)

    asyncio.run(run())
    assert [name for name, _ in done] == ["b"]
