"""The commands of grading: what they print, write and refuse, and how they end."""

import csv
import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from llmcourse import doctor
from llmcourse.cli import main
from llmcourse.grading import assembly, commands
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook
from llmcourse.grading.sandbox import policy, probes
from llmcourse.grading.sandbox.policy import Tier
from llmcourse.grading.sandbox.probes import Probe
from tests.grading.grades import FOUND, LAB, FakeLab, Handed, graded, no_nursery, question, result
from tests.grading.records.test_folder import another_program, ordinary_user, shared  # noqa: F401

ROOT = Path(__file__).parent.parent.parent


def judged(submission, lab, nursery, secret):
    """A stand-in for the judge that looks at the file only for what it should do."""
    whole = graded(submission_like(submission), lab, nursery, b"\7")
    if submission.problem:
        return result(submission.student, submission.sha256, status="rejected", reason=submission.problem)
    if b"breaks" in submission.read():
        raise RuntimeError("the nursery is gone")
    if b"suspicious" in submission.read():
        return result(submission.student, submission.sha256, flags=("a forged reply was ignored",))
    if b"gpu" in submission.read():
        questions = (question("01.softmax"), question("01.top_p", "not run"))
        return result(submission.student, submission.sha256, questions=questions)
    return result(submission.student, submission.sha256, whole and ("01.softmax", "01.top_p"))


def submission_like(submission):
    return Handed(submission.student, "00")


@pytest.fixture
def grader(monkeypatch, tmp_path):
    """A grader without a judge; runs a command line and returns its exit code, output and errors."""
    monkeypatch.setattr(assembly, "available_tier", lambda: (Tier.LANDLOCK, ["no bubblewrap"]))
    monkeypatch.setattr(assembly, "known_labs", lambda: [LAB, "02_flash"])
    monkeypatch.setattr(assembly, "judged_lab", FakeLab)
    parts = {"grade": judged, "nursery": no_nursery, "version": "v1"}
    monkeypatch.setattr(assembly, "judge", lambda tier, lab: parts)
    return parts


