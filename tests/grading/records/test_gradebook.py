"""Grades are kept whole: one row a submission, corrections apart, and nothing of another version."""

import os
import sqlite3
import stat
from dataclasses import replace

import pytest

from llmcourse.grading.records.gradebook import FILE_NAME, SCHEMA, Gradebook, GradebookError
from llmcourse.grading.results import Finding
from tests.grading.grades import EXERCISES, FOUND, LAB, question, result


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE_NAME


@pytest.fixture
def book(path):
    with Gradebook(path) as book:
        yield book


def totals(book):
    return {row.result.student: row.points for row in book.rows(LAB)}


def test_what_is_recorded_is_read_back(path):
    whole = result(flags=("top cell edited",), reason="a\nb", seconds=1.25)
    odd = question("01.beam", "fail", "got 春, expected \x00", ["forged reply"], finding=FOUND)
    whole = replace(whole, questions=(*whole.questions[:2], odd))
    with Gradebook(path) as book:
        assert book.record(whole, "v1") == "new"
    with Gradebook(path) as book:
        (row,) = book.rows(LAB)
    assert row.result == whole and row.version == "v1" and row.graded_at.endswith("+00:00")
    assert (row.points, row.max_points, row.exercises) == (5.0, 10.0, EXERCISES)
    assert row.flags == ("top cell edited", "01.beam: forged reply")


def test_the_same_submission_twice_is_one_row(book, path):
    assert [book.record(result(), "v1") for _ in range(2)] == ["new", "same"]
    assert len(book.rows(LAB)) == 1
    with sqlite3.connect(path) as db:
        counts = [db.execute(f"SELECT count(*) FROM {t}").fetchone() for t in ("submissions", "questions")]
    assert counts == [(1,), (3,)]


def test_another_grade_for_the_same_file_is_noticed(book):
    book.record(result(), "v1")
    assert book.record(result(passed=()), "v1") == "changed"
    assert totals(book) == {"ann": 0.0}


def test_done_means_this_file_and_this_version(book):
    book.record(result(), "v1")
    assert book.done("ann", LAB, "ab", "v1")
    for other in [("bob", LAB, "ab", "v1"), ("ann", "02", "ab", "v1"), ("ann", LAB, "cd", "v1")]:
        assert not book.done(*other)
    assert not book.done("ann", LAB, "ab", "v2")


def test_what_no_machine_could_run_is_left_until_one_can(book):
    questions = (*result().questions[:2], question("01.beam", "not run", "not graded here: needs a GPU"))
    book.record(result(questions=questions), "v1")
    key = ("ann", LAB, "ab", "v1")
    assert book.done(*key) and book.done(*key, ["01.softmax", "01.top_p"])
    assert not book.done(*key, list(EXERCISES))
    (row,) = book.rows(LAB)
    assert [(m.question.exercise, m.question.reason) for m in row.waiting] == [
        ("01.beam", "not graded here: needs a GPU")
    ]
    book.record(result(passed=list(EXERCISES)), "v1")
    (row,) = book.rows(LAB)
    assert book.done(*key, list(EXERCISES)) and row.waiting == () and row.points == 10.0


def test_the_latest_submission_counts(book):
    book.record(result(sha256="ab"), "v1")
    book.record(result(sha256="cd", passed=()), "v1")
    assert totals(book) == {"ann": 0.0}
    book.make_latest("ann", LAB, "ab", "v1")  # the earlier file is handed in again
    assert totals(book) == {"ann": 5.0}


def test_a_failure_of_the_machinery_is_no_grade(book):
    book.record(result(status="error", reason="no memory", questions=()), "v1")
    (row,) = book.rows(LAB)
    assert row.points is None and not book.done("ann", LAB, "ab", "v1")
    assert book.record(result(), "v1") == "changed"
    assert totals(book) == {"ann": 5.0}


def test_one_question_that_failed_for_us_makes_the_submission_an_error(book):
    whole = result()
    book.record(replace(whole, questions=(question("01.beam", "error"), *whole.questions[:2])), "v1")
    (row,) = book.rows(LAB)
    assert row.result.status == "error" and row.points is None
    assert not book.done("ann", LAB, "ab", "v1")


