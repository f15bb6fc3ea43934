"""A batch goes on: past failures, after kills and interruptions, with as many jobs as are asked for."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmcourse.grading import batch
from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook, GradebookError
from llmcourse.grading.records.progress import Bar, Lines, Progress, progress, said
from tests.grading.grades import EXERCISES, LAB, FakeLab, Handed, graded, no_nursery, question, result

ROOT = Path(__file__).parent.parent.parent
KILLS, SUBMISSIONS = 100, 40  # a benchmark does more


@pytest.fixture
def book(tmp_path):
    with Gradebook(tmp_path / FILE_NAME) as book:
        yield book


def run(book, handed, grade=graded, nursery=no_nursery, **settings):
    settings = {"version": "v1"} | settings
    return batch.run(handed, FakeLab(), book, grade=grade, nursery=nursery, **settings)


def class_of(count):
    return [Handed(f"s{number:02d}", f"{number:04x}") for number in range(count)]


def rows(book):
    return {row.result.student: row for row in book.rows(LAB)}


class Judge:
    """Grades, notes what it was asked, and fails where it is told to.

    Args:
        fails: by student, how many times, or True for always.
    """

    def __init__(self, fails=()):
        self.asked, self.nurseries, self.fails = [], [], dict(fails)

    def __call__(self, submission, lab, nursery, secret):
        self.asked.append(submission.student)
        self.nurseries.append(nursery)
        if left := self.fails.get(submission.student, 0):
            if left is not True:
                self.fails[submission.student] = left - 1
            raise RuntimeError("the nursery\nis gone")
        return graded(submission, lab, nursery, secret)


class Nurseries:
    """Counts nurseries that are opened and closed; those whose number is in `broken` do not open."""

    def __init__(self, broken=()):
        self.opened, self.closed, self.tried, self.broken = [], [], 0, broken

    @contextmanager
    def __call__(self):
        self.tried += 1
        if self.tried in self.broken:
            raise OSError("no isolation any more")
        number = self.tried
        self.opened.append(number)
        try:
            yield number
        finally:
            self.closed.append(number)


def test_every_submission_is_graded_once(book):
    judge, nurseries = Judge(), Nurseries()
    outcome = run(book, class_of(9), judge, nurseries)
    assert sorted(judge.asked) == [f"s{n:02d}" for n in range(9)]
    assert (outcome.graded, outcome.skipped, outcome.left) == (9, 0, 0)
    assert nurseries.opened == nurseries.closed == [1]
    secret = book.secret()
    for submission in class_of(9):
        assert rows(book)[submission.student].result == graded(submission, FakeLab(), None, secret)


def test_grades_do_not_depend_on_the_number_of_jobs(book, tmp_path):
    nurseries, meeting = Nurseries(), threading.Barrier(4, timeout=60)

    def grade(submission, *others):
        meeting.wait()  # or three jobs might take all before the fourth has begun
        return graded(submission, *others)

    run(book, class_of(20), grade, nurseries, jobs=4)
    assert sorted(nurseries.opened) == sorted(nurseries.closed) == [1, 2, 3, 4]
    secret = book.secret()
    for submission in class_of(20):
        assert rows(book)[submission.student].result == graded(submission, FakeLab(), None, secret)


def test_jobs_run_at_the_same_time(book):
    meeting = threading.Barrier(3, timeout=60)

    def grade(submission, *others):
        meeting.wait()
        return graded(submission, *others)

    assert run(book, class_of(3), grade, jobs=3).graded == 3


def test_there_are_no_more_jobs_than_submissions(book):
    nurseries = Nurseries()
    run(book, class_of(2), nursery=nurseries, jobs=8)
    assert len(nurseries.opened) <= 2
    assert run(book, [], nursery=nurseries, jobs=8).graded == 0


def test_what_is_graded_is_skipped(book):
    run(book, class_of(3))
    judge = Judge()
    outcome = run(book, class_of(5), judge)
    assert judge.asked == ["s03", "s04"] and (outcome.graded, outcome.skipped) == (2, 3)
    run(book, class_of(1), judge, version="v2")
    assert judge.asked[2:] == ["s00"]


def test_what_was_not_run_is_graded_where_it_can_be_and_nothing_else_is(book):
    missing = (question("01.softmax"), question("01.top_p"), question("01.beam", "not run"))
    asked = []

    def grade(submission, *others):
        asked.append(submission.student)
        usual = graded(submission, *others)
        first = asked.count("s01") == 1 and submission.student == "s01"
        return replace(usual, questions=missing) if first else usual

    able = {"runnable": ["01.softmax", "01.top_p"]}
    run(book, class_of(3), grade, **able)
    assert run(book, class_of(3), grade, **able).skipped == 3 and asked.count("s01") == 1
    outcome = run(book, class_of(3), grade, runnable=list(EXERCISES))
    assert asked[3:] == ["s01"] and outcome.changed == ["s01"] and rows(book)["s01"].waiting == ()
    assert run(book, class_of(3), grade, runnable=list(EXERCISES)).skipped == 3


def test_a_corrected_file_is_graded_and_an_earlier_one_counts_again(book):
    run(book, [Handed("ann", "00")])
    first = rows(book)["ann"].result
    run(book, [Handed("ann", "07")])
    assert rows(book)["ann"].result.sha256 == "07"
    judge = Judge()
    run(book, [Handed("ann", "00")], judge)
    assert rows(book)["ann"].result == first and judge.asked == []


def test_regrading_grades_again_and_says_what_changed(book):
    def giving(*passed):
        def grade(submission, *others):
            usual = graded(submission, *others)
            return result("s01", usual.sha256, passed) if usual.student == "s01" else usual

        return grade

    run(book, class_of(3), giving())
    book.adjust("s00", LAB, None, "set", 9.0, "seen on paper")
    outcome = run(book, class_of(3), giving("01.beam"), regrade=True)
    assert (outcome.graded, outcome.skipped) == (3, 0)
    assert outcome.changed == ["s01"] and rows(book)["s01"].points == 5.0
    assert rows(book)["s00"].points == 9.0


def test_after_a_failure_the_batch_goes_on_in_a_new_nursery(book):
    judge, nurseries = Judge(fails={"s01": 1}), Nurseries()
    outcome = run(book, class_of(4), judge, nurseries)
    assert judge.asked == ["s00", "s01", "s02", "s03"] and judge.nurseries == [1, 1, 2, 2]
    assert nurseries.opened == nurseries.closed == [1, 2] and outcome.graded == 4
    failed = rows(book)["s01"]
    assert failed.result.status == "error" and failed.points is None
    assert failed.result.reason == "RuntimeError: the nursery\nis gone"


def test_after_the_last_failure_no_nursery_is_opened(book):
    nurseries = Nurseries()
    run(book, class_of(2), Judge(fails={"s01": 1}), nurseries)
    assert nurseries.opened == nurseries.closed == [1]


def test_the_next_start_tries_a_failure_again_and_only_it(book):
    judge = Judge(fails={"s01": 1})
    run(book, class_of(3), judge)
    run(book, class_of(3), judge)
    assert judge.asked[3:] == ["s01"] and rows(book)["s01"].points is not None


def test_an_error_that_the_judge_reports_is_one_too(book):
    answers = [result("ann", status="error", questions=()), result("bob"), result("ann")]
    nurseries = Nurseries()
    for _ in range(2):
        run(book, [Handed("ann"), Handed("bob")], lambda *given: answers.pop(0), nurseries)
    assert answers == [] and nurseries.opened == nurseries.closed == [1, 2, 3]
    assert rows(book)["ann"].points == rows(book)["bob"].points == 5.0


def test_an_error_in_regrading_leaves_the_grade(book):
    run(book, class_of(2))
    before = rows(book)
    outcome = run(book, class_of(2), Judge(fails={"s01": True}), regrade=True)
    assert outcome.kept == ["s01"] and rows(book)["s01"] == before["s01"]


def test_a_nursery_that_does_not_open_any_more_ends_the_batch(book):
    nurseries = Nurseries(broken={2})
    outcome = run(book, class_of(4), Judge(fails={"s01": 1}), nurseries)
    assert (outcome.graded, outcome.left, outcome.stopped) == (2, 2, "OSError: no isolation any more")
    assert set(rows(book)) == {"s00", "s01"} and nurseries.closed == [1]


def test_a_nursery_that_fails_when_it_closes_costs_nothing(book):
    @contextmanager
    def nursery():
        yield 1
        raise OSError("its folder cannot be removed")

    assert run(book, class_of(3), Judge(fails={"s01": 1}), nursery).graded == 3
    assert rows(book)["s02"].result.status == "graded"


def test_without_a_nursery_nobody_gets_an_error(book):
    outcome = run(book, class_of(3), nursery=Nurseries(broken=range(100)))
    assert (outcome.graded, outcome.left) == (0, 3) and not outcome.interrupted
    assert outcome.stopped == "OSError: no isolation any more" and rows(book) == {}


def test_one_job_without_a_nursery_leaves_the_rest_to_others(book):
    outcome = run(book, class_of(10), nursery=Nurseries(broken={2}), jobs=2)
    assert outcome.graded + outcome.left == 10 and outcome.left <= 1
    assert bool(outcome.stopped) == bool(outcome.left)


def test_what_a_job_without_a_nursery_had_taken_goes_to_another(book):
    nurseries = Nurseries(broken={2})

    def grade(submission, *others):
        while nurseries.tried < 2:
            time.sleep(0.001)
        time.sleep(0.01)  # while which the other job gives back what it had taken
        return graded(submission, *others)

    outcome = run(book, class_of(10), grade, nurseries, jobs=2)
    assert (outcome.graded, outcome.left, outcome.stopped) == (10, 0, "")


def test_a_file_with_a_problem_is_looked_at_each_time(book):
    def rejects(submission, *others):
        return result(submission.student, submission.sha256, status="rejected", reason=submission.problem)

    for problem in ("is a symbolic link", "is 1000 MiB large"):
        outcome = run(book, [Handed("ann", "", problem)], rejects)
        assert outcome.graded == 1 and rows(book)["ann"].result.reason == problem


def test_a_full_disk_ends_the_batch_and_keeps_what_is_kept(book):
    judge = Judge()
    run(book, class_of(3), judge)
    book._db.execute("PRAGMA max_page_count = 1")

    def long(submission, *others):
        time.sleep(0.05)
        return result(submission.student, submission.sha256, reason="x" * 3000)

    with pytest.raises(GradebookError, match="full; free some space"):
        run(book, class_of(200), long, jobs=2)
    assert not [thread for thread in threading.enumerate() if thread.name == batch.THREAD]
    assert set(rows(book)) >= {"s00", "s01", "s02"}


def test_no_kill_loses_doubles_or_changes_a_grade():
    command = [sys.executable, "-m", "tests.grading.kills", str(KILLS), str(SUBMISSIONS)]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert found["troubles"] == [] and found["kills"] == KILLS and found["batches"] >= 1


INTERRUPTED = """
import pathlib, sys, time
from llmcourse.grading import batch
from llmcourse.grading.records.gradebook import Gradebook
from llmcourse.grading.records.progress import Lines
from tests.grading import grades

