"""The folder for grades: writable or refused at the start, and one program's at a time."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from llmcourse.grading.records import folder
from llmcourse.grading.records.folder import FolderBusyError, opened, prepare
from llmcourse.grading.records.gradebook import FILE_NAME, GradebookError
from tests.grading.grades import LAB, result

HOLDER = """
import pathlib, sys
from llmcourse.grading.records.folder import opened
with opened(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_program(out):
    """One that holds the folder; yields it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], **pipes) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def ordinary_user():
    """Root may write anywhere, so tests of what may not be written run as nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that every user can reach, unlike pytest's."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o777)
    yield made
    made.chmod(0o777)
    shutil.rmtree(made)


def test_a_new_folder_is_its_owner_s_alone(tmp_path):
    with opened(tmp_path / "new" / "deep") as book:
        book.record(result(), "v1")
    assert stat.S_IMODE((tmp_path / "new" / "deep").stat().st_mode) == 0o700
    with opened(tmp_path / "new" / "deep") as book:
        assert len(book.rows(LAB)) == 1


def test_a_folder_without_a_gradebook_is_refused_where_one_is_needed(tmp_path):
    with (
        pytest.raises(GradebookError, match=r"holds no gradebook.sqlite; name the folder"),
        opened(tmp_path, False),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_two_graders_do_not_share_a_folder(tmp_path):
    with another_program(tmp_path) as process:
        with pytest.raises(FolderBusyError) as refusal, opened(tmp_path):
            pass
        said = str(refusal.value)
        assert f"(process {process.pid} on " in said and "; wait for it, or choose another --out" in said
    with opened(tmp_path) as book:  # it was killed, and holds nothing any more
        assert book.rows(LAB) == []


def test_a_lock_that_says_nothing_still_holds(tmp_path):
    with another_program(tmp_path):
        (tmp_path / folder.LOCK_NAME).write_text("[]")
        with pytest.raises(FolderBusyError, match="is being written by another program"), opened(tmp_path):
            pass


def test_two_threads_do_not_share_a_folder_either(tmp_path):
    with opened(tmp_path), pytest.raises(FolderBusyError, match=f"process {os.getpid()}"), opened(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(shared):
    shared.chmod(0o555)
    with ordinary_user(), pytest.raises(ValueError, match=r"--out must be a folder .* Permission denied"):
        prepare(shared)
    with ordinary_user(), pytest.raises(ValueError, match=r"--out must be a folder .* Permission denied"):
        prepare(shared / "new")
    assert os.listdir(shared) == []


def test_a_gradebook_that_cannot_be_written_is_refused(shared):
    with opened(shared):
        pass
    (shared / folder.LOCK_NAME).chmod(0o666)
    (shared / FILE_NAME).chmod(0o444)
    refused = pytest.raises(GradebookError, match="cannot be written: Permission denied; choose another")
    if os.geteuid() == 0:
        with ordinary_user(), refused, opened(shared):
            pass
    else:
        with opened(shared) as book:  # one's own rights are mended
            assert book.rows(LAB) == []


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "a file").touch()
    with pytest.raises(ValueError, match="--out must be a folder that can be written"):
        prepare(tmp_path / name)


def test_a_full_disk_is_found_at_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage(2**40, 2**40, 3 * 2**20))
    with pytest.raises(ValueError, match="--out must have 32 MiB left on its disk, got 3 MiB"):
        prepare(tmp_path)


def test_a_quota_is_found_at_the_start(tmp_path, monkeypatch):
    def over_quota(path, data):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(folder.Path, "write_bytes", over_quota)
    with pytest.raises(ValueError, match="Disk quota exceeded; choose another --out"):
        prepare(tmp_path)


def test_the_probe_is_taken_away(tmp_path):
    prepare(tmp_path)
    assert os.listdir(tmp_path) == []
