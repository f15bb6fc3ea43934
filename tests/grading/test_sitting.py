"""What is asked again and what is not: of processes that end as they are told, and of real ones."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from llmcourse.grading import sitting
from llmcourse.grading.answer import Answer, Failure
from llmcourse.grading.cells.matching import Answers
from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.process.nursery import LoadReport, MachineryError, Nursery, Worker
from llmcourse.grading.results import QuestionResult
from llmcourse.grading.sandbox.policy import available_tier
from llmcourse.grading.sitting import Sitting
from tests.grading.processes import descendants

KILLED = Failure("process ended", "the process was ended by SIGKILL")
LATE = Failure("time limit", "took more than 5 s")
RIGHT = "def double(x):\n    return 2 * x"


def double(x: int) -> int:
    return 2 * x


def exercise(number: int = 1) -> Exercise:
    return Exercise(
        name=f"09.double_{number}",
        function="double",
        title="Double",
        points=2,
        minutes=5,
        level=1,
        asks="Twice.",
        signature="double(x)",
        cases=lambda rng: [Case({"x": rng.randrange(99)}, "small"), Case({"x": 10**9}, "large")],
        reference=double,
        comparison=Exact(),
        hints=("think", "think more", "it is a sum"),
        mutants=tuple(Mutant(f"{i}", double, "small") for i in range(4)),
    )


def answers(*cells: str, numbers: Sequence[int] = (1,)) -> Answers:
    """Of a notebook with these cells, the last of which is the answer to every exercise."""
    names = [f"09.double_{number}" for number in numbers]
    return Answers(dict.fromkeys(names, tuple(cells)), dict.fromkeys(names, cells[-1]), {})


class Told(Worker):
    """A worker that does as it is told.

    Args:
        end: the failure that its process ends with, when it is called.
        doubted: whether that may come from outside.
    """

    def __init__(self, end: Failure | None = None, doubted: bool = False, takes_s: float = 0.0):
        self.end, self.takes_s = end, takes_s
        self.doubt = end if doubted else None

    def load(self, limit_s: float) -> LoadReport:
        time.sleep(self.takes_s)
        return LoadReport()

    def origins(self, function: str) -> frozenset[str]:
        return frozenset()

    def call(self, function: str, arguments: dict, oracles: dict, limit_s: float) -> Answer:
        return Answer(error=self.end) if self.end else Answer(double(**arguments))


class Script(Nursery):
    """A nursery whose workers are given, one after another; `MachineryError` stands for one that is not."""

    def __init__(self, *workers: Told | type[MachineryError]):
        self.waiting, self.asked = list(workers), 0

    @contextlib.contextmanager
    def worker(self, cells: Sequence[str]) -> Iterator[Told]:
        self.asked += 1
        told = self.waiting.pop(0)
        if told is MachineryError:
            raise MachineryError("the fork server died")
        yield told


def question(script: Script) -> QuestionResult:
    result = Sitting(answers(RIGHT), script, lambda name: [1, 2]).question(exercise())
    assert script.waiting == []
    return result


def handed_out(script: Script, **parts: str) -> QuestionResult:
    """Of a cell that is as it was handed out."""
    found = replace(answers(RIGHT), untouched=("09.double_1",))
    asked = replace(exercise(), **parts)
    return Sitting(found, script, lambda name: [1]).question(asked)


def test_a_cell_as_it_was_handed_out_is_not_written_and_not_asked():
    result = handed_out(script := Script())
    assert (result.status, result.reason, script.asked) == ("fail", "not written yet", 0)


def test_what_this_machine_cannot_run_is_neither_asked_nor_judged():
    script, asked = Script(), replace(exercise(), obstacle=lambda: "no such machine")
    result = Sitting(answers(RIGHT), script, lambda name: [1]).question(asked)
    assert (result.status, result.points, result.reason) == ("not run", 0, "not graded here: no such machine")
    assert script.asked == 0
    unwritten = handed_out(script, obstacle=lambda: "no such machine")
    assert (unwritten.status, unwritten.reason) == ("fail", "not written yet")


def test_a_mistake_that_was_not_touched_is_said_to_be_there_still_and_where():
    result = handed_out(Script(Told(Failure("raised", "ValueError: no"))), starter="def double(x): ...")
    assert (result.status, result.points) == ("fail", 0)
    assert result.reason == f"{sitting.UNCHANGED}; small: raised: ValueError: no"
    assert result.finding.given and result.finding.slip


def killed() -> Told:
    return Told(KILLED, doubted=True)


def stalled() -> Told:
    return Told(LATE, doubted=True)


def test_an_answer_is_asked_once():
    result = question(Script(Told()))
    assert (result.status, result.points, result.flags) == ("pass", 2.0, ())


@pytest.mark.parametrize("first", [killed, stalled])
def test_what_may_come_from_outside_is_asked_again(first):
    result = question(Script(first(), Told()))
    assert result.status == "pass" and result.flags[0].startswith(f"asked twice; at first {first().end.kind}")


@pytest.mark.parametrize("ends", [killed, stalled])
def test_what_happens_twice_is_its_own_doing(ends):
    """Also where time ran out although the judge did not run: both had all of it while it did."""
    result = question(Script(ends(), ends()))
    assert (result.status, result.points, result.flags) == ("fail", 0.0, ())
    assert str(ends().end) in result.reason


def test_a_failure_of_the_machinery_is_tried_once_more():
    assert question(Script(MachineryError, Told())).status == "pass"
    assert question(Script(killed(), MachineryError)).status == "error"
    result = question(Script(MachineryError, MachineryError))
    assert result.status == "error" and "the fork server died" in result.reason


@pytest.mark.parametrize("kind", ["time limit", "memory limit", "disk limit", "raised", "forged reply"])
def test_its_own_doing_is_not_asked_again(kind):
    result = question(Script(Told(Failure(kind, "why"))))
    assert result.status == "fail" and f"{kind}: why" in result.reason


def test_asking_again_costs_a_submission_no_more_than_its_bound(monkeypatch):
    """Ten answers that kill their process when their time is nearly over."""
    monkeypatch.setattr(sitting, "AGAIN_S", 0.3)
    script = Script(*(Told(KILLED, doubted=True, takes_s=0.2) for _ in range(12)))
    numbers = range(10)
    asks = Sitting(answers(RIGHT, numbers=numbers), script, lambda name: [1])
    results = [asks.question(exercise(number)) for number in numbers]
    assert script.asked == 12 and {result.points for result in results} == {0.0}
    assert ["not asked again" in str(result.flags) for result in results] == [False] * 2 + [True] * 8


@pytest.fixture(scope="module")
def nursery():
    with Nursery(available_tier()[0]) as nursery:
        yield nursery


class Murderous(Nursery):
    """A nursery around which somebody kills workers, the first so many, before they are asked."""

    def __init__(self, nursery: Nursery, kills: int):
        self.nursery, self.kills, self.asked = nursery, kills, 0

    @contextlib.contextmanager
    def worker(self, cells: Sequence[str]) -> Iterator[Worker]:
        self.asked += 1
        program = self.nursery._server._program.pid
        before = descendants(program)
        with self.nursery.worker(cells) as worker:
            (pid,) = descendants(program) - before
            if self.asked <= self.kills:
                os.kill(pid, signal.SIGKILL)
            yield worker


def real(nursery: Nursery, *cells: str) -> QuestionResult:
    seeds = random.Random(0)
    return Sitting(answers(*cells), nursery, lambda name: [seeds.randrange(99)]).question(exercise())


def test_a_worker_that_is_killed_from_outside_costs_no_points(nursery):
    result = real(Murderous(nursery, 1), RIGHT)
    assert result.status == "pass" and "SIGKILL" in result.flags[0]
    again = Murderous(nursery, 2)
    assert "SIGKILL" in real(again, RIGHT).reason and again.asked == 2


def test_an_answer_that_kills_itself_gains_nothing(nursery):
    for end in ("os.kill(os.getpid(), 9)", "os._exit(0)", "os.closerange(0, 99)"):
        watched = Murderous(nursery, 0)
        result = real(watched, f"import os\ndef double(x):\n    {end}")
        assert (result.status, watched.asked) == ("fail", 2) and "process ended" in result.reason


HOARD = "held = []\ndef double(x):\n    while True: held.append({})"


@pytest.mark.parametrize("what", ["bytearray(1 << 26)", "bytearray(50 << 30)"])
def test_a_memory_limit_is_told_and_not_asked_again(nursery, what):
    watched = Murderous(nursery, 0)
    result = real(watched, HOARD.format(what))
    assert (result.status, watched.asked) == ("fail", 1) and "memory limit" in result.reason


SLOW = "import time\ntime.sleep({})"


def test_the_cell_that_used_the_time_is_left_out_not_the_answer(nursery, monkeypatch):
    monkeypatch.setattr(sitting, "LOAD_LIMIT_S", 1.5)
    result = real(nursery, SLOW.format(1.2), "import time\ntime.sleep(0.6)\n" + RIGHT)
    assert result.status == "pass" and result.flags == ("cell left out: time limit: took more than 1.5 s",)


def test_a_worker_that_is_killed_while_its_cells_run_has_them_run_again(nursery):
    result = real(Murderous(nursery, 1), "kept = 2", "def double(x):\n    return kept * x")
    assert result.status == "pass" and "left out" not in str(result.flags)