def test_an_error_never_takes_the_place_of_a_grade(book):
    book.record(result(), "v1")
    assert book.record(result(status="error", questions=()), "v1") == "kept"
    assert totals(book) == {"ann": 5.0} and book.done("ann", LAB, "ab", "v1")


def test_a_rejected_file_has_no_points(book):
    book.record(result("bob"), "v1")
    book.record(result(status="rejected", reason="no JSON"), "v1")
    assert totals(book) == {"ann": None, "bob": 5.0}
    (ann, _) = book.rows(LAB)
    assert ann.max_points == 10.0 and [mark.points for mark in ann.marks] == [0.0, 0.0, 0.0]
    assert book.done("ann", LAB, "ab", "v1")


def test_adjustments_survive_grading_again(book):
    book.record(result(), "v1")
    book.adjust("ann", LAB, "01.beam", "set", 4.0, "right but for a slip")
    book.adjust("ann", LAB, None, "add", -1.0, "a day late")
    assert totals(book) == {"ann": 8.0}
    book.record(result(passed=()), "v1")
    assert totals(book) == {"ann": 3.0}
    book.record(result(sha256="cd", passed=tuple(EXERCISES)), "v2")
    assert totals(book) == {"ann": 8.0}
    (row,) = book.rows(LAB)
    assert [(a.exercise, str(a), a.reason) for a in row.adjustments] == [
        ("01.beam", "set to 4 points", "right but for a slip"),
        (None, "-1 points", "a day late"),
    ]


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ([("add", 2.0), ("add", -1.0)], 6.0),
        ([("add", 2.0), ("set", 7.0)], 7.0),
        ([("set", 7.0), ("add", 2.0)], 9.0),
        ([("set", 7.0), ("clear", 0.0)], 5.0),
        ([("set", 7.0), ("clear", 0.0), ("add", 1.0)], 6.0),
        ([("add", -50.0)], 0.0),
        ([("set", 12.0)], 12.0),
    ],
)
def test_adjustments_apply_in_order(book, changes, points):
    book.record(result(), "v1")
    for kind, value in changes:
        book.adjust("ann", LAB, None, kind, value, "why not")
    assert totals(book) == {"ann": points}


@pytest.mark.parametrize(
    ("status", "exercise", "kind", "points"),
    [
        ("rejected", None, "add", None),  # a late day does not make a rejected file worth 0 points
        ("rejected", "01.beam", "add", None),
        ("rejected", "01.beam", "set", 4.0),
        ("rejected", None, "set", 4.0),
        ("error", None, "add", None),
        ("error", "01.beam", "set", None),  # the other exercises are still to be graded
        ("error", None, "set", 4.0),
    ],
)
def test_only_what_decides_gives_points_to_what_has_no_grade(book, status, exercise, kind, points):
    book.record(result("bob"), "v1")  # from whom the exercises are known
    book.record(result(status=status, reason="?", questions=()), "v1")
    book.adjust("ann", LAB, exercise, kind, 4.0, "seen on paper")
    assert totals(book)["ann"] == points


def test_a_correction_of_an_exercise_that_is_no_longer_there_is_shown(book):
    book.record(result(), "v1")
    book.adjust("ann", LAB, "01.gone", "set", 1.0, "it was there")
    (row,) = book.rows(LAB)
    assert [mark.question.exercise for mark in row.marks] == [*EXERCISES, "01.gone"]
    assert row.points == 6.0 and row.max_points == 10.0


def test_the_secret_is_made_once_and_for_its_owner_only(path):
    with Gradebook(path) as book:
        secret = book.secret()
    assert len(secret) == 32 and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # as copying does
    with Gradebook(path) as book:
        assert book.secret() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Gradebook(path.with_name("other")) as other:
        assert other.secret() != secret


def test_a_gradebook_that_another_program_just_made_is_left_alone(book):
    secret = book.secret()
    book._create()  # as one does that found no tables a moment ago
    assert book.secret() == secret


