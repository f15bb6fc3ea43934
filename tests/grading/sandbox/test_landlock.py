"""Landlock's rights, version by version, and what a ruleset leaves of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcourse.grading.sandbox import kernel, landlock
from llmcourse.grading.sandbox.landlock import READ, WRITE, Right, Ruleset, handled
from llmcourse.grading.sandbox.trial import Trial


@pytest.mark.parametrize(
    ("version", "newest", "length"),
    [
        (1, Right.MAKE_SYM, 8),
        (2, Right.REFER, 8),
        (3, Right.TRUNCATE, 8),
        (4, Right.TRUNCATE, 16),
        (5, Right.IOCTL_DEV, 16),
        (6, Right.IOCTL_DEV, 24),
        (9, Right.IOCTL_DEV, 24),
    ],
)
def test_each_version_takes_away_all_that_it_knows(version, newest, length):
    rights, attributes = handled(version)
    assert rights == Right(newest * 2 - 1) and len(attributes) == length


def test_writing_makes_no_links_devices_or_sockets():
    made = {Right.MAKE_CHAR, Right.MAKE_SOCK, Right.MAKE_FIFO, Right.MAKE_BLOCK, Right.MAKE_SYM}
    assert not any(right & (WRITE | READ) for right in {*made, Right.EXECUTE, Right.IOCTL_DEV})


def confined(folder: Path, action) -> str:
    """What an action returns where the folder `read` may be read, `list` listed and `write` written."""

    def inside() -> str:
        with Ruleset() as rules:
            rules.allow([str(folder / "read"), str(folder / "not there")], READ)
            rules.allow([str(folder / "list")], Right.READ_DIR)
            rules.allow([str(folder / "write"), str(folder / "file")], WRITE)
            kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
            rules.restrict()
        return action()

    outcome = Trial(None, inside).outcome()
    return outcome.text if outcome.returned else f"{outcome.text}".split(":")[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("read", "list", "write", "none"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "book").write_text("text")
    (tmp_path / "file").write_text("text")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "mode", "result"),
    [
        ("read/below/book", "r", "text"),
        ("read/below/book", "r+", "PermissionError"),
        ("read/new", "x+", "PermissionError"),
        ("list/below/book", "r", "PermissionError"),
        ("none/below/book", "r", "PermissionError"),
        ("write/below/book", "r+", "text"),
        ("write/new", "x+", ""),
        ("file", "r+", "text"),
    ],
)
def test_files(folder, path, mode, result):
    def read() -> str:
        with (folder / path).open(mode) as file:
            return file.read()

    assert confined(folder, read) == result
    if result == "PermissionError":  # which is landlock's doing
        assert read() in ("", "text")


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("read/below", "book"),
        ("list/below", "book"),
        ("write/below", "book"),
        ("none/below", "PermissionError"),
        (".", "PermissionError"),
    ],
)
def test_listing(folder, name, result):
    assert confined(folder, lambda: ",".join(os.listdir(folder / name))) == result


def test_links_and_renames(folder):
    def move() -> str:
        os.rename(folder / "write/below/book", folder / "write/book")
        return "moved"

    assert confined(folder, move) == ("moved" if landlock.version() >= 2 else "OSError")
    assert confined(folder, lambda: os.link(folder / "read/below/book", folder / "write/x")) != ""
    assert not (folder / "write/x").exists()
    assert confined(folder, lambda: os.rename(folder / "read/below/book", folder / "write/x")) != ""
    assert (folder / "read/below/book").exists()
    assert confined(folder, lambda: os.symlink("/", folder / "write/x")) == "PermissionError"


def test_a_symbolic_link_leads_nowhere_new(folder):
    (folder / "write" / "link").symlink_to(folder / "none")
    assert confined(folder, lambda: (folder / "write/link/below/book").read_text()) == "PermissionError"
