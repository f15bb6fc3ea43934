"""Whatever the student's code does, the judge gets a value or the reason, in time, and nothing stays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from llmcourse.grading.answer import Oracle
from llmcourse.grading.process import fork_client
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.nursery import MachineryError, Nursery
from llmcourse.grading.process.wire import WireError, encode
from llmcourse.grading.sandbox.policy import Tier, available_tier
from tests.grading.processes import descendants, is_running

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 1 << 20
SMALL = Allowance(
    memory_bytes=256 * MIB,
    file_bytes=4 * MIB,
    scratch_bytes=8 * MIB,
    scratch_files=200,
    output_bytes=100_000,
    oracle_calls=20,
)
BEST = available_tier()[0]
TIERS = [
    pytest.param(tier, marks=pytest.mark.skipif(tier > BEST, reason=f"this system offers {BEST.name}"))
    for tier in Tier
]
HONEST = "def f(x=20):\n    return x + 1"
TOOLS = """
import os, signal, struct, sys, threading, time, torch
def nonce():
    frame = sys._getframe()
    while not hasattr(frame.f_locals.get("self"), "nonce"):
        frame = frame.f_back
    return frame.f_locals["self"].nonce
def write(data):
    while data:
        data = data[os.write(3, data):]
def forge(text, raw=b""):
    body = struct.pack(">I", len(text)) + text.encode() + raw
    write(struct.pack(">I", len(body)) + body)
def reply(fields):
    forge('{"nonce": "%s", %s}' % (nonce(), fields))
"""


everywhere = pytest.mark.parametrize("nursery", TIERS, indirect=True, ids=lambda tier: tier.name.lower())


@pytest.fixture(scope="module")
def nurseries():
    """One for each tier, started when a test first asks for it."""
    with contextlib.ExitStack() as stack:
        yield cache(lambda tier: stack.enter_context(Nursery(tier, SMALL)))


@pytest.fixture
def nursery(request, nurseries):
    return nurseries(getattr(request, "param", BEST))


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """No process but the fork server's own, and nothing in its folder, after each test."""
    if "nursery" not in request.fixturenames:
        yield
        return
    nursery = request.getfixturevalue("nursery")
    server = nursery._server
    before = descendants(server._program.pid)
    yield
    # A namespace has a process or two of its own.
    assert len(descendants(server._program.pid)) == len(before)
    assert sorted(os.listdir(server._root)) == ["lock", "log"]


def ask(nursery: Nursery, body: str, time_limit_s: float = 10.0, **arguments):
    """What a call of `f` with this body comes to."""
    cell = TOOLS + "def f(**given):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    with nursery.worker([cell]) as worker:
        report = worker.load(10.0)
        assert report.errors == () and report.failure is None
        return worker.call("f", arguments, {}, time_limit_s)


@everywhere
def test_an_honest_function_gives_its_value(nursery):
    cells = [
        "import torch",
        "def f(logits, k, *, names):\n    return {names[0]: logits.topk(k).values, 'k': (k, None)}",
    ]
    with nursery.worker(cells) as worker:
        report = worker.load(10.0)
        assert report.errors == () and report.failure is None and report.output_bytes == 0
        assert worker.origins("f") == {"__main__"} and "torch" not in worker.origins("g")
        for _ in range(3):
            answer = worker.call("f", {"logits": torch.arange(5.0), "k": 2, "names": ["top"]}, {}, 10.0)
            assert answer.error is None and answer.value["top"].tolist() == [4, 3]
            assert answer.value["k"] == (2, None) and type(answer.value["k"]) is tuple
            assert answer.operations == ("topk",) and answer.mutated == () and answer.oracle_calls == {}
            assert 0 < answer.seconds < 10


