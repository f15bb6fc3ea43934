"""Every student is there once, whatever they handed in and however it was exported; nothing is trusted."""

import hashlib
import os
import socket
import tracemalloc

import pytest

from llmcourse.grading.intake import files
from llmcourse.grading.intake.files import Unreadable, read_file, walk
from llmcourse.grading.intake.identity import student_id
from llmcourse.grading.intake.submissions import Submission, collect
from tests.grading.handed_in import LAB_NAME, book, cell, entry, zipped

MOODLE = "_assignsubmission_file_"


def notebook(text="x = 1") -> bytes:
    return book(cell(text))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "handed"
    made.mkdir()
    return made


def fill(folder, contents: dict):
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def taken(path, lab=LAB_NAME) -> dict:
    """What can be graded, by student; read once more, as the judge does."""
    return {s.student: s.read() for s in collect(path, lab) if s.problem is None}


def rejected(path, lab=LAB_NAME) -> dict:
    found = {s.student: s.problem for s in collect(path, lab) if s.problem is not None}
    for student, problem in found.items():
        assert student_id(student) == student
        assert problem.isprintable() and len(problem) < 700
    return found


A, B, C = notebook("a"), notebook("b"), notebook("c")
LAYOUTS = {
    "a folder of notebooks": ("{s}.ipynb", "{s}_01_decoding.ipynb", "01_decoding-{s} (1).ipynb"),
    "a folder of folders": ("{s}/01_decoding.ipynb", "{s}/homework.ipynb", "{s}/deep/01_decoding.ipynb"),
    "nbgrader": ("submitted/{s}/01_decoding/01_decoding.ipynb",) * 3,
    "nbgrader, from the course's folder": ("{s}/01_decoding/01_decoding.ipynb",) * 3,
    "Moodle": (
        "{s}" + MOODLE + "/x.ipynb",
        "{s}" + MOODLE + "/01_decoding.ipynb",
        "{s}" + MOODLE + "x.ipynb",
    ),
    "a wrapped folder": ("all/batch/{s}.ipynb",) * 3,
    "endings of browsers": ("{s}.ipynb.txt", "{s}.ipynb.json", "{s}.IPYNB"),
}
STUDENTS = ("Ann Lee_1234567", "O'Neil, José_12", "李 明_345")
LAID_OUT = {
    layout: {
        form.format(s=student): data for form, student, data in zip(forms, STUDENTS, (A, B, C), strict=True)
    }
    for layout, forms in LAYOUTS.items()
}
EXPECTED = dict(zip(STUDENTS, (A, B, C), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_systems_export_is_understood(folder, layout):
    assert taken(fill(folder, LAID_OUT[layout])) == EXPECTED


@pytest.mark.parametrize("wrapper", ["", "export/"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_zip_of_it_is_the_same(folder, layout, wrapper):
    path = folder / "all.zip"
    path.write_bytes(zipped({wrapper + name: data for name, data in LAID_OUT[layout].items()}))
    assert taken(path) == EXPECTED


@pytest.mark.parametrize("outer_zip", [False, True])
def test_zips_in_place_of_notebooks(folder, outer_zip):
    contents = {
        f"Ann Lee_1{MOODLE}/work.zip": zipped({"work/01_decoding.ipynb": A, "work/scratch.ipynb": C}),
        f"Bo_2{MOODLE}/x.zip": zipped({"whatever.ipynb": B, "__MACOSX/._whatever.ipynb": "?"}),
        f"Cy_3{MOODLE}/x.ipynb": C,
    }
    if outer_zip:
        (folder / "all.zip").write_bytes(zipped(contents))
        folder = folder / "all.zip"
    else:
        fill(folder, contents)
    assert taken(folder) == {"Ann Lee_1": A, "Bo_2": B, "Cy_3": C}


def test_zips_by_themselves_and_one_level_only(folder):
    deep = zipped({"inner.zip": zipped({"x.ipynb": A})})
    many = zipped({"x.ipynb": A, "y.ipynb": B})
    fill(
        folder, {"ann.zip": zipped({"01_decoding.ipynb": A}), "bo.zip": deep, "cy.zip": many, "di.zip": "PK"}
    )
    assert taken(folder) == {"ann": A}
    problems = rejected(folder)
    assert "archives in archives are not opened" in problems["bo"]
    assert "archive of 2 notebooks" in problems["cy"] and "di.zip is damaged" in problems["di"]


def test_one_notebook(folder):
    fill(folder, {"alice.ipynb": A, "bob/01_decoding.ipynb": B, "carl/01_decoding/01_decoding.ipynb": C})
    assert taken(folder / "alice.ipynb") == {"alice": A}
    assert taken(str(folder / "bob" / "01_decoding.ipynb")) == {"bob": B}
    assert taken(folder / "bob") == {"bob": B}
    assert taken(folder / "carl/01_decoding/01_decoding.ipynb") == {"carl": C}
    (folder / "dora.zip").write_bytes(zipped({"01_decoding.ipynb": A}))
    assert taken(folder / "dora.zip") == {"dora": A}


def test_one_notebook_seen_from_its_own_folder(folder, monkeypatch):
    fill(folder, {"bob/01_decoding.ipynb": B})
    monkeypatch.chdir(folder / "bob")
    assert taken("01_decoding.ipynb") == taken(".") == {"bob": B}


def test_submissions_are_sorted_and_say_where_they_lie(folder):
    fill(folder, {"b.ipynb": B, "a/01_decoding.ipynb": A, "é.ipynb": C, "Z.ipynb": A})
    found = collect(folder, LAB_NAME)
    assert [(s.student, s.path_name) for s in found] == [
        ("Z", "Z.ipynb"),
        ("a", "a/01_decoding.ipynb"),
        ("b", "b.ipynb"),
        ("é", "é.ipynb"),
    ]
    assert [s.sha256 for s in found] == [hashlib.sha256(data).hexdigest() for data in (A, A, B, C)]
    assert found == collect(folder, LAB_NAME)


def test_names_are_composed(folder):
    fill(folder, {"jose\u0301.ipynb": A})
    assert taken(folder) == {"josé": A}


@pytest.mark.parametrize(
    "name", ["=1+1", "-rf", "'; DROP TABLE x", "a\u202eb", "a\x1b[31m", "<b>", "x" * 101, ".x", "a\nb"]
)
def test_a_name_that_is_no_id_is_rejected_and_the_others_go_on(folder, name):
    fill(folder, {f"{name}.ipynb": A, "bob.ipynb": B})
    assert taken(folder) == {"bob": B}
    ((student, problem),) = rejected(folder).items()
    assert student.startswith("rejected-") and "student id" in problem


def test_a_name_that_is_no_text_is_rejected(folder):
    fill(folder, {"bob.ipynb": B})
    try:
        (folder / os.fsdecode(b"\xff\xfe.ipynb")).write_bytes(A)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert len(rejected(folder)) == 1 and taken(folder) == {"bob": B}


@pytest.mark.parametrize(
    "second", ["ann/01_decoding.ipynb", "ann_01_decoding.ipynb", "ANN.ipynb", "ann (1).ipynb", "ann.zip"]
)
def test_two_files_under_one_id_are_both_rejected_unless_they_are_equal(folder, second):
    wrap = (lambda data: zipped({"x.ipynb": data})) if second.endswith("zip") else bytes
    fill(folder, {"ann.ipynb": A, second: wrap(B), "bob.ipynb": B})
    assert taken(folder) == {"bob": B}
    ((_, problem),) = rejected(folder).items()
    assert "2 different files have the student id" in problem and "ann.ipynb" in problem and second in problem
    fill(folder, {second: wrap(A)})
    assert list(taken(folder).values()) == [A, B]
    (flag,) = collect(folder, LAB_NAME)[0].flags
    assert "handed in 2 times, byte for byte" in flag


def test_of_several_notebooks_in_a_students_folder_the_labs_own_counts(folder):
    fill(folder, {"ann/01_decoding.ipynb": A, "ann/scratch.ipynb": B, "bo/x.ipynb": A, "bo/y.ipynb": B})
    assert taken(folder) == {"ann": A}
    assert collect(folder, LAB_NAME)[0].flags == ("handed in with ann/scratch.ipynb: not graded",)
    assert "2 different files" in rejected(folder)["bo"]
    (folder / "all.zip").write_bytes(zipped({"ann/01_decoding.ipynb": A, "ann/scratch.ipynb": B}))
    assert taken(folder / "all.zip") == {"ann": A}


def test_other_labs_of_nbgrader_are_left_alone(folder):
    for lab in (LAB_NAME, "02_serving"):
        fill(folder, {f"submitted/ann/{lab}/{lab}.ipynb": A, f"submitted/ann/{lab}/timestamp.txt": "now"})
    fill(folder, {"submitted/bob/02_serving/02_serving.ipynb": B})
    found = collect(folder, LAB_NAME)
    assert [(s.student, s.path_name, s.problem) for s in found] == [
        ("ann", "submitted/ann/01_decoding/01_decoding.ipynb", None)
    ]
    assert found[0].flags == ()


def symlink(folder):
    (folder / "secret").write_bytes(A)
    (folder / "eve.ipynb").symlink_to(folder / "secret")


def dangling(folder):
    (folder / "eve.ipynb").symlink_to("/nowhere")


def linked_folder(folder):
    fill(folder.parent, {"elsewhere/01_decoding.ipynb": A})
    (folder / "eve").symlink_to(folder.parent / "elsewhere")


def hard_link(folder):
    (folder.parent / "secret").write_bytes(A)
    os.link(folder.parent / "secret", folder / "eve.ipynb")


def pipe(folder):
    os.mkfifo(folder / "eve.ipynb")


def listening(folder):
    with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the path of a socket must be short
        made.bind("eve.ipynb")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (symlink, "symbolic link"),
        (dangling, "symbolic link"),
        (linked_folder, "symbolic link"),
        (hard_link, "hard link (2 names"),
        (pipe, "no ordinary file"),
        (listening, "no ordinary file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_ordinary_file_is_rejected(folder, make, words):
    fill(folder, {"bob.ipynb": B})
    make(folder)
    assert taken(folder) == {"bob": B}
    problems = rejected(folder)
    assert list(problems) == ["eve"] and words in problems["eve"] and problems["eve"].startswith("eve")


def test_a_folder_named_like_a_notebook_holds_what_it_holds(folder):
    fill(folder, {"eve.ipynb/01_decoding.ipynb": A, "bob.ipynb": B})
    assert taken(folder) == {"eve.ipynb": A, "bob": B}


def test_a_link_named_on_the_command_line_is_no_submission_but_a_folder_is(folder):
    fill(folder, {"in/bob.ipynb": B})
    (folder / "link.ipynb").symlink_to(folder / "in/bob.ipynb")
    assert "symbolic link" in rejected(folder / "link.ipynb")["link"]
    (folder / "link").symlink_to(folder / "in")
    assert taken(folder / "link") == {"bob": B}


def test_no_link_on_the_way_is_followed(folder):
    fill(folder, {"real/x.ipynb": A})
    (folder / "link").symlink_to(folder / "real")
    assert read_file(folder, ("real", "x.ipynb")) == A
    with pytest.raises(Unreadable):
        read_file(folder, ("link", "x.ipynb"))


def test_devices_are_not_even_opened(monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: opened.append(path) or real(path, *rest, **named)
    )
    with pytest.raises(Unreadable, match="no ordinary file"):
        read_file(files.Path("/dev"), ("null",))
    assert [str(path) for path in opened] == ["/dev"]


def test_what_takes_a_files_place_while_it_is_opened_is_noticed(folder, monkeypatch):
    fill(folder, {"eve.ipynb": A, "other": B})
    real = os.open

    def swap(path, *rest, **named):
        if path == "eve.ipynb":
            os.replace(folder / "other", folder / "eve.ipynb")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(Unreadable, match="changed while"):
        read_file(folder, ("eve.ipynb",))


def test_a_file_that_grows_while_it_is_read_is_noticed(folder, monkeypatch):
    fill(folder, {"eve.ipynb": A})
    real, calls = os.fstat, []

    def grow(number):
        if len(calls) == 1:
            with (folder / "eve.ipynb").open("ab") as file:
                file.write(b" ")
        calls.append(number)
        return real(number)

    monkeypatch.setattr(files.os, "fstat", grow)
    with pytest.raises(Unreadable, match="changed while"):
        read_file(folder, ("eve.ipynb",))


def test_large_and_forbidden_files_are_rejected(folder, monkeypatch):
    fill(folder, {"eve.ipynb": "", "bob.ipynb": B, "mallory.ipynb": A})
    os.truncate(folder / "eve.ipynb", 2**30)
    real = os.open

    def forbid(path, *rest, **named):
        if path == "mallory.ipynb":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", forbid)
    problems = rejected(folder)
    assert problems == {
        "eve": "eve.ipynb is 1024.0 MiB large; at most 20 MiB are read",
        "mallory": "mallory.ipynb cannot be read: Permission denied",
    }
    assert taken(folder) == {"bob": B}


def test_files_and_folders_are_bounded(folder, monkeypatch):
    deep = "/".join(["d"] * 17)
    fill(folder, {f"{deep}/x.ipynb": A, "bob.ipynb": B})
    assert taken(folder) == {"bob": B}
    assert any(item.problem and "deeper" in item.problem for item in walk(folder))
    monkeypatch.setattr(files, "MAX_FILES", 1)
    with pytest.raises(ValueError, match="more than 1 files"):
        collect(folder, LAB_NAME)


TRICKS = {
    "climbs": (lambda: zipped({entry("../../bob.ipynb"): A}), "climbs out"),
    "absolute": (lambda: zipped({entry("/tmp/x.ipynb"): A}), "absolute path"),
    "drive": (lambda: zipped({entry("C:\\x.ipynb"): A}), "absolute path"),
    "link": (lambda: zipped({entry("x.ipynb", 0o120777): "/etc/passwd"}), "link or device"),
    "collision": (lambda: zipped({"a/X.ipynb": A, "a/x.ipynb": B}), "but for its case"),
    "bomb": (lambda: zipped({"x.ipynb": A, "zeros": bytes(3 * 2**20)}), "zip bomb"),
    "too many": (lambda: zipped({str(number): "" for number in range(2_001)}), "more than 2,000 files"),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("outer_zip", [False, True])
def test_a_students_archive_with_a_trick_in_it_is_rejected(folder, trick, outer_zip):
    make, words = TRICKS[trick]
    contents = {"eve.zip": make(), "bob.ipynb": B}
    path = folder / "all.zip" if outer_zip else fill(folder, contents)
    if outer_zip:
        path.write_bytes(zipped(contents))
    before = sorted(folder.parent.rglob("*"))
    assert taken(path) == {"bob": B}
    problems = rejected(path)
    assert list(problems) == ["eve"] and words in problems["eve"]
    assert sorted(folder.parent.rglob("*")) == before


def test_a_trick_in_an_archive_of_many_rejects_only_itself(folder):
    contents = {
        entry("../../bob.ipynb"): A,
        entry("../evil.py"): "",
        entry("eve.ipynb", 0o120777): "/x",
        "bob.ipynb": B,
    }
    (folder / "all.zip").write_bytes(zipped(contents | {"cy.ipynb": C, "CY.ipynb": C}))
    assert taken(folder / "all.zip") == {"bob": B}
    problems = rejected(folder / "all.zip")
    assert len(problems) == 4 and "link or device" in problems["eve"]
    assert sum(student.startswith("rejected-") for student in problems) == 2


def test_companions_are_named_and_nothing_else_is_done_with_them(folder):
    junk = {".ipynb_checkpoints/01_decoding-checkpoint.ipynb": B, "__MACOSX/._01_decoding.ipynb": "?"}
    junk |= {"._01_decoding.ipynb": "?", ".DS_Store": "?", "__pycache__/x.pyc": "?", "notes/figure.png": "?"}
    harm = {
        "torch.py": "1",
        "conftest.py": "1",
        "deep/sitecustomize.py": "1",
        "x.pth": "1",
        "weights.pt": "1",
    }
    fill(folder / "eve", {"01_decoding.ipynb": A} | junk | harm)
    fill(folder, {"bob/01_decoding.ipynb": B, "README.md": "?", "stray.py": "1"})
    bob, eve = collect(folder, LAB_NAME)
    assert (bob.flags, bob.read(), eve.read()) == ((), B, A)
    (flag,) = eve.flags
    assert all(name in flag for name in harm) and "png" not in flag and "DS_Store" not in flag
    nested = zipped({"01_decoding.ipynb": A, "torch.py": "1"})
    (folder / "fay.zip").write_bytes(nested)
    assert collect(folder, LAB_NAME)[-1].flags == ("came with torch.py: not used",)


def test_a_student_who_handed_in_no_notebook_is_not_passed_over(folder):
    fill(
        folder,
        {f"Ann_1{MOODLE}/x.ipynb": A, f"Bo_2{MOODLE}/report.pdf": "?", f"Cy_3{MOODLE}report.docx": "?"},
    )
    fill(folder, {"dee/thoughts/essay.txt": "?"})
    assert taken(folder) == {"Ann_1": A}
    problems = rejected(folder)
    assert set(problems) == {"Bo_2", "Cy_3", "dee"}
    assert problems["Bo_2"] == f"Bo_2{MOODLE}: there is no notebook, only report.pdf"


def test_a_folder_beside_flat_notebooks_is_nobody(folder):
    fill(folder, {"ann.ipynb": A, "bob.ipynb": B, "images/figure.png": "?"})
    assert [s.student for s in collect(folder, LAB_NAME)] == ["ann", "bob"]


def test_nothing_to_grade_is_said_in_one_line(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    fill(folder, {"notes.txt": "?", "all.zip": zipped({"notes.txt": "?"}), "broken.zip": "PK"})
    (folder / "pipe.zip").mkdir()
    for path, words in {
        empty: "none in",
        folder / "all.zip": "none in",
        folder / "missing": "nothing is there",
        folder / "notes.txt": "a folder, a .zip or an .ipynb",
        folder / "broken.zip": "damaged",
        folder / ("x" * 5000): "must be a path",
        "a\0b": "must be",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            collect(path, LAB_NAME)
        assert str(caught.value).isprintable()


def test_a_pipe_named_as_an_archive_is_not_waited_for(folder):
    os.mkfifo(folder / "x.zip")
    with pytest.raises(ValueError, match=r"a folder, a \.zip"):
        collect(folder / "x.zip", LAB_NAME)


def test_a_submission_that_changes_after_it_was_collected_is_noticed(folder):
    fill(folder, {"ann.ipynb": A})
    (submission,) = collect(folder, LAB_NAME)
    fill(folder, {"ann.ipynb": B})
    with pytest.raises(Unreadable, match="has changed"):
        submission.read()
    (folder / "ann.ipynb").unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        submission.read()


def test_a_rejected_submission_cannot_be_read(folder):
    fill(folder, {"=x.ipynb": A})
    with pytest.raises(Unreadable, match="student id"):
        collect(folder, LAB_NAME)[0].read()


def test_a_submission_in_memory():
    submission = Submission.of("ann", A)
    assert submission.read() == A and submission.path_name == "ann.ipynb" and submission.problem is None


def test_no_more_than_one_file_is_held(folder, monkeypatch):
    fill(folder, {f"s{number}.ipynb": notebook(f"x = {number}") + b" " * 2**20 for number in range(8)})
    fill(
        folder,
        {f"z{number}.zip": zipped({"x.ipynb": notebook("z") + bytes([32 + number])}) for number in range(3)},
    )
    tracemalloc.start()
    found = collect(folder, LAB_NAME)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 11 and held < 2**20 and peak < 4 * 2**20
