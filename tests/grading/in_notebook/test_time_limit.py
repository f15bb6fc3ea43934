"""A call that does not end is ended, and nothing of the limit is left behind."""

import contextlib
import signal
import sys
import threading
import time

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llmcourse.grading.in_notebook import time_limit as module
from llmcourse.grading.in_notebook.time_limit import TimeIsUp, can_limit, time_limit
from llmcourse.grading.process.operations import Operations

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of a process's own here")
LIMIT_S = 0.02


@pytest.fixture(autouse=True)
def as_it_was():
    """No test leaves a handler or a timer."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def endless():
    """Nearly: a limit that fails is to be seen, not waited for."""
    given_up = time.monotonic() + 30
    while time.monotonic() < given_up:
        pass


def catches(kind):
    def function():
        with contextlib.suppress(kind):
            endless()
        endless()

    return function


@pytest.mark.parametrize("function", [endless, lambda: time.sleep(30), catches(Exception)])
def test_what_does_not_end_is_ended(function):
    started = time.monotonic()
    with pytest.raises(TimeIsUp), time_limit(LIMIT_S):
        function()
    assert time.monotonic() - started >= LIMIT_S


def test_a_loop_that_catches_everything_is_ended_outside_its_try():
    with pytest.raises(TimeIsUp), time_limit(LIMIT_S):
        for _ in range(50):
            with contextlib.suppress(BaseException):
                time.sleep(0.06)
            time.sleep(0.06)


def test_what_ends_in_time_is_left_alone():
    with time_limit(30):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    with pytest.raises(ZeroDivisionError), time_limit(30):
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), time_limit(30):
        signal.raise_signal(signal.SIGINT)


def test_a_timer_and_a_handler_that_were_there_come_back():
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 60, 7)
        with time_limit(30):
            time.sleep(0.05)
        rest_s, every_s = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < rest_s <= 59.95 and every_s == 7
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with time_limit(30):
            time.sleep(0.05)  # the other timer runs out meanwhile, and is told so afterwards
            assert not rung.is_set()
        assert rung.wait(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_limit_within_a_limit():
    with time_limit(30):
        with pytest.raises(TimeIsUp), time_limit(LIMIT_S):
            endless()
        assert 20 < signal.getitimer(signal.ITIMER_REAL)[0] < 30


def test_in_other_threads_and_on_other_systems_there_is_none(monkeypatch):
    found = []

    def elsewhere():
        with time_limit(LIMIT_S):
            time.sleep(3 * LIMIT_S)
        found.append(can_limit())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False] and can_limit()
    monkeypatch.setattr(module, "signal", object())
    elsewhere()
    assert found == [False, False]


def test_nothing_is_left_wherever_the_bell_rings():
    """Before the call has begun, too, when the limit is next to nothing."""
    for step in range(300):
        with contextlib.suppress(TimeIsUp), time_limit(1e-6 + step * 1e-6):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        with pytest.raises(TimeIsUp), time_limit(1e-6 + step * 1e-6):
            endless()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("function", [bool, lambda: 1 / 0], ids=["it ended", "it failed"])
def test_a_bell_is_not_heard_while_the_limit_is_taken_away(function):
    rung = []

    def ring(frame, event, _):
        if event == "call" and frame.f_code.co_name == "__exit__" and not rung:
            rung.append(frame)
            signal.raise_signal(signal.SIGALRM)

    sys.setprofile(ring)
    try:
        with contextlib.suppress(ZeroDivisionError), time_limit(30):
            function()
    finally:
        sys.setprofile(None)
    assert rung


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a __del__: it rings again
def test_pytorch_is_whole_after_it_was_interrupted_anywhere():
    """Whichever of the instants between two operations the bell rings in."""
    x = torch.ones(3)
    for step in range(200):
        operations = Operations()
        with pytest.raises(TimeIsUp), operations, time_limit(1e-3 + step * 1e-5):
            for _ in range(10**6):
                x = x.softmax(-1)
        assert _get_current_dispatch_mode() is None
        assert x.softmax(-1).sum().isclose(torch.tensor(1.0))
