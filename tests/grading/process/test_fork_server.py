"""The fork server as a process: what it is told, what it watches, what it clears away."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import time

import pytest

from llmcourse.grading.process import fork_client, fork_server, scratch, uids
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.fork_client import ForkClient, MachineryError, environment
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.sandbox.policy import Tier

MIB = 1 << 20


def test_allowances_travel_and_are_checked():
    allowance = Allowance(memory_bytes=5)
    assert Allowance.from_json(allowance.to_json()) == allowance
    with pytest.raises(ValueError, match="threads must be an int of at least 1, got 0"):
        Allowance(threads=0)


def test_the_environment_holds_nothing_of_the_users(monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/home")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    found = environment("/scratch")
    assert found["HOME"] == "/scratch" and found["OMP_NUM_THREADS"] == "1"
    assert not {"GITHUB_TOKEN", "PYTHONPATH", "USER"} & set(found)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "scratch")


def test_usage_counts_bytes_files_and_folders(folder):
    os.makedirs(f"{folder}/a/b")
    with open(f"{folder}/a/b/file", "wb") as file:
        file.write(bytes(MIB))
    os.symlink("/", f"{folder}/link")
    used, files = scratch.usage(folder, 100)
    assert files == 4 and MIB <= used < 2 * MIB
    assert scratch.usage(folder, 2)[1] == 3  # it stops, one past the limit
    assert scratch.usage(f"{folder}/nothing", 2) == (0, 0)


def test_a_folder_is_removed_whatever_is_in_it(folder, tmp_path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("mine")
    os.makedirs(f"{folder}/a/b/c")
    os.makedirs(f"{folder}/a.0/{'n' * 200}")
    for path in ("a/b/x", "a/y", "z", f"a.0/{'n' * 200}/x"):
        open(f"{folder}/{path}", "w").close()
    os.symlink(keep, f"{folder}/a/link")
    os.symlink("nowhere", f"{folder}/broken")
    os.mkfifo(f"{folder}/fifo")
    os.chmod(f"{folder}/a/b", 0)
    os.chmod(f"{folder}/a", 0o500)
    os.chmod(folder, 0)
    scratch.remove(folder)
    assert not os.path.lexists(folder) and (keep / "file").read_text() == "mine"
    scratch.remove(folder)  # gone is gone


def test_a_folder_deeper_than_any_path_is_removed(folder):
    os.mkdir(folder)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1100):  # past Python's recursion limit, and 4096 characters
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    scratch.remove(folder)
    assert not os.path.exists(folder)


@pytest.fixture
def loop(folder, monkeypatch):
    """The fork server's loop in this process, with one child that sleeps and may use next to nothing."""
    os.mkdir(folder)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(5)
    server = fork_server.ForkServer(
        theirs, Tier.NONE, Allowance(memory_bytes=MIB, scratch_bytes=1, scratch_files=1)
    )
    monkeypatch.setattr(server, "_end_strays", lambda: None)  # this process has children of its own
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    child = fork_server.Child(
        7, pid, os.pidfd_open(pid), folder, fork_server.memory(pid), fork_server.oom_kills()
    )
    server.children[7] = child
    yield server, child, ours
    server.close()
    ours.close()
    theirs.close()


def test_a_worker_within_its_means_is_left_alone(loop):
    server, child, _ = loop
    server._watch(child)
    assert child.killed == ("", "")


def test_a_worker_that_has_grown_is_killed(loop):
    server, child, ours = loop
    child.baseline -= 2 * MIB  # as if it had written so much
    server._watch(child)
    server._bury(child)
    assert b'"memory limit"' in ours.recv(1000)


def test_a_worker_that_litters_is_killed(loop):
    server, child, ours = loop
    for name in "ab":
        open(f"{child.scratch}/{name}", "w").close()
    server._watch(child)
    server._bury(child)
    assert b'"disk limit"' in ours.recv(1000)


def buried(server, ours) -> dict:
    server._bury(server.children[7])
    return json.loads(ours.recv(1000))


def test_a_worker_that_somebody_killed_is_told(loop):
    server, child, ours = loop
    os.kill(child.pid, signal.SIGKILL)
    said = buried(server, ours)
    assert (said["kind"], said["message"]) == ("process ended", "the process was ended by SIGKILL")


def test_a_worker_that_the_kernel_killed_for_memory_is_our_failure(loop):
    server, child, ours = loop
    child.oom_kills -= 1  # as if the kernel had killed one since
    os.kill(child.pid, signal.SIGKILL)
    said = buried(server, ours)
    assert said["kind"] == "machinery" and "fewer --jobs" in said["message"]


