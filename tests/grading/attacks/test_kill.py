"""43: a grader that is killed leaves no process, and goes on where it was, to the same grades."""

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest

from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.attack import Scene, by_code
from tests.grading.attacks.exhausting import HOARD
from tests.grading.attacks.grading import (
    command,
    hand_over,
    honest_book,
    marked,
    places,
    read_grades,
    run,
    wrong_in,
)
from tests.grading.attacks.suite import grading_user

STUDENTS = 6
KILLED_AT = (1, 3)
WRONG = ("01.top_k", "01.beam_search", "01.softmax")  # every third student's is wrong


def graded_so_far(out):
    """How many submissions the gradebook holds."""
    if not (out / "gradebook.sqlite").exists():
        return 0
    with closing(sqlite3.connect(f"file:{out / 'gradebook.sqlite'}?mode=ro", uri=True)) as book:
        try:
            return book.execute("SELECT count(*) FROM submissions").fetchone()[0]
        except sqlite3.OperationalError:  # it is just being made
            return 0


def killed_after(where, tier, uid, count):
    """Starts the grader, and kills it once the gradebook holds so many."""
    words, environment = command(where, tier, uid)
    program = subprocess.Popen(
        words, env=environment, cwd=where.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 120
        while graded_so_far(where.out) < count and program.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        assert program.poll() is None, "the batch ended before it could be killed"
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()


def wait_until_gone(mark):
    """Processes that are still there after some seconds."""
    end = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def points(results):
    return {student: result["points"] for student, result in results.items()}


@pytest.mark.parametrize("ordinary", [False, True], ids=["root", "ordinary"])
@pytest.mark.parametrize("tier", [Tier.LANDLOCK, Tier.NAMESPACE], ids=lambda tier: tier.name.lower())
def test_a_killed_grader_goes_on_to_the_same_grades(tier, ordinary):
    uid, tier = grading_user(tier, ordinary), tier.name.lower()
    with places(uid) as where:
        for number in range(STUDENTS):
            exercises = {WRONG[number // 2]} if number % 2 else set()
            Scene({}, where, f"student{number}").write(wrong_in(exercises))
        # It comes last and takes some seconds, so that there is time for a kill.
        by_code("zz-hoard", (13,), {"01.top_k": HOARD}, alone=True).place(
            Scene(honest_book(), where, "zz-hoard")
        )
        hand_over(where, uid)
        mark = str(where.temporary).encode()
        for count in KILLED_AT:
            killed_after(where, tier, uid, count)
            assert wait_until_gone(mark) == []
        before = graded_so_far(where.out)
        assert before >= KILLED_AT[-1]
        for root in where.temporary.iterdir():  # what the kills left: another start removes it when it is old
            os.utime(root, (0, 0))
        rest = run(where, tier, uid).summary
        graded = rest["graded"]
        # By the machinery, on a machine that others load: no grade, until the next start.
        if rest["failed"] or rest["left"]:
            graded += run(where, tier, uid).summary["graded"]
        assert rest["skipped"] == before and graded == STUDENTS + 1 - before, rest
        resumed = points(read_grades(where.out))
        assert list(where.temporary.iterdir()) == []
        whole = run(where, tier, uid, "--regrade")
        assert whole.summary["changed"] == [] and whole.summary["failed"] == {}
        assert whole.summary["graded"] == STUDENTS + 1
        assert points(read_grades(where.out)) == resumed
        assert resumed["student0"] == 100 and resumed["student1"] == 92 and resumed["student3"] == 84