def test_students_of_any_language_and_any_bytes_are_kept(book):
    names = ["张伟", "José", "Jose\u0301", "'; DROP TABLE submissions; --", "名\udcff", "\x00", "🦜" * 50]
    for name in names:
        book.record(result(name), "v1")
        assert book.done(name, LAB, "ab", "v1")
    assert len(book.rows(LAB)) == len(names)


def test_reasons_without_end_are_cut(book):
    book.record(result(reason="x" * 10**6, flags=("y",) * 10**4), "v1")
    (row,) = book.rows(LAB)
    assert len(row.result.reason) < 5000 and len(row.result.flags) < 100


def test_what_an_answer_failed_with_is_cut_and_whole_again(book):
    long = Finding(("x" * 10**6, "\udcff春\x00") * 50, got="y" * 10**6, slip="z", hint="'\\\"}")
    book.record(result(questions=(question("01.beam", "fail", finding=long),)), "v1")
    found = book.rows(LAB)[0].result.questions[0].finding
    assert found.given[1] == "\udcff春\x00" and (found.slip, found.hint) == ("z", "'\\\"}")
    assert len(found.given) <= 20 and max(map(len, (*found.given, found.got))) <= 1000


def test_whether_inputs_are_shown_is_kept(path):
    for shown in (False, True, False):
        with Gradebook(path) as book:
            book.show_inputs(shown)
            book.show_inputs(shown)
        with Gradebook(path) as book:
            assert book.shows_inputs() is shown


def test_inputs_are_shown_at_first(book):
    assert book.shows_inputs()


def test_a_gradebook_of_the_first_schema_keeps_its_grades(path):
    with Gradebook(path) as book:
        book.record(result(), "v1")
        book.adjust("ann", LAB, None, "add", 1.0, "a good idea")
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE questions DROP COLUMN finding")
        db.execute("UPDATE meta SET value = 1 WHERE key = 'schema'")
    for _ in range(2):
        with Gradebook(path) as book:
            (row,) = book.rows(LAB)
            assert row.result == result() and row.points == 6.0
    with Gradebook(path) as book:
        book.record(result(questions=(question("01.beam", "fail", finding=FOUND),)), "v2")
        assert book.rows(LAB)[0].result.questions[0].finding == FOUND


def test_another_version_is_refused_and_left_alone(path):
    Gradebook(path).__exit__()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 7 WHERE key = 'schema'")
    before = path.read_bytes()
    with pytest.raises(GradebookError, match=f"schema version {SCHEMA}, got 7; use the llmcourse that"):
        Gradebook(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"grades, grades and grades\n" * 100, b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(GradebookError, match="is no gradebook: file is not a database"):
        Gradebook(path)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photos (name)")
    with pytest.raises(GradebookError, match="is a database but no gradebook"):
        Gradebook(path)


def test_a_gradebook_that_is_a_folder_is_refused(path):
    path.mkdir()
    with pytest.raises(GradebookError, match="cannot be written: Is a directory; choose another --out"):
        Gradebook(path)


def test_a_full_disk_is_said_and_what_is_kept_stays(path):
    with Gradebook(path) as book:
        book.record(result(), "v1")
        book._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(GradebookError, match="full; free some space"):
            for number in range(1000):
                book.record(result(f"s{number}", reason="x" * 3000), "v1")
        assert book.done("ann", LAB, "ab", "v1")
    with Gradebook(path) as book:
        rows = book.rows(LAB)
    assert rows[0].result.student == "ann" and all(len(row.result.questions) == 3 for row in rows)


def test_a_result_is_written_wholly_or_not_at_all(book):
    broken = replace(result("bob"), questions=(question("01.beam"), question("01.beam")))
    with pytest.raises(sqlite3.IntegrityError):
        book.record(broken, "v1")
    assert book.rows(LAB) == [] and not book.done("bob", LAB, "ab", "v1")
    assert book.record(result(), "v1") == "new"  # and the gradebook goes on


def test_no_second_file_is_left_beside_the_first(path):
    with Gradebook(path) as book:
        book.record(result(), "v1")
        assert os.listdir(path.parent) == [FILE_NAME]