def grade(submission, *others):
    print(submission.student, flush=True)
    time.sleep(float(sys.argv[2]))
    return grades.graded(submission, *others)

handed = [grades.Handed(f"s{n}", f"{n:02x}") for n in range(50)]
with Gradebook(pathlib.Path(sys.argv[1])) as book:
    outcome = batch.run(handed, grades.FakeLab(), book, grade=grade, nursery=grades.no_nursery, version="v1",
                        jobs=2, progress=Lines())
print(outcome.graded, outcome.left, outcome.interrupted)
"""


def interrupted(path, seconds):
    """A batch in another program, two submissions of which have begun."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path), str(seconds)], cwd=ROOT, **pipes
    )
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    return process


def test_ctrl_c_finishes_what_is_in_hand(tmp_path):
    process = interrupted(tmp_path / FILE_NAME, 0.5)
    output, errors = process.communicate(timeout=30)
    assert output.splitlines()[-1] == "2 48 True" and process.returncode == 0
    assert batch.STOPPING in errors and "Traceback" not in errors
    with Gradebook(tmp_path / FILE_NAME) as book:
        assert len(rows(book)) == 2
        assert run(book, [Handed(f"s{n}", f"{n:02x}") for n in range(50)]).skipped == 2


def test_ctrl_c_twice_leaves_at_once(tmp_path):
    process = interrupted(tmp_path / FILE_NAME, 100)
    started = time.monotonic()
    while batch.STOPPING not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - started < 20 and process.returncode != 0


def test_lines_say_how_far_it_is(book, capsys):
    run(book, class_of(1))
    run(book, [*class_of(2), Handed("a\x1b[31m\u202eb", "00")], progress=Lines())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 graded already" and len(lines) == 3
    assert lines[1].startswith("1/2 s01: ") and lines[1].endswith(" of 10 points")
    assert lines[2].startswith("2/2 ab: ")


def test_what_has_no_grade_is_said_in_words():
    assert said(result(status="rejected", reason="is no JSON")) == "ann: rejected, is no JSON"
    assert said(result(status="error")) == "ann: error, see its exercises"


def test_the_bar_shows_the_time_left(book, capsys, monkeypatch):
    run(book, class_of(1))
    run(book, class_of(4), progress=Bar())
    shown = capsys.readouterr().err
    assert "4/4" in shown and "25%" in shown and "<" in shown
    assert isinstance(progress(quiet=False), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress(quiet=False), Bar)
    assert type(progress(quiet=True)) is Progress
