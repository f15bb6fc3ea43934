"""Inside the sandbox: what still works, what is refused, and that there is no way back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import resource
import select
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmcourse.grading.sandbox import enter as enter_module
from llmcourse.grading.sandbox import kernel, limits, privileges
from llmcourse.grading.sandbox.enter import SandboxError, enter
from llmcourse.grading.sandbox.policy import PACKAGE, Policy, Tier, default_readable, worker_uid
from llmcourse.grading.sandbox.syscalls import ALLOWED, FIRST_UNKNOWN, REFUSED
from tests.grading.sandbox.people import ROOT, SLOTS, both, needs_root, scratch, tried, value
from tests.usual_speed import slowness


def compute() -> str:
    torch.manual_seed(0)
    x = torch.randn(128, 128)
    p = F.softmax(x @ x.T / 128, dim=-1).sort(descending=True).values
    torch.multinomial(p, 3)
    torch.linalg.svd(x)
    torch.linalg.qr(x)
    torch.fft.fft(x)
    F.layer_norm(F.gelu(F.linear(x, x.requires_grad_())), (128,)).sum().backward()
    F.scaled_dot_product_attention(x[None], x[None], x[None])
    np.linalg.inv(np.eye(16)).sum()
    torch.save(x, "x.pt")
    return f"{torch.load('x.pt').norm().item():.6f}"


@both
def test_pytorch_computes_the_same_inside(person):
    assert value(tried(person, compute)) == value(tried(person, compute, confined=False, prepare=to_tmp))


def to_tmp() -> None:
    os.chdir("/tmp")
    os.umask(0)


@both
def test_threads_compute(person):
    def work() -> str:
        torch.set_num_threads(2)  # each of the threads below starts as many
        x = torch.ones(600, 600)
        sums: list[float] = []
        threads = [threading.Thread(target=lambda: sums.append((x @ x).sum().item())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return str(set(sums))

    assert value(tried(person, work)) == str({600.0**3})


@needs_root
def test_modules_are_imported_late():
    """Also where Python lies below a home folder that only root may enter."""

    def work() -> str:
        import colorsys
        import sqlite3

        import jaxtyping

        return " ".join(module.__name__ for module in (colorsys, sqlite3, jaxtyping))

    assert value(tried("root", work)) == "colorsys sqlite3 jaxtyping"


@both
def test_every_call_that_is_not_listed_is_refused(person):
    """Also those that no table of ours names."""
    machine = kernel.machine()
    # Before any filter, the kernel kills whoever calls these two from where it has put no probe.
    probes = {335, 336} if machine == "x86_64" else set()
    numbers = set(range(FIRST_UNKNOWN + 60)) - set(ALLOWED[machine].values()) - probes
    numbers.remove(REFUSED[machine]["fallocate"])  # refused in other words

    def work() -> str:
        return " ".join(str(number) for number in sorted(numbers) if not_refused(number))

    assert value(tried(person, work)) == ""


@both
def test_no_disk_is_taken_faster_than_it_is_written(person):
    def work() -> str:
        file = os.open("file", os.O_RDWR | os.O_CREAT)
        try:
            kernel.syscall(REFUSED[kernel.machine()]["fallocate"], file, 1, 0, 2**30)
        except OSError as error:
            os.posix_fallocate(file, 0, 2**20)  # glibc then writes
            return f"{error.strerror}, {os.fstat(file).st_size} bytes written"
        return f"{os.fstat(file).st_blocks} blocks, more than a file may have"

    assert value(tried(person, work)) == f"{os.strerror(errno.EOPNOTSUPP)}, {2**20} bytes written"


def not_refused(number: int) -> bool:
    try:
        kernel.syscall(number, 0, 0, 0, 0, 0, 0)
    except OSError as error:
        return error.errno not in ((errno.EPERM, errno.ENOSYS) if number >= 435 else (errno.EPERM,))
    return True


@both
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 takes calls of another machine here")
def test_the_numbers_of_the_32_bit_machine_end_the_process(person):
    def old_getpid() -> str:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        return str(function())

    outside = tried(person, old_getpid, confined=False)
    assert outside.returned or outside.signal == signal.SIGSEGV  # a kernel without them
    assert tried(person, old_getpid).signal == signal.SIGSYS


@both
def test_descriptors_are_closed_unless_kept(person):
    def opened() -> str:
        found = []
        for fd in range(1000):
            with contextlib.suppress(OSError):
                os.fstat(fd)
                found.append(fd)
        return f"{len(found)} {os.path.sameopenfile(0, 1)} {os.fstat(0).st_rdev == os.makedev(1, 3)}"

    reader, writer = os.pipe()
    far = os.dup2(writer, 300)
    try:
        assert value(tried(person, opened)) == "4 True True"  # 0, 1, 2 and the answer
    finally:
        for fd in (reader, writer, far):
            os.close(fd)


def test_kept_descriptors_stay_where_they_are():
    reader, writer = os.pipe()
    lost, far = os.dup2(writer, 200), os.dup2(writer, 300)
    child = os.fork()
    if child == 0:
        try:
            enter(Policy((), "/tmp", keep_fds=(1, far), tier=Tier.NONE, listable=()))
            with contextlib.suppress(OSError):
                os.write(lost, b"lost ")
            os.write(far, f"{os.fstat(0).st_rdev == os.fstat(1).st_rdev}".encode())
        finally:
            os._exit(0)
    for fd in (writer, lost, far):
        os.close(fd)
    with os.fdopen(reader) as heard:
        assert heard.read() == "False"
    os.waitpid(child, 0)


@both
def test_there_is_no_way_back(person):
    def identity() -> str:
        with open("/proc/meminfo") as file:  # readable, while nothing of a process is
            file.read(1)
        header, data = ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)
        header.raw = (0x20080522).to_bytes(4, "little") + bytes(4)
        assert ctypes.CDLL(None).capget(header, data) == 0
        words = [int.from_bytes(data.raw[i : i + 4], "little") for i in range(0, 24, 4)]
        own = os.getuid() == os.geteuid() != 0 and os.getgid() == os.getegid() != 0
        own = own and (person == "ordinary" or os.getgroups() == [])
        return f"{own} {words[0] | words[1] | words[3] | words[4]} {os.getsid(0) == os.getpid()}"

    def be_in_groups() -> None:
        if os.geteuid() == 0:
            os.setgroups([0, 4])

    left = privileges.CAP_DAC_READ_SEARCH if person == "root" else 0
    assert value(tried(person, identity, prepare=be_in_groups)) in (f"True {left} True", "True 0 True")


@needs_root
def test_a_capability_to_read_is_kept_only_where_it_is_needed():
    assert not privileges.needs_read_search(["/usr/lib", "/etc/hostname"])
    with scratch("root") as folder:  # 0700
        assert privileges.needs_read_search([folder])
        assert privileges.needs_read_search([os.path.join(folder, "..", "scratch", ".")])
        os.chmod(folder, 0o711)
        assert privileges.needs_read_search([folder])
        os.chmod(folder, 0o755)
        assert not privileges.needs_read_search([folder])


@both
def test_the_process_ends_with_its_parent(person):
    """The parent of the sandboxed process is a process between, which ends at once."""
    heard, hold = os.pipe()

    def between() -> str:
        if os.fork() == 0:
            with scratch("root") as folder:
                uid = worker_uid(next(SLOTS)) if os.geteuid() == 0 else None
                enter(Policy(default_readable(), folder, uid=uid, keep_fds=(hold,)))
                os.write(hold, b"in")
                time.sleep(60)
        return os.read(heard, 2).decode()

    assert value(tried(person, between, confined=False)) == "in"
    os.close(hold)
    assert select.select([heard], [], [], 5)[0], "it still lives"
    assert os.read(heard, 1) == b""
    os.close(heard)


def test_a_parent_that_ended_on_the_way_is_noticed(monkeypatch):
    """Then nobody is left whose end could end the process."""
    monkeypatch.setattr(enter_module.os, "getppid", iter([7, 1]).__next__)
    outcome = tried("root" if ROOT else "ordinary", lambda: "in")
    assert not outcome.returned and "has ended" in outcome.text


@both
def test_limits(person):
    def numbers() -> str:
        names = ("CORE", "NOFILE", "FSIZE", "MEMLOCK", "MSGQUEUE", "STACK")
        assert all(len(set(resource.getrlimit(getattr(resource, f"RLIMIT_{n}")))) == 1 for n in names)
        cpu = resource.getrlimit(resource.RLIMIT_CPU)
        core, size = (resource.getrlimit(r)[0] for r in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE))
        return f"{core} {size} {cpu}"

    assert value(tried(person, numbers, file_bytes=12345, cpu_s=7)) == "1 12345 (7, 8)"


@both
def test_memory_is_counted_from_what_there_was(person):
    size = 96 * 2**20

    def take(much: int) -> str:
        try:
            return f"{len(bytearray(much)) == much} {torch.zeros(much // 8).numel() == much // 8}"
        except (MemoryError, RuntimeError):
            return "stopped"

    assert value(tried(person, lambda: take(size), memory_bytes=2 * size)) == "True True"
    assert value(tried(person, lambda: take(size), memory_bytes=size // 2)) == "stopped"
    assert limits.memory_in_use()[0] > size // 2


@both
def test_threads_are_limited(person):
    def start() -> str:
        done, started = threading.Event(), 1
        try:
            while started < 200:
                threading.Thread(target=done.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            done.set()
        return str(started)

    def alone() -> str:
        return str(privileges.own_user_namespace())

    started = int(value(tried(person, start, threads=12)))
    if person == "ordinary" and value(tried(person, alone, confined=False)) == "False":
        pytest.skip("this system forbids user namespaces, so a user's processes are counted together")
    assert started == 12


def test_without_a_namespace_the_limit_is_wide(monkeypatch):
    """An honest answer must not fail because the user has many processes."""
    monkeypatch.setattr(privileges, "own_user_namespace", lambda: False)

    def limit() -> str:
        return str(resource.getrlimit(resource.RLIMIT_NPROC)[0])

    there = limits.tasks_of(os.getuid())
    assert there >= 1
    assert int(value(tried("ordinary", limit, threads=12))) >= limits.SHARED_MARGIN + 12


@both
def test_a_late_process_is_not_confined_halfway(person, monkeypatch):
    """A wall that cannot be put up is an error, and says which."""

    def broken(*arguments: object) -> None:
        raise OSError(1, "no such wall")

    monkeypatch.setattr(enter_module.seccomp, "restrict", broken)
    outcome = tried(person, lambda: "the student's code")
    assert not outcome.returned and "confine: " in outcome.text and "doctor --grading" in outcome.text


def test_a_process_with_threads_cannot_enter():
    def work() -> str:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        enter(Policy((), "/tmp", uid=worker_uid(next(SLOTS)), listable=()))
        return "entered"

    outcome = tried("root" if ROOT else "ordinary", work, confined=False)
    assert "1 thread, got 2" in outcome.text


@needs_root
def test_root_must_say_whom_to_become():
    assert "uid must be given" in tried("root", lambda: "in", uid=None).text


def test_a_scratch_folder_that_is_missing():
    outcome = tried("root" if ROOT else "ordinary", lambda: "in", scratch="/nowhere/at/all")
    assert not outcome.returned and "own session" in outcome.text and "/nowhere" in outcome.text


def test_no_tier_limits_resources_only():
    def work() -> str:
        os.listdir("/")
        os.waitpid(os.fork() or os._exit(0), 0)
        return f"{resource.getrlimit(resource.RLIMIT_FSIZE)[0]} {os.geteuid()}"

    outcome = tried("root" if ROOT else "ordinary", work, tier=Tier.NONE, uid=None, file_bytes=99)
    assert value(outcome) == f"99 {os.geteuid()}"


def test_other_systems_have_no_sandbox(monkeypatch):
    monkeypatch.setattr(enter_module.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux, and this is darwin"):
        enter(Policy((), "/tmp", listable=()))
    here = os.getcwd()
    enter(Policy((), "/tmp", tier=Tier.NONE, listable=()))
    assert os.getcwd() == os.path.realpath("/tmp")
    os.chdir(here)


QUICK = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from llmcourse.grading.sandbox.enter import enter, prepare
from llmcourse.grading.sandbox.policy import Policy, default_readable
prepare()
for uid in map(int, sys.argv[3:]):
    policy = Policy(default_readable(), sys.argv[2], uid=uid or None)
    if os.fork() == 0:
        keep = os.dup(1)
        object.__setattr__(policy, "keep_fds", (keep,))
        started = time.perf_counter()
        enter(policy)
        os.write(keep, f"{time.perf_counter() - started} ".encode())
        os._exit(0)
    os.wait()
"""


@pytest.mark.alone
def test_entering_is_quick():
    """In an interpreter of its own, since types are checked at each call here; at a core's usual speed."""
    with scratch("root") as folder:
        uids = [str(worker_uid(next(SLOTS)) or 0) for _ in range(15)]
        words = [sys.executable, "-c", QUICK, str(PACKAGE.parent), folder, *uids]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    slow = statistics.median(slowness() for _ in range(5))
    times = [float(word) / slow for word in done.stdout.split()]
    assert len(times) == 15 and min(times) < 0.005 and statistics.median(times) < 0.02
