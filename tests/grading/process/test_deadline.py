"""Time runs while the judge waits or works, and stands still while it is kept from both."""

import time

import pytest

from llmcourse.grading.process.deadline import STALL_S, STEP_S, Deadline

STALL = 3 * (STEP_S + STALL_S)  # seconds in which nobody looks, as of a judge that is stopped


def wait(deadline, seconds):
    """Waits as the judge does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, deadline.step()))


def test_waiting_counts():
    deadline = Deadline(10.0)
    wait(deadline, 0.5)
    assert deadline.spent() >= 0.5 - deadline.stalled_s
    assert deadline.left() == pytest.approx(10.0 - deadline.spent(), abs=0.05)


def test_working_counts_however_long_it_takes_to_the_next_look():
    deadline = Deadline(10.0)
    until = time.thread_time() + STALL
    while time.thread_time() < until:
        pass
    assert deadline.spent() >= STALL


def test_what_takes_a_moment_counts():
    """An oracle that sleeps, a machine that is busy."""
    deadline, started = Deadline(10.0), time.monotonic()
    time.sleep(STALL_S)
    took = time.monotonic() - started
    assert deadline.spent() >= took or took > STEP_S + STALL_S


def test_a_stall_does_not_count():
    deadline = Deadline(0.5)
    time.sleep(STALL)
    assert deadline.spent() < 2 * STEP_S and deadline.left() > 0
    assert deadline.stalled_s >= STALL - STEP_S


def test_a_long_stall_is_in_doubt_and_a_short_one_is_made_up_for():
    for limit_s, doubt in ((0.5, True), (100.0, False)):
        deadline = Deadline(limit_s)
        time.sleep(STALL)
        deadline.left()
        assert deadline.stalled_s > 0 and deadline.in_doubt == doubt


def test_time_is_over_once_even_if_there_are_only_stalls():
    deadline, stalls = Deadline(2.5 * STEP_S), 0
    while deadline.left() > 0 and stalls < 9:
        time.sleep(1.2 * (STEP_S + STALL_S))
        stalls += 1
    assert stalls <= 3


def test_a_step_is_short_and_never_negative():
    assert 0 < Deadline(10.0).step() <= STEP_S
    assert Deadline(0.0).step() == 0.0