@pytest.fixture
def run(grader, capsys):
    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def handed_in(tmp_path):
    """A folder; `handed_in(ann="text")` puts a notebook of that text there."""
    folder = tmp_path / "submitted"
    folder.mkdir()

    def put(**texts):
        for student, text in texts.items():
            cells = [{"cell_type": "code", "source": f"# Exercise 01.top_p\n{text}"}]
            (folder / f"{student}.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
        return folder

    return put


def points(out):
    with open(out / "grades.csv", encoding="utf-8-sig", newline="") as file:
        return {row["student"]: row["points"] for row in csv.DictReader(file)}


def test_grading_writes_everything_and_ends_with_0(run, handed_in, tmp_path):
    out = tmp_path / "out"
    code, output, errors = run("grade", handed_in(ann="x", bob="y"), "--out", out)
    assert code == 0
    assert output == (
        f"{LAB}: 2 graded now, 0 graded before\n"
        f"grades: {out / 'grades.csv'}, overview: {out / 'index.html'}\n"
    )
    assert errors.splitlines() == ["1/2 ann: 5 of 10 points", "2/2 bob: 5 of 10 points"]
    assert points(out) == {"ann": "5.0", "bob": "5.0"}
    assert {path.name for path in (out / "feedback").iterdir()} == {"ann.html", "bob.html"}
    code, output, errors = run("grade", handed_in(eve="z"), "--out", out, "--quiet")
    assert (code, errors) == (0, "") and "1 graded now, 2 graded before" in output
    assert run("grade", handed_in(), "--out", out, "--regrade")[1].startswith(f"{LAB}: 3 graded now")


def test_what_needs_a_look_is_listed_and_ends_with_1(run, handed_in, tmp_path):
    folder = handed_in(ann="x", eve="suspicious", gil="gpu")
    (folder / "bob.ipynb").symlink_to("ann.ipynb")
    code, output, _ = run("grade", folder, "--out", tmp_path / "out")
    assert code == 1
    lines = output.splitlines()
    assert lines[1] == "rejected:" and lines[2].startswith("  bob: bob.ipynb is a symbolic link")
    assert lines[3:5] == ["to look at:", "  eve: a forged reply was ignored"]
    assert lines[5:7] == ["not graded on this machine:", "  01.top_p: 1 students"]
    assert run("grade", folder, "--out", tmp_path / "out")[0] == 1  # until somebody has looked


@pytest.mark.parametrize("text", ["suspicious", "gpu", None])
def test_one_reason_to_look_is_enough(run, handed_in, tmp_path, text):
    folder = handed_in(ann="x", bob=text or "y")
    if text is None:
        (folder / "eve.ipynb").symlink_to("ann.ipynb")
    assert run("grade", folder, "--out", tmp_path / "out")[0] == 1


def test_a_failure_of_the_machinery_ends_with_3_until_it_is_mended(run, handed_in, grader, tmp_path):
    folder = handed_in(ann="x", bob="breaks")
    code, output, _ = run("grade", folder, "--out", tmp_path / "out")
    assert code == 3
    assert "failed, run the same command again:\n  bob: RuntimeError: the nursery is gone\n" in output
    assert points(tmp_path / "out") == {"ann": "5.0", "bob": ""}
    grader["grade"] = lambda submission, *others: result(submission.student, submission.sha256)
    code, output, _ = run("grade", folder, "--out", tmp_path / "out")
    assert code == 0 and "1 graded now, 1 graded before" in output


def test_a_machinery_that_does_not_start_ends_with_3(run, handed_in, grader, tmp_path):
    def broken():
        raise OSError("no memory")

    grader["nursery"] = broken
    code, _, errors = run("grade", handed_in(ann="x"), "--out", tmp_path / "out")
    assert code == 3
    assert errors == "the machinery stopped: OSError: no memory; 1 are left; run the same command again\n"


def test_json_says_the_same(run, handed_in, tmp_path):
    folder = handed_in(ann="x", bob="breaks", eve="suspicious")
    code, output, errors = run("grade", folder, "--out", tmp_path / "out", "--json")
    found = json.loads(output)
    assert code == found["exit_code"] == 3 and errors == ""
    assert found["failed"] == {"bob": "RuntimeError: the nursery is gone"}
    assert found["look"] == {"eve": ["a forged reply was ignored"]}
    assert found["grades"][:2] == [
        {"student": "ann", "status": "graded", "points": 5.0, "max": 10.0},
        {"student": "bob", "status": "error", "points": None, "max": 10.0},
    ]


def test_regrading_says_whose_grade_changed(run, handed_in, grader, tmp_path):
    folder, out = handed_in(ann="x", bob="y"), tmp_path / "out"
    run("grade", folder, "--out", out)
    usual = grader["grade"]
    grader["grade"] = lambda s, *o: result(s.student, s.sha256, ()) if s.student == "bob" else usual(s, *o)
    code, output, _ = run("grade", folder, "--out", out, "--regrade")
    assert code == 0 and "the same file, another grade: bob\n" in output


def test_names_do_nothing_to_a_terminal(run, handed_in, grader, tmp_path):
    evil = "x\x1b[2J\u202ey"
    grader["grade"] = lambda s, *o: result(s.student, s.sha256, status="rejected", reason=evil)
    for options in ([], ["--json"]):
        _, output, errors = run("grade", handed_in(ann="x"), "--out", tmp_path / "out", "--regrade", *options)
        assert not re.search("[\x1b\u202e]", output + errors) and "ann" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, got 0; leave it out"),
        (["--lab", "09_none"], f"--lab must be one of {LAB}, 02_flash, got '09_none'"),
        (
            ["--tier", "namespace"],
            "--tier must be one that this machine has (landlock), got namespace: no bub",
        ),
    ],
)
def test_bad_values_end_with_one_line_and_code_2(run, handed_in, tmp_path, options, message):
    code, output, errors = run("grade", handed_in(ann="x"), "--out", tmp_path / "out", *options)
    assert (code, output) == (2, "") and errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_to_grade_ends_with_code_2(run, handed_in, tmp_path):
    (tmp_path / "text.txt").touch()
    for what in (handed_in(), tmp_path / "nowhere", tmp_path / "text.txt"):
        code, output, errors = run("grade", what, "--out", tmp_path / "out")
        assert (code, output) == (2, "") and errors.startswith("error: submissions must ")
        assert errors.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_lab_is_what_most_notebooks_say(run, handed_in, tmp_path):
    folder = handed_in(ann="x", bob="y", eve="z")
    other = '{"cells": [{"cell_type": "code", "source": "# Exercise 02.tile"}]}'
    (folder / "eve.ipynb").write_text(other)
    (folder / "gil.ipynb").write_text("{}")
    assert run("grade", folder, "--out", tmp_path / "a")[1].startswith(f"{LAB}: 4 graded now")
    for student in ("ann", "bob"):
        (folder / f"{student}.ipynb").write_text(other)
    (folder / "ann.ipynb").rename(folder / "ann_02_flash.ipynb")
    assert run("grade", folder, "--out", tmp_path / "b")[1].startswith("02_flash: 4 graded now")
    assert set(points(tmp_path / "b")) == {"ann", "bob", "eve", "gil"}