FAILURES = {
    "raises": ("raise ValueError('no\\nway')", "raised", "ValueError: no way (line "),
    "exits": ("sys.exit(0)", "raised", "SystemExit: 0"),
    "interrupts itself": ("raise KeyboardInterrupt", "raised", "KeyboardInterrupt"),
    "raises what cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "raised",
        "its message cannot be shown",
    ),
    "returns an object": ("return object()", "malformed reply", "returned an object, must be None"),
    "returns an impostor": (
        "class Evil(list):\n    def __eq__(self, other): return True\nreturn Evil()",
        "malformed reply",
        "returned a list subclass Evil, must be a plain list",
    ),
    "returns an impostor inside": (
        "class Seven(int): pass\nreturn {'a': [Seven()]}",
        "malformed reply",
        "returned a value whose ['a'][0] is an int subclass Seven",
    ),
    "returns 50 MB": ("return torch.zeros(50 << 18)", "reply too large", "at most 16,777,216 bytes"),
    "returns a giant number": ("return 10 ** 30", "reply too large", "an int outside"),
    "returns a deep list": ("x = []\nfor _ in range(99): x = [x]\nreturn x", "reply too large", "16 deep"),
    "returns a circle": ("x = []\nx.append(x)\nreturn x", "reply too large", "16 deep"),
    "asks for 50 GB": ("return torch.zeros(50 << 28)", "memory limit", ""),
    "eats memory": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "memory limit", ""),
    "fills the disk": (
        "for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))\ntime.sleep(9)",
        "disk limit",
        "more than 8 MiB",
    ),
    "makes many files": (
        "os.mkdir('d')\nfor i in range(999): open(f'd/{i}', 'w').close()\ntime.sleep(9)",
        "disk limit",
        "more than 200 files",
    ),
    "writes a large file": (
        "open('a', 'wb').write(bytes(5 << 20))",
        "raised",
        "OSError: [Errno 27] File too large",
    ),
    "prints without end": ("while True: print('PASSED')", "output limit", "printed more than 100,000 bytes"),
    "prints past Python": ("while True: os.write(2, bytes(999))", "output limit", "printed more than"),
    "prints, then is right": ("os.write(1, bytes(300_000))\nreturn 21", "output limit", "printed more than"),
    "leaves at once": ("os._exit(0)", "process ended", "the process ended with exit code 0"),
    "kills itself": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        "process ended",
        "the process was ended by SIGKILL",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "process ended", "the process was ended by SIGSEGV"),
    "closes its files": ("os.closerange(0, 99)\nreturn 21", "process ended", ""),
    "closes the connection and stays": (
        "os.close(3)\ntime.sleep(60)",
        "process ended",
        "closed its connection",
    ),
    "writes rubbish": ("write(b'\\0\\0\\0\\5hello')", "malformed reply", "sent what is no message"),
    "announces 4 GB": (
        "write(b'\\xff' * 9)\ntime.sleep(60)",
        "reply too large",
        "a message of 4,294,967,295 bytes",
    ),
    "answers another question": (
        'forge(\'{"nonce": "0", "value": 21}\')',
        "forged reply",
        "another question",
    ),
    "answers without a nonce": ("forge('{\"value\": 21}')", "forged reply", "another question"),
    "sends a list": ("forge('[\"l\", 1]')", "malformed reply", "sent a list, not an answer"),
    "sends no answer": ("reply('\"a\": 1')", "malformed reply", "sent no answer"),
    "sends its own kind of failure": (
        'reply(\'"failed": "none", "message": ""\')',
        "malformed reply",
        "none",
    ),
    "sends a failure of a list": ('reply(\'"failed": ["l"], "message": ""\')', "malformed reply", "none"),
    "sends operations that are none": (
        'reply(\'"value": 1, "operations": ["l", 1]\')',
        "malformed reply",
        "names",
    ),
    "sends nested brackets": ("forge('[\"l\",' * 99999)", "reply too large", "nested too deep"),
    "sends a giant number": ("reply('\"value\": ' + '9' * 9999)", "reply too large", "9,999 digits"),
    "sends an unknown dtype": (
        'reply(\'"value": ["x", "object", [1]]\')',
        "malformed reply",
        "unknown dtype",
    ),
    "sends another shape": ('reply(\'"value": ["x", "int8", [9]]\')', "malformed reply", "needs 9"),
    "asks a stranger": (
        'reply(\'"ask": "secret", "arguments": ["t"], "options": {}\')',
        "malformed reply",
        "an oracle secret that was not given",
    ),
    "asks without arguments": ('reply(\'"ask": "secret"\')', "malformed reply", "without name or arguments"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_has_its_kind_and_its_reason(nursery, name):
    body, kind, words = FAILURES[name]
    answer = ask(nursery, body)
    assert answer.value is None and answer.error is not None
    assert answer.error.kind == kind and words in answer.error.message, answer.error
    assert answer.error.message.isprintable() and len(answer.error.message) <= 500
    assert answer.seconds < 8


MOST = {
    "loops": ("while True: pass", "time limit"),
    "eats memory": (FAILURES["eats memory"][0], "memory limit"),
    "makes many files": (FAILURES["makes many files"][0], "disk limit"),
    "prints without end": (FAILURES["prints without end"][0], "output limit"),
    "leaves at once": (FAILURES["leaves at once"][0], "process ended"),
    "answers another question": (FAILURES["answers another question"][0], "forged reply"),
}


@everywhere
@pytest.mark.parametrize("name", MOST)
def test_each_tier_finds_the_reason(nursery, name):
    body, kind = MOST[name]
    assert ask(nursery, body, 0.3 if kind == "time limit" else 10.0).error.kind == kind


DELETED = """
import ctypes
libc = ctypes.CDLL(None)
kept = []
for number in range(12):
    kept.append(open('a', 'w+b', buffering=0))
    kept[-1].write(bytes(1 << 20))
    os.unlink('a')
    MORE
time.sleep(9)
"""
WITHOUT_NAME = {
    "open": "",
    # As Python's own mmap does not: it keeps the file open.
    "mapped": "libc.mmap(None, ctypes.c_size_t(4096), 1, 1, kept[-1].fileno(), 0), kept.pop().close()",
}


@everywhere
@pytest.mark.parametrize("way", WITHOUT_NAME)
def test_deleted_files_fill_the_disk_too(nursery, way):
    assert ask(nursery, DELETED.replace("MORE", WITHOUT_NAME[way])).error.kind == "disk limit"


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 31):
            signal.signal(number, signal.SIG_IGN) if number not in (9, 19) else None
        os.write(1, b"I live")
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
return 21
"""


@pytest.mark.parametrize("nursery", [Tier.NONE], indirect=True)
def test_a_daemon_is_gone_and_the_honest_points_are_kept(nursery):
    with nursery.worker([TOOLS + "def f():\n" + DAEMON.replace("\n", "\n    ")]) as worker:
        worker.load(10.0)
        assert worker.call("f", {}, {}, 10.0).value == 21
        assert worker.output_bytes == len("I live")  # so it did live; the fixture looks for it now


@everywhere
def test_there_are_no_descendants_in_a_sandbox(nursery):
    if nursery.tier == Tier.NONE:
        assert ask(nursery, "if os.fork() == 0: os._exit(0)\nreturn 1").value == 1
    else:
        assert ask(nursery, "os.fork()\nreturn 1").error.message.startswith("PermissionError")


ENDLESS = {
    "loops": "while True: pass",
    "sleeps": "time.sleep(60)",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "catches everything": (
        "for number in {*range(1, 32)} - {9, 19}: signal.signal(number, lambda *_: None)\n"
        "while True:\n    try: time.sleep(1)\n    except BaseException: pass"
    ),
    "drips": "write(b'\\0\\1\\0\\0')\nwhile True: write(b'a'); time.sleep(0.01)",
    "pours": "write(b'\\1\\0\\0\\0')\nwhile True: os.write(3, b'a')",
    "stops the clock": "time.monotonic = time.perf_counter = lambda: 0.0\ntime.sleep(60)",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_the_judges_clock_ends_what_does_not(nursery, name):
    answer = ask(nursery, ENDLESS[name], 0.3)
    assert answer.error.kind == "time limit" and answer.error.message == "took more than 0.3 s"
    assert 0.3 <= answer.seconds < 10  # a busy machine needs a while to end it


def stall(seconds: float) -> None:
    """Holds Python's lock, so that no other thread of this process runs."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


