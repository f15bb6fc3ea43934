"""What a process keeps of the disk by files without a name is seen, by whatever way it keeps them."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from llmcourse.grading.sandbox import privileges, trial
from llmcourse.grading.sandbox.held import held_bytes
from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.grading import ORDINARY_UID, REPOSITORY, tier_of
from tests.grading.sandbox.people import become_ordinary, needs_root

MIB = 1 << 20
SIZE, MOST = MIB, 5 * MIB  # of each file; what a file that cannot be looked at counts as
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def nameless(name: str = "file") -> int:
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(SIZE))
    os.fsync(fd)
    os.unlink(name)
    return fd


def map_alone(fd: int) -> None:
    """Maps one page of a file, and closes it; Python's own mmap would keep it open."""
    assert libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0) != 2**64 - 1
    os.close(fd)


def open_files() -> None:
    nameless(), nameless()


def open_twice() -> None:
    os.dup(nameless())


def mapped() -> None:
    map_alone(nameless("name with spaces\nand lines (deleted)"))
    map_alone(nameless())


def deep() -> None:
    for _ in range(30):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    map_alone(nameless())


def in_a_folder_that_is_gone() -> None:
    os.mkdir("folder")
    fd = nameless("folder/file")
    os.rmdir("folder")
    map_alone(fd)


def open_and_mapped() -> None:
    map_alone(os.dup(nameless()))
    map_alone(nameless())


def with_names() -> None:
    map_alone(os.open("file", os.O_RDWR | os.O_CREAT))
    os.open("file", os.O_RDWR)


def elsewhere() -> None:
    """What is no file of that folder: the machine's, or memory."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(SIZE))
        map_alone(os.dup(file.fileno()))
    mmap.mmap(-1, SIZE)[:] = bytes(SIZE)


def without_first_thread() -> None:
    def rest() -> None:
        time.sleep(0.05)
        nameless()
        Path("done").touch()
        time.sleep(60)

    threading.Thread(target=rest).start()
    exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    libc.syscall(ctypes.c_long(exit_thread), ctypes.c_long(0))


WAYS = {
    open_files: 2 * SIZE,
    open_twice: SIZE,
    mapped: 2 * MOST,
    deep: MOST,
    in_a_folder_that_is_gone: MOST,
    open_and_mapped: SIZE + MOST,
    with_names: 0,
    elsewhere: 0,
    without_first_thread: SIZE,
}


def held_by(way, folder: Path) -> int:
    """What is seen of a process that has gone this way."""
    os.chdir(folder)
    pid = os.fork()
    if pid == 0:
        try:
            way()
            os.close(os.open(folder / "done", os.O_CREAT))
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        while not (folder / "done").exists():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it has ended"
            time.sleep(0.005)
        return held_bytes(pid, str(folder), MOST)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_file_without_a_name_counts(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = held_by(way, tmp_path.resolve())
    assert WAYS[way] <= held < WAYS[way] + SIZE / 2  # a disk rounds up


def test_what_has_ended_holds_nothing(tmp_path):
    assert held_bytes(2**22 + 1, str(tmp_path), MOST) == 0
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert held_bytes(pid, str(tmp_path), MOST) == 0
    os.waitpid(pid, 0)


def in_a_fork(action) -> str:
    """What an action returns, or raises, in a process of its own."""
    outcome = trial.Trial(None, action, 20.0).outcome()
    return outcome.text


@needs_root
def test_a_process_of_somebody_else_is_not_looked_into():
    def look() -> str:
        become_ordinary()
        return str(held_bytes(os.getppid(), "/tmp", 1))

    assert in_a_fork(look).startswith("PermissionError")


def as_ordinary_user() -> str:
    become_ordinary()
    return trial.landlock_trouble()


def test_an_ordinary_user_sees_what_a_confined_process_holds(monkeypatch):
    """Even one that became so a moment ago, whose processes the kernel hides."""
    assert in_a_fork(as_ordinary_user) == ""


@needs_root
def test_blindness_is_noticed(monkeypatch):
    monkeypatch.setattr(privileges.kernel, "SET_DUMPABLE", 3)  # PR_GET_DUMPABLE
    assert "cannot be seen" in in_a_fork(as_ordinary_user)

    def without_the_right() -> str:
        with open("/proc/self/status") as file:
            (mine,) = (int(line.split()[1], 16) for line in file if line.startswith("CapPrm"))
        privileges.kernel.capset(mine & ~(1 << 19))
        return trial.landlock_trouble()

    monkeypatch.undo()
    assert "capability SYS_PTRACE" in in_a_fork(without_the_right)


HELD = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
kept = []
def files():
    for number in range(12):
        fd = os.open("a", os.O_RDWR | os.O_CREAT)
        os.write(fd, bytes(1 << 20))
        os.unlink("a")
        yield fd
def opened():
    kept.extend(files())
    time.sleep(9)
def mapped():
    for fd in files():
        kept.append(libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0))
        os.close(fd)
    time.sleep(9)
def reserved():
    fd = os.open("a", os.O_RDWR | os.O_CREAT)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    refused = libc.fallocate(fd, 1, 0, 1 << 30) == -1  # FALLOC_FL_KEEP_SIZE
    return refused and os.fstat(fd).st_blocks == 0
"""
ASK = f"""
import sys
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.sandbox.policy import Tier, available_tier
from llmcourse.grading.process.nursery import Nursery
small = Allowance(file_bytes=4 << 20, scratch_bytes=8 << 20)
for tier in (Tier.LANDLOCK, Tier.NAMESPACE):
    if tier > available_tier()[0]:
        continue
    with Nursery(tier, small) as nursery:
        for function in ("opened", "mapped", "reserved"):
            with nursery.worker([{HELD!r}]) as worker:
                worker.load(10.0)
                answer = worker.call(function, {{}}, {{}}, 5.0)
                print(tier.name, function, answer.error or answer.value)
"""


@needs_root
def test_an_ordinary_users_fork_server_watches_the_disk():
    tier, why = tier_of(ORDINARY_UID)
    if tier is Tier.NONE:
        pytest.skip(why)
    ordinary = str(REPOSITORY / "tests" / "grading" / "attacks" / "ordinary.py")
    words = [sys.executable, ordinary, str(ORDINARY_UID), sys.executable, "-c", ASK]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    done = subprocess.run(words, cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) in (3, 6)
    for line in lines:
        assert line.endswith("True") if "reserved" in line else "disk limit: wrote more" in line, lines