@pytest.mark.parametrize("text", ["# Exercise 01.top_p", "check('01.top_p', f)", 'check("01.top_p", f)', ""])
def test_a_lab_is_known_by_any_mention(text, tmp_path):
    cell = {"cell_type": "code", "source": [text], "metadata": {}}
    if not text:
        cell["metadata"] = {"nbgrader": {"grade_id": "01-top_p"}}
    for indent in (None, 1):
        book = json.dumps({"cells": [cell]}, indent=indent).encode()
        assert assembly.named_lab([Handed("ann", data=book)], ["02_flash", LAB]) == LAB


def test_notebooks_that_do_not_say_their_lab_are_asked_about(run, handed_in, tmp_path):
    folder = handed_in(ann="x")
    (folder / "bob.ipynb").write_text("# Exercise 02.tile")
    code, _, errors = run("grade", folder, "--out", tmp_path / "out")
    assert code == 2 and errors.startswith(
        "error: the notebooks do not say which lab they are of, they name: "
    )
    assert f"{LAB} (1 notebooks), 02_flash (1 notebooks); add --lab NAME, one of {LAB}, 02_flash" in errors
    assert run("grade", folder, "--out", tmp_path / "out", "--lab", LAB)[0] == 0


@pytest.mark.parametrize("out", [".", "out", "a/b"])
def test_grades_are_not_written_among_submissions(run, handed_in, out):
    folder = handed_in(ann="x")
    code, _, errors = run("grade", folder, "--out", folder / out)
    assert code == 2 and "error: --out must lie outside" in errors
    assert [path.name for path in folder.iterdir()] == ["ann.ipynb"]


def test_without_isolation_only_trusted_students_are_graded(run, handed_in, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "available_tier", lambda: (Tier.NONE, ["no landlock"]))
    given = ["grade", handed_in(ann="x"), "--out", tmp_path / "out"]
    code, output, errors = run(*given)
    assert (code, output) == (2, "") and not (tmp_path / "out").exists()
    assert "cannot be isolated on this machine: no landlock; see `llmcourse doctor --grading`" in errors
    code, _, errors = run(*given, "--i-trust-these-students")
    assert code == 0 and "without isolation: students' code runs with your rights" in errors
    assert run(*given, "--i-trust-these-students", "--tier", "landlock")[0] == 2


def test_the_best_isolation_is_taken_even_for_trusted_students(monkeypatch):
    monkeypatch.setattr(assembly, "available_tier", lambda: (Tier.NAMESPACE, []))
    assert assembly.choose_tier("auto", trusted=True) is Tier.NAMESPACE
    assert assembly.choose_tier("landlock", trusted=False) is Tier.LANDLOCK


def test_another_grader_is_named(run, handed_in, tmp_path):
    with another_program(tmp_path / "out") as process:
        for given in (["grade", handed_in(ann="x")], ["gradebook", "report"]):
            code, output, errors = run(*given, "--out", tmp_path / "out")
            assert (code, output) == (2, "") and "is being written by " in errors
            assert f"process {process.pid} on " in errors and errors.count("\n") == 1