@contextlib.contextmanager
def stalled(after_s: float, seconds: float):
    timer = threading.Timer(after_s, stall, [seconds])
    timer.start()
    try:
        yield
    finally:
        timer.join()


BIG = "time.sleep(0.5)\nreturn torch.arange(2_000_000.0)"  # more than lies in a socket


@pytest.mark.parametrize("body", ["time.sleep(0.5)\nreturn 21", BIG], ids=["small", "big"])
def test_what_was_sent_while_the_judge_was_stalled_counts(nursery, body):
    with stalled(0.3, 3.5):
        answer = ask(nursery, body, 1.0)
    assert answer.error is None and answer.value is not None


def test_a_stall_of_the_judge_is_no_pardon_for_what_does_not_end(nursery):
    with nursery.worker(["def f():\n    while True: pass"]) as worker:
        worker.load(10.0)
        with stalled(0.1, 2.0):
            answer = worker.call("f", {}, {}, 0.5)
        assert answer.error.kind == "time limit" and 2 < answer.seconds < 10
        assert worker.doubt == answer.error
        worker.call("f", {}, {}, 0.5)
        assert worker.doubt == answer.error, "whatever is asked afterwards"


def test_a_stall_while_an_oracle_is_asked_does_not_count(nursery):
    with nursery.worker(["def f(g):\n    return g() + g()"]) as worker:
        worker.load(10.0)
        answer = worker.call("f", {"g": Oracle("g")}, {"g": lambda: stall(1.0) or 1}, 0.7)
        assert answer.value == 2


