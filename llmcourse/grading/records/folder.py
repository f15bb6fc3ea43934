"""The folder that grades are kept in: one that can be written, by one grader at a time."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook, GradebookError

LOCK_NAME = ".grading.lock"
FREE_BYTES = 32 * 2**20  # a gradebook and pages of 1,000 students are smaller


class FolderBusyError(ValueError):
    """Another program is writing grades there; the message says who."""


@contextmanager
def opened(folder: Path, new: bool = True) -> Iterator[Gradebook]:
    """The gradebook of a folder that is this program's alone until it is closed.

    Args:
        new: make the folder and the gradebook where there is none.

    Raises:
        GradebookError: there is no gradebook, or none of this version.
        FolderBusyError: another program is at work there.
        ValueError: the folder cannot be written or has no space left.
    """
    if not new and not (folder / FILE_NAME).is_file():
        raise GradebookError(f"{folder} holds no {FILE_NAME}; name the folder that was graded into as --out")
    prepare(folder)
    with locked(folder), Gradebook(folder / FILE_NAME) as gradebook:
        yield gradebook


def prepare(folder: Path) -> None:
    """Makes a folder for its owner alone, and writes to it once, so that a batch does not find out late.

    Raises:
        ValueError: it cannot be made or written, or has less than 32 MiB left.
    """
    probe = folder / ".grading.probe"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        probe.write_bytes(bytes(2**16))
    except OSError as error:
        remedy = "choose another --out, or mend its rights"
        raise ValueError(
            f"--out must be a folder that can be written, got {folder}: {error.strerror}; {remedy}"
        ) from None
    finally:
        with suppress(OSError):
            probe.unlink()
    if free < FREE_BYTES:
        raise ValueError(
            f"--out must have {FREE_BYTES / 2**20:.0f} MiB left on its disk, got {free / 2**20:.0f} MiB "
            f"at {folder}; free some space or choose another --out"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock that the system lets go of when this program ends, however it ends.

    Raises:
        FolderBusyError: another program holds it.
    """
    import fcntl  # there is none on Windows, where nothing is graded

    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusyError(
                f"{folder} is being written by {_who(descriptor)}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise ValueError(
                f"--out must be on a disk that has locks, got {folder}: {error.strerror}; choose a local disk"
            ) from None
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%H:%M}"}
        with suppress(KeyError, OSError):  # an account without a name
            about["user"] = getpass.getuser()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _who(descriptor: int) -> str:
    """What the holder of the lock has said of itself."""
    try:
        about = json.loads(os.pread(descriptor, 1000, 0))
        who = f"process {about['pid']} on {about['host']}, since {about['since']}"
        return f"{about['user']} ({who})" if "user" in about else who
    except (ValueError, KeyError, TypeError):
        return "another program"