def test_a_worker_that_we_killed_is_no_victim_of_the_machine(loop):
    server, child, ours = loop
    child.oom_kills -= 1
    child.baseline -= 2 * MIB
    server._watch(child)
    assert buried(server, ours)["kind"] == "memory limit"


def test_a_worker_that_cannot_be_watched_is_our_failure(loop, monkeypatch):
    server, child, ours = loop

    def blind(*_):
        raise PermissionError("hidden")

    monkeypatch.setattr(fork_server, "held_bytes", blind)
    server._watch(child)
    said = buried(server, ours)
    assert said["kind"] == "machinery" and said["message"].endswith("cannot be seen: hidden")


def test_the_kernel_s_count_of_killed_processes_is_read(monkeypatch, tmp_path):
    counts = tmp_path / "vmstat"
    counts.write_bytes(b"pgfault 17\noom_kill 3\n")
    monkeypatch.setattr(fork_server, "VMSTAT", str(counts))
    assert fork_server.oom_kills() == 3
    counts.unlink()
    assert fork_server.oom_kills() == 0


def test_abandoned_folders_are_swept_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fork_client.tempfile, "tempdir", str(tmp_path))
    long_ago = time.time() - 3600
    for name in ("abandoned", "in-use", "new"):
        root = tmp_path / f"{fork_client.PREFIX}{name}"
        root.mkdir()
        (root / "lock").touch()
        if name != "new":
            os.utime(root, (long_ago, long_ago))
    (tmp_path / "other").mkdir()
    with open(tmp_path / f"{fork_client.PREFIX}in-use" / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(fork_client._abandoned_roots()) == [str(tmp_path / f"{fork_client.PREFIX}abandoned")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives workers users of their own")
def test_no_two_workers_have_one_user():
    first, second = uids.lease_uid(), uids.lease_uid()
    assert first.uid != second.uid and first.uid > 1000
    first.release()
    third = uids.lease_uid()
    assert third.uid != second.uid
    second.release()
    third.release()


def test_a_fork_server_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(fork_client, "BOOT", "raise ImportError('no torch here')")
    server = ForkClient(Tier.NONE, Allowance())
    with pytest.raises(MachineryError, match="ImportError: no torch here"):
        server.start()
    assert not server.alive and server._root is None
    monkeypatch.setattr(fork_client.sys, "executable", "/nowhere/python")
    with pytest.raises(MachineryError, match="/nowhere/python"):
        server.start()


def descriptors():
    """What this process has open, each file or socket by a name of its own."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


@pytest.mark.parametrize("step", ["pipe", "lease_uid", "mkdir", "chown", "_tell"])
def test_a_worker_that_cannot_be_started_leaves_nothing_open(step, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(f"no {step} now")

    def lease():
        return uids.UidLease(os.geteuid(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))

    before = descriptors()
    client, root = ForkClient(Tier.LANDLOCK, Allowance()), tmp_path / "root"
    root.mkdir()
    client._root, (client._control, theirs) = str(root), socket.socketpair()
    monkeypatch.setattr(fork_client, "lease_uid", lease)
    place = {"lease_uid": fork_client, "_tell": client}.get(step, fork_client.os)
    monkeypatch.setattr(place, step, fails)
    with pytest.raises(MachineryError, match=f"cannot start a worker: no {step} now"):
        client.spawn()
    theirs.close()
    assert descriptors() == before and not root.exists()


def test_after_a_failed_start_the_next_worker_has_a_new_fork_server():
    with Nursery(Tier.NONE, Allowance()) as kept:
        shutil.rmtree(kept._server._root)  # as a cleaner of temporary files may
        with pytest.raises(MachineryError, match="cannot start a worker"), kept.worker([]):
            pass
        with kept.worker(["def f(): return 1"]) as worker:
            worker.load(10.0)
            assert worker.call("f", {}, {}, 10.0).value == 1


def test_workers_need_linux(monkeypatch):
    monkeypatch.setattr(fork_client.sys, "platform", "darwin")
    with pytest.raises(MachineryError, match="need Linux, and this is darwin"):
        ForkClient(Tier.NONE, Allowance()).start()


def test_a_sandbox_that_cannot_be_entered_is_our_failure(monkeypatch):
    with Nursery(Tier.NONE, Allowance()) as kept:
        monkeypatch.setattr(fork_client.os, "mkdir", lambda *_: None)  # so there is nothing to enter
        with pytest.raises(MachineryError, match="sandbox cannot be entered"), kept.worker([]):
            pass
        monkeypatch.undo()
        with kept.worker(["def f(): return 1"]) as worker:
            worker.load(10.0)
            assert worker.call("f", {}, {}, 10.0).value == 1