JUDGE = """
import sys
from llmcourse.grading.sandbox.policy import available_tier
from llmcourse.grading.process.nursery import Nursery
with Nursery(available_tier()[0]) as nursery:
    cell = "import time, torch\\ndef f():\\n    time.sleep(0.7)\\n    return torch.ones(2_000_000)"
    with nursery.worker([cell]) as worker:
        worker.load(10.0)
        print("asking", flush=True)
        answer = worker.call("f", {}, {}, 1.5)
        print(answer.error or int(answer.value.sum()), flush=True)
"""


def test_a_judge_that_was_stopped_finds_the_answer_that_came_meanwhile():
    command = [sys.executable, "-c", JUDGE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as judge:
        assert judge.stdout.readline() == "asking\n"
        time.sleep(0.2)
        os.kill(judge.pid, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(judge.pid, signal.SIGCONT)
        assert judge.stdout.read() == "2000000\n"


def test_what_may_come_from_outside_is_in_doubt(nursery):
    before = descendants(nursery._server._program.pid)
    with nursery.worker(["import time\ndef f(): time.sleep(60)"]) as worker:
        worker.load(10.0)
        (pid,) = descendants(nursery._server._program.pid) - before
        threading.Timer(0.1, os.kill, [pid, signal.SIGKILL]).start()
        error = worker.call("f", {}, {}, 10.0).error
        assert error.message == "the process was ended by SIGKILL" and worker.doubt == error


OWN_DOING = {
    "time limit": "while True: pass",
    "memory limit": FAILURES["eats memory"][0],
    "disk limit": FAILURES["fills the disk"][0],
    "output limit": FAILURES["prints without end"][0],
    "raised": "1 / 0",
    "malformed reply": FAILURES["writes rubbish"][0],
}


@pytest.mark.parametrize("kind", OWN_DOING)
def test_what_is_the_student_s_own_doing_is_in_no_doubt(nursery, kind):
    body = OWN_DOING[kind].replace("\n", "\n    ")
    with nursery.worker([TOOLS + f"def f():\n    {body}"]) as worker:
        worker.load(10.0)
        limit_s = 0.5 if kind == "time limit" else 10.0
        assert worker.call("f", {}, {}, limit_s).error.kind == kind and worker.doubt is None


def test_who_ignores_that_its_processor_time_is_used_up_is_told(nursery):
    busy = "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass"
    cells = [TOOLS + f"def f():\n    {busy}"]
    with Nursery(nursery.tier, Allowance(cpu_s=1)) as short, short.worker(cells) as worker:
        worker.load(10.0)
        error = worker.call("f", {}, {}, 60.0).error
        assert (error.kind, error.message) == ("time limit", "used all of its processor time")
        assert worker.doubt is None


def test_endless_progress_is_no_progress(nursery):
    flood = (
        TOOLS
        + """
text = '{"nonce": "%s", "cell": 0}' % nonce()
frame = struct.pack(">II", 4 + len(text), len(text)) + text.encode()
while True:
    write(frame * 1000)
"""
    )
    with nursery.worker([flood]) as worker:
        started = time.monotonic()
        report = worker.load(0.3)
    assert report.failure.kind == "time limit" and time.monotonic() - started < 5


def test_after_the_end_each_call_says_why(nursery):
    with nursery.worker(["import os\ndef f(): os._exit(3)", HONEST.replace("f", "g", 1)]) as worker:
        worker.load(10.0)
        first = worker.call("f", {}, {}, 10.0)
        assert worker.call("def", {}, {}, 10.0).error == first.error
        assert first.error.message == "the process ended with exit code 3" and not worker.origins("f")
        assert worker.load(1.0).failure == first.error


def test_what_is_the_functions_fault_leaves_the_process(nursery):
    with nursery.worker(
        ["def f(x): return [object, lambda: 10**99, lambda: 1 / 0, lambda: x][x]()", "g = 1"]
    ) as worker:
        worker.load(10.0)
        errors = [worker.call("f", {"x": x}, {}, 10.0).error for x in range(4)]
        assert [error.kind for error in errors[:3]] == ["malformed reply", "reply too large", "raised"]
        assert errors[3] is None
        missing = worker.call("h", {}, {}, 10.0).error
        assert (missing.kind, missing.message) == ("missing", "there is no function h")
        assert worker.call("g", {}, {}, 10.0).error.message.endswith("so is of type int")
        assert worker.call("f", {}, {}, 10.0).error.kind == "raised"
        assert worker.call("f", {"y": 1}, {}, 10.0).error.kind == "raised"


def test_loading_reports_errors_output_and_where_it_stopped(nursery):
    cells = ["print('x' * 1000)", "1 / 0\nf = len", "import os\nos._exit(0)", HONEST]
    with nursery.worker(cells[:2]) as worker:
        report = worker.load(10.0)
        assert report.output_bytes == 1001 and report.failure is None and report.stopped_in is None
        assert [(error.cell_index, error.type, error.line) for error in report.errors] == [
            (1, "ZeroDivisionError", 1)
        ]
    with nursery.worker(cells) as worker:
        report = worker.load(10.0)
        assert report.failure.kind == "process ended" and report.stopped_in == 2
        assert worker.call("f", {}, {}, 10.0).error == report.failure
    with nursery.worker([HONEST, "while True: pass"]) as worker:
        report = worker.load(0.2)
        assert report.failure.kind == "time limit" and report.stopped_in == 1


def test_loading_says_how_long_each_cell_took(nursery):
    cells = ["import time\ntime.sleep(0.5)", HONEST, "time.sleep(0.5)", "while True: pass", HONEST]
    with nursery.worker(cells[:3]) as worker:
        report = worker.load(10.0)
        slow, quick, last = report.cell_seconds
        assert min(slow, last) > quick > 0 and 0.9 < slow + last < report.seconds
    with nursery.worker(cells) as worker:
        report = worker.load(3.0)
        *before, endless, never = report.cell_seconds
        assert endless > max(before) > 0 and never == 0 and sum(before) + endless < report.seconds


def test_a_notebook_of_odd_text_loads(nursery):
    with nursery.worker(["x = '\ud800'", "\0", "", "y = 1" + "\n" * 100_000, HONEST]) as worker:
        report = worker.load(10.0)
        assert report.failure is None and worker.call("f", {"x": 1}, {}, 10.0).value == 2


def test_an_answer_before_the_question_is_forged(nursery):
    premature = encode({"nonce": "", "value": 21})
    cell = (
        TOOLS
        + f"threading.Timer(0.1, lambda: write(struct.pack('>I', {len(premature)}) + {premature!r})).start()"
    )
    with nursery.worker([cell, HONEST]) as worker:
        worker.load(10.0)
        time.sleep(0.3)
        error = worker.call("f", {"x": 1}, {}, 10.0).error
    assert error.kind == "forged reply" and "before it was asked" in error.message


def test_a_report_on_loading_may_be_forged_but_gains_nothing(nursery):
    cell = TOOLS + 'def f(): return 1\nreply(\'"loaded": ["l"]\')\nreply(\'"value": 21\')\ntime.sleep(0.2)'
    with nursery.worker([cell]) as worker:
        worker.load(10.0)
        assert worker.call("f", {}, {}, 10.0).error.kind == "forged reply"


@pytest.mark.parametrize(
    "fields",
    [
        '"cell": 7',
        '"cell": "x"',
        '"loaded": 1',
        '"loaded": ["l", 1]',
        '"loaded": ["l", ["l", 9, "a", "b", 1]]',
        '"loaded": ["l", ["l", 0, "a", 5, 1]]',
        '"loaded": ["l", ["l", 0, "a", "b", -1]]',
    ],
)
def test_a_report_on_loading_is_read_with_suspicion(nursery, fields):
    with nursery.worker([TOOLS + f"reply({fields!r})\ntime.sleep(9)"]) as worker:
        assert worker.load(10.0).failure.kind == "malformed reply"


def test_oracles_are_asked_and_counted_by_the_judge(nursery):
    cell = """
def f(model, other):
    assert model.__name__ == 'logits' and callable(other)
    first = model(torch.ones(2), scale=3)
    try:
        model('text')
    except ValueError as error:
        return first, model(first), str(error)
import torch
"""

    def logits(x, scale=2):
        if not isinstance(x, torch.Tensor):
            raise TypeError("x must be\na tensor")
        return x * scale

    with nursery.worker([cell]) as worker:
        worker.load(10.0)
        given = {"model": Oracle("logits"), "other": Oracle("never")}
        answer = worker.call("f", given, {"logits": logits, "never": print}, 10.0)
    first, second, error = answer.value
    assert first.tolist() == [3, 3] and second.tolist() == [6, 6] and error == "x must be a tensor"
    assert answer.oracle_calls == {"logits": 3, "never": 0}
    assert answer.operations == ("ones",) and answer.mutated == ()


def test_too_many_questions_to_an_oracle_raise(nursery):
    with nursery.worker(["def f(g):\n    while True: g()"]) as worker:
        worker.load(10.0)
        answer = worker.call("f", {"g": Oracle("g")}, {"g": lambda: None}, 10.0)
    assert answer.error.kind == "raised" and "g was called more than 20 times" in answer.error.message
    assert answer.oracle_calls == {"g": 20}


def test_an_oracle_that_cannot_be_asked_so_says_why(nursery):
    with nursery.worker(["def f(g):\n    g([object()])"]) as worker:
        worker.load(10.0)
        answer = worker.call("f", {"g": Oracle("g")}, {"g": print}, 10.0)
    assert "TypeError: g was given at ['arguments'][0][0]: an object" in answer.error.message


def test_time_goes_on_while_an_oracle_is_asked(nursery):
    with nursery.worker(["def f(g):\n    while True: g()"]) as worker:
        worker.load(10.0)
        answer = worker.call("f", {"g": Oracle("g")}, {"g": lambda: time.sleep(0.1)}, 0.35)
    assert answer.error.kind == "time limit"  # and not the twenty calls that are allowed
    assert 1 <= answer.oracle_calls["g"] < 20


def test_an_argument_of_ours_that_cannot_be_sent_is_not_the_students_fault(nursery):
    with nursery.worker([HONEST]) as worker:
        worker.load(10.0)
        with pytest.raises(WireError):
            worker.call("f", {"x": object()}, {}, 10.0)
        assert worker.call("f", {"x": 1}, {}, 10.0).value == 2


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_dead_fork_server_is_our_failure_and_is_started_again(nursery, when):
    with pytest.raises(MachineryError), nursery.worker(["import time\ndef f(): time.sleep(60)"]) as worker:
        worker.load(10.0)
        kill = threading.Timer(0.0 if when == "before" else 0.3, nursery._server._program.kill)
        kill.start()
        if when == "before":
            kill.join()
        started = time.monotonic()
        worker.call("f", {}, {}, 30.0)
    assert time.monotonic() - started < 10
    with nursery.worker([HONEST]) as worker:
        worker.load(10.0)
        assert worker.call("f", {"x": 1}, {}, 10.0).value == 2


def test_a_fork_server_that_hangs_is_replaced(nursery, monkeypatch):
    monkeypatch.setattr(fork_client, "END_S", 0.3)
    monkeypatch.setattr(fork_client, "STOP_S", 0.3)
    with nursery.worker([HONEST]) as worker:
        worker.load(10.0)
        old = descendants(nursery._server._program.pid) | {nursery._server._program.pid}
        for pid in old:
            os.kill(pid, signal.SIGSTOP)
        assert worker.call("f", {"x": 1}, {}, 0.3).error.kind == "time limit"
    assert not any(map(is_running, old))
    with nursery.worker([HONEST]) as worker:
        worker.load(10.0)
        assert worker.call("f", {"x": 1}, {}, 10.0).value == 2


@pytest.fixture
def control_c():
    """Python's own answer to it: a shell that starts tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@everywhere
@pytest.mark.usefixtures("control_c")
def test_control_c_ends_the_question_at_once(nursery):
    with pytest.raises(KeyboardInterrupt), nursery.worker(["def f():\n    while True: pass"]) as worker:
        worker.load(10.0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        worker.call("f", {}, {}, 30.0)
    assert time.monotonic() - started < 10
    assert nursery._server.alive


@everywhere
def test_a_worker_starts_quickly(nursery):
    def start() -> float:
        started = time.monotonic()
        with nursery.worker([]):
            return time.monotonic() - started

    # 25 ms is what a question may cost when nothing else runs; other tests do, but not all the time.
    assert any(start() < 0.025 for _ in range(200))


def test_one_nursery_has_several_workers_at_a_time(nursery):
    with nursery.worker([HONEST]) as first, nursery.worker([HONEST]) as second:
        first.load(10.0), second.load(10.0)
        assert first.call("f", {"x": 1}, {}, 10.0).value == 2
        first.__exit__()
        assert second.call("f", {"x": 2}, {}, 10.0).value == 3


@everywhere
def test_the_same_question_has_the_same_random_numbers(nursery):
    cell = """
import random, torch, numpy
def f(): return random.random(), torch.rand(3), float(numpy.random.rand()), str({'a', 'b', 'c'})
"""
    answers = []
    for _ in range(2):
        with nursery.worker([cell]) as worker:
            worker.load(10.0)
            answers.append([encode(worker.call("f", {}, {}, 10.0).value) for _ in range(2)])
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]


def test_a_nursery_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fork_client.tempfile, "tempdir", str(tmp_path))
    with Nursery(BEST, SMALL) as nursery:
        pids = descendants(nursery._server._program.pid) | {nursery._server._program.pid}
        with nursery.worker([HONEST]) as worker:
            worker.load(10.0)
            assert os.listdir(tmp_path)
    assert os.listdir(tmp_path) == [] and not any(map(is_running, pids))
