import threading
from queue import Queue

import pytest

from llmcourse.serving.engine import Engine
from llmcourse.serving.http.engine_thread import EngineThread
from llmcourse.serving.policies import ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import DuplicateId, NeverFits
from tests.serving.fakes import scheduler
from tests.serving.http.fakes import Script, eventually


@pytest.fixture
def script():
    return Script(lambda state: 5)


@pytest.fixture
def served():
    return scheduler(ContinuousBatching(), num_blocks=4, block_size=4)


@pytest.fixture
def thread(script, served):
    thread = EngineThread(Engine(served, script), lambda outputs: None, lambda error: None)
    thread.start()
    yield thread
    script.gate.set()
    assert thread.stop(timeout_s=10)


def add(thread, *requests):
    """What the thread says to requests."""
    replies = Queue()
    thread.add(requests, replies.put)
    return replies.get(timeout=10)


def test_all_requests_get_into_line_or_none(thread, served, script):
    small, large = Request("small", [5], max_tokens=9), Request("large", [5] * 10, max_tokens=9)
    assert isinstance(add(thread, small, large), NeverFits)
    assert add(thread) is None and not served.has_work and not script.seen
    assert isinstance(add(thread, small, small), DuplicateId)
    assert add(thread, small) is None
    eventually(lambda: script.seen["small"].finish_reason == "length")


def test_commands_wait_until_the_step_is_over(thread, served, script):
    script.gate.clear()
    add(thread, Request("a", [5], max_tokens=5))
    eventually(lambda: "a" in script.seen)
    said = threading.Event()
    thread.add([Request("b", [5])], lambda error: said.set())
    thread.abort(["a", "of nobody"])
    assert not said.wait(0.1) and served.num_running == 1
    script.gate.set()
    assert said.wait(10)
    eventually(lambda: not served.has_work)
    assert script.seen["a"].finish_reason == "abort" and script.seen["a"].num_generated == 1


def test_a_step_that_does_not_end_is_not_waited_for_longer_than_told(thread, script):
    script.gate.clear()
    add(thread, Request("a", [5]))
    eventually(lambda: "a" in script.seen)
    assert not thread.stop(timeout_s=0.1)


def test_what_ends_the_thread_is_reported(served):
    failures = Queue()
    script = Script(lambda state: 5)
    script.fails = lambda states: KeyboardInterrupt("as a debugger might")
    thread = EngineThread(Engine(served, script), lambda outputs: None, failures.put)
    thread.start()
    add(thread, Request("a", [5]))
    assert isinstance(failures.get(timeout=10), KeyboardInterrupt)
    assert thread.stop(timeout_s=10)