def test_a_gradebook_of_another_version_is_refused(run, handed_in, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE_NAME).write_bytes(b"no database " * 100)
    code, output, errors = run("grade", handed_in(ann="x"), "--out", tmp_path / "out")
    assert (code, output) == (2, "") and "is no gradebook: file is not a database" in errors


def test_a_folder_that_cannot_be_written_is_refused(run, handed_in, shared):  # noqa: F811
    folder = shared / "submitted"
    handed_in(ann="x").rename(folder)
    shared.chmod(0o555)
    with ordinary_user():
        code, output, errors = run("grade", folder, "--out", shared / "out")
    assert (code, output) == (2, "") and "--out must be a folder that can be written" in errors


def test_a_disk_that_fills_up_ends_with_3(run, handed_in, tmp_path, monkeypatch):
    from llmcourse.grading.records import reports

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.Path, "replace", full)
    code, _, errors = run("grade", handed_in(ann="x"), "--out", tmp_path / "out", "--quiet")
    assert code == 3 and errors == "error: [Errno 28] No space left on device\n"
    monkeypatch.undo()
    assert main(["gradebook", "report", "--out", str(tmp_path / "out")]) == 0
    assert points(tmp_path / "out") == {"ann": "5.0"}


SLOW = """
import sys, threading, time
from llmcourse.cli import main
from llmcourse.grading import assembly
from llmcourse.grading.sandbox.policy import Tier
from tests.grading.grades import FakeLab, graded, no_nursery

def slow(submission, *others):
    sys.stdout.write("begun\\n")  # in one piece: two threads say it
    sys.stdout.flush()
    waits = threading.Thread(target=time.sleep, args=(float(sys.argv[1]),), daemon=False)
    waits.start()  # a program that ends as usual waits for it
    waits.join()
    return graded(submission, *others)

assembly.available_tier = lambda: (Tier.LANDLOCK, [])
assembly.known_labs = lambda: ["01_decoding"]
assembly.judged_lab = FakeLab
assembly.judge = lambda tier, lab: {"grade": slow, "nursery": no_nursery, "version": "v1"}
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("seconds", "signals"), [(0.3, 1), (100, 2)])
def test_ctrl_c_says_how_to_go_on_and_ends_with_130(handed_in, tmp_path, seconds, signals):
    given = [
        "grade",
        handed_in(**{f"s{n}": "x" for n in range(30)}),
        "--out",
        tmp_path / "out",
        "--jobs",
        "2",
    ]
    command = [sys.executable, "-c", SLOW, str(seconds), *map(str, given)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    process.send_signal(signal.SIGINT)
    if signals == 2:
        assert process.stderr.readline().startswith("stopping: ")
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "interrupted" in errors.splitlines()[-1] and "the same command again to go on" in errors
    with Gradebook(tmp_path / "out" / FILE_NAME) as book:
        assert len(book.rows(LAB)) == (2 if signals == 1 else 0)
    assert (tmp_path / "out" / "index.html").exists() == (signals == 1)


@pytest.fixture
def adjust(run, handed_in, tmp_path):
    out = tmp_path / "out"
    run("grade", handed_in(ann="x", bob="y"), "--out", out, "--quiet")
    return partial(run, "gradebook", "adjust", "--out", out)


def test_points_are_set_changed_and_taken_back(adjust, run, handed_in, tmp_path):
    out = tmp_path / "out"
    code, output, _ = adjust("ann", "4", "--exercise", "01.beam", "--reason", "a slip")
    assert (code, output) == (0, f"ann, {LAB}: 5 of 10 → 9 of 10\n")
    assert adjust("ann", "-1", "--reason", "late")[1].endswith("9 of 10 → 8 of 10\n")
    assert adjust("ann", "+0.5", "--reason", "nice")[1].endswith("8 of 10 → 8.5 of 10\n")
    assert points(out) == {"ann": "8.5", "bob": "5.0"}
    assert "late" in (out / "feedback/ann.html").read_text(encoding="utf-8")
    run("grade", handed_in(), "--out", out, "--regrade")
    assert points(out) == {"ann": "8.5", "bob": "5.0"}
    assert adjust("ann", "none", "--reason", "was right")[1].endswith("8.5 of 10 → 9 of 10\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["anna", "1", "--reason", "x"], "STUDENT must be in the gradebook, got 'anna'; did you mean ann?"),
        (["张伟", "1", "--reason", "x"], "STUDENT must be in the gradebook, got '张伟'; grades.json has"),
        (
            ["ann", "many", "--reason", "x"],
            "POINTS must be a number, +1 or -1 for a change, or none, got 'many'",
        ),
        (["ann", "nan", "--reason", "x"], "POINTS must be a number"),
        (["ann", "", "--reason", "x"], "POINTS must be a number"),
        (["ann", "1", "--reason", " "], "--reason must say why the points change, got nothing"),
        (
            ["ann", "1", "--reason", "x", "--exercise", "01.no"],
            "--exercise must be one of 01.softmax, 01.top_p",
        ),
        (["ann", "1", "--reason", "x", "--lab", "02"], "STUDENT must be in the gradebook, got 'ann'; "),
    ],
)
def test_bad_corrections_are_refused(adjust, tmp_path, given, message):
    code, output, errors = adjust(*given)
    assert (code, output) == (2, "") and errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert points(tmp_path / "out") == {"ann": "5.0", "bob": "5.0"}


def test_a_student_of_two_labs_needs_the_lab(adjust, tmp_path):
    with Gradebook(tmp_path / "out" / FILE_NAME) as book:
        book.record(result(lab="02_flash"), "v1")
    errors = adjust("ann", "1", "--reason", "x")[2]
    assert errors == f"error: --lab must say which lab of ann, one of {LAB}, 02_flash, got none\n"
    assert adjust("ann", "1", "--reason", "x", "--lab", "02_flash")[1] == "ann, 02_flash: 5 of 10 → 1 of 10\n"


def test_inputs_can_be_hidden_and_stay_so_until_they_are_shown(run, grader, handed_in, tmp_path):
    failed = question("01.top_p", "fail", "one row: no", finding=FOUND)
    grader["grade"] = lambda handed, *_: result(handed.student, handed.sha256, questions=(failed,))
    out, shown = tmp_path / "out", []
    for command in (
        ["grade", handed_in(ann="x"), "--inputs", "hide"],
        ["grade", handed_in(bob="y")],
        ["gradebook", "adjust", "ann", "+1", "--reason", "right idea"],
        ["gradebook", "report", "--inputs", "show"],
        ["grade", handed_in(eve="z")],
        ["gradebook", "report", "--inputs", "hide"],
    ):
        run(*command, "--out", out)
        shown.append(FOUND.given[0] in (out / "feedback" / "ann.html").read_text(encoding="utf-8"))
    assert shown == [False, False, False, True, True, False]


def test_reports_are_made_again(run, adjust, tmp_path):
    out = tmp_path / "out"
    (out / "grades.csv").unlink()
    assert run("gradebook", "report", "--out", out)[0] == 0 and points(out) == {"ann": "5.0", "bob": "5.0"}
    code, _, errors = run("gradebook", "report", "--out", tmp_path)
    assert code == 2 and "holds no gradebook.sqlite; name the folder that was graded into" in errors


def solution(text="x = 1"):
    """A solution notebook with one exercise."""
    cells = [
        cell("01-setup", "import math", locked=True),
        cell(
            "01-top_p",
            f"# Exercise 01.top_p\ndef f():\n    ### BEGIN SOLUTION\n    {text}\n    ### END SOLUTION",
        ),
    ]
    cells[1]["metadata"]["nbgrader"]["solution"] = True
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def cell(name, source, **settings):
    meta = {"nbgrader": {"grade_id": name, "schema_version": 3, **settings}}
    base = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": meta}
    return base | {"id": name, "source": source}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course's folders, with a solution and no lab yet."""
    for name in ("labs", "solutions"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(assembly, name.upper(), tmp_path / name)
    (tmp_path / "solutions" / f"{LAB}.ipynb").write_text(json.dumps(solution("the_answer = 42")))
    return tmp_path


def test_a_released_lab_has_no_solution_and_is_not_overwritten(run, course):
    target = course / "to" / "students" / f"{LAB}.ipynb"
    release = partial(run, "labs", "release", LAB, "--to", target.parent)
    assert release() == (0, f"{target}\n", "")
    released = target.read_bytes()
    assert b"Exercise 01.top_p" in released and b"the_answer" not in released
    assert release()[0] == 0  # the same again changes nothing
    target.write_text("a student's work")
    code, output, errors = release()
    assert (code, output) == (2, "") and "was changed; add --force to overwrite it" in errors
    assert target.read_text() == "a student's work"
    assert release("--force")[0] == 0 and target.read_bytes() == released
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_an_unknown_lab_cannot_be_released(run, course):
    code, _, errors = run("labs", "release", "../x", "--to", course / "to")
    assert code == 2
    assert errors == f"error: LAB must be one that has a solution ({LAB}), got '../x'\n"
    assert not (course / "to").exists()


def test_the_status_of_labs_says_what_is_stale(run, course, monkeypatch):
    monkeypatch.setattr(catalogue, "LABS", {LAB: catalogue.LABS[LAB]})
    code, output, _ = run("labs", "status")
    assert code == 1 and output.startswith(f"{LAB}: ")
    assert re.search(r"  01\.top_p +\d+ points +\d+ min  level [1-5]  \S", output)
    assert f"  ✗ {LAB}.ipynb is not made; run `make labs`" in output
    assert run("labs", "release", LAB, "--to", course / "labs")[0] == 0
    code, output, _ = run("labs", "status")
    assert code == 0 and "  ✓ the student version is up to date" in output
    (course / "solutions" / f"{LAB}.ipynb").unlink()
    code, output, _ = run("labs", "status")
    assert code == 1 and f"solutions/{LAB}.ipynb is not there; run `make labs`" in output
    (course / "solutions").rmdir()
    code, output, _ = run("labs", "status")
    assert code == 0 and not re.search("[✓✗]", output), "a student's copy of the course makes no labs"


def test_the_doctor_shows_the_isolation_and_its_probes(run, monkeypatch):
    monkeypatch.setattr(policy, "available_tier", lambda: (Tier.LANDLOCK, ["no bubblewrap"]))
    found = [Probe("read the home folder", True, "EACCES")]
    monkeypatch.setattr(probes, "run_probes", lambda tier: found if tier is Tier.LANDLOCK else [])
    code, output, _ = run("doctor", "--grading")
    assert code == 0 and output.endswith("Students' code can be graded here.\n")
    for part in (
        "✓ tier",
        "landlock",
        "· a second wall",
        "no bubblewrap",
        "✓ read the home folder",
        "EACCES",
    ):
        assert part in output
    found.append(Probe("connect", False, "it worked"))
    code, output, _ = run("doctor", "--grading", "--json")
    assert code == 1 and json.loads(output)["findings"][-1]["value"] == "it worked"


def test_the_doctor_finds_no_isolation(run, monkeypatch):
    monkeypatch.setattr(policy, "available_tier", lambda: (Tier.NONE, ["this is Plan 9"]))
    code, output, _ = run("doctor", "--grading")
    assert code == 1 and "✗ tier  none: this is Plan 9" in output and "→ " in output


def test_a_sandbox_that_breaks_is_a_finding(run, monkeypatch):
    def broken():
        raise OSError("odd kernel")

    monkeypatch.setattr(policy, "available_tier", broken)
    code, output, _ = run("doctor", "--grading")
    assert code == 1 and "OSError: odd kernel" in output
    assert doctor.examine_grading().ok is False


@pytest.mark.parametrize("command", [["grade"], ["gradebook", "adjust"], ["labs", "release"], []])
def test_help_answers_without_loading_pytorch(command):
    code = (
        "import sys; from llmcourse.cli import main\n"
        f"try: main([*{command!r}, '--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'sqlite3' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: llmcourse") and output.endswith("False False\n")


def test_exit_codes_are_documented(capsys):
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.endswith(commands.CODES)
    assert set(re.findall(r"\b(\d+) [a-z]", commands.CODES)) == {"0", "1", "2", "3", "130"}
