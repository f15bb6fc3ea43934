"""The fork server: it has imported PyTorch once, and a worker is a copy of it that takes milliseconds.

It is trusted, has one thread, and runs no student's code itself. It watches what its workers use, kills
what uses too much, and leaves no process behind: whatever a worker's descendants do, they become
children of this process when their parents end (`PR_SET_CHILD_SUBREAPER`), and it has no other children.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO

import numpy as np
import torch

from llmcourse.grading.process import replay, scratch, wire, worker
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.operations import Operations
from llmcourse.grading.sandbox.enter import enter, prepare
from llmcourse.grading.sandbox.held import held_bytes
from llmcourse.grading.sandbox.policy import Policy, Tier, default_listable, default_readable

TICK_MS = 20
STRAYS_S = 5.0
REQUEST_BYTES = 1 << 16
VMSTAT = "/proc/vmstat"
CHANNEL = 3  # the worker's end of its socket, beside 0, 1 and 2
OUT_OF_MEMORY = (
    "this machine ran out of memory and ended a worker; close other programs or grade with fewer --jobs"
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass
class Child:
    """A worker that runs, or has ended and is not reported yet.

    Args:
        baseline: bytes of memory that it was born with.
        oom_kills: what `oom_kills` said then.
        killed: why we killed it, as `memory limit`.
        next_count: when its scratch folder is counted again.
    """

    number: int
    pid: int
    pidfd: int
    scratch: str
    baseline: int
    oom_kills: int
    killed: tuple[str, str] = ("", "")
    next_count: float = field(default_factory=time.monotonic)


class ForkServer:
    """The loop of the fork server.

    Args:
        control: messages of the judge, and ours to it; when the judge is gone, so are we.
    """

    def __init__(self, control: socket.socket, tier: Tier, allowance: Allowance):
        self.control = control
        self.tier = tier
        self.allowance = allowance
        self.readable = default_readable()
        self.listable = default_listable()
        # Found now: to look at the name of each module in a worker would copy the pages that they lie in.
        self.hidden = replay.grader_modules()
        prepare()
        self.children: dict[int, Child] = {}

    def run(self) -> None:
        """Serves until the judge closes the connection."""
        self.tell({"ready": True})
        while True:
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            for child in self.children.values():
                poll.register(child.pidfd, select.POLLIN)
            events = dict(poll.poll(TICK_MS if self.children else None))
            if self.control.fileno() in events and not self._hear():
                return
            for child in list(self.children.values()):
                if child.pidfd in events:
                    self._bury(child)
                else:
                    self._watch(child)

    def tell(self, message: dict[str, Any]) -> None:
        """A message to the judge; that it is gone is noticed where its messages are read."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)

    def _hear(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.control, REQUEST_BYTES, 2)
        if not data:
            return False
        request = json.loads(data)
        if "start" in request:
            self._start(request["start"], request["scratch"], request["uid"], fds)
        elif child := self.children.get(request["end"]):
            _kill(child.pid)
            self._bury(child)
        return True

    def _start(self, number: int, folder: str, uid: int | None, fds: list[int]) -> None:
        baseline = memory(os.getpid())
        try:
            pid = os.fork()
        except OSError as error:
            for fd in fds:
                os.close(fd)
            self.tell({"ended": number, "kind": "machinery", "message": f"cannot fork: {error}"})
            return
        if pid == 0:
            self._be_born(folder, uid, *fds)
        for fd in fds:
            os.close(fd)
        self.children[number] = Child(number, pid, os.pidfd_open(pid), folder, baseline, oom_kills())

    def _be_born(self, folder: str, uid: int | None, channel: int, output: int) -> NoReturn:
        """In the new process: gives up all that is the fork server's, then serves."""
        try:
            _take_places(channel, output)
            worker.become(socket.socket(fileno=CHANNEL), lambda: self._confine(folder, uid), self.hidden)
        finally:
            os._exit(72)

    def _confine(self, folder: str, uid: int | None) -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # a signal to its process group reaches nobody else
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(HOME=folder, TMPDIR=folder)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the first to be killed when the machine runs out of memory
        gc.enable()
        enter(self._policy(folder, uid))

    def _policy(self, folder: str, uid: int | None) -> Policy:
        return Policy(
            readable=self.readable,
            listable=self.listable,
            scratch=folder,
            memory_bytes=self.allowance.memory_bytes,
            file_bytes=self.allowance.file_bytes,
            threads=self.allowance.threads,
            cpu_s=self.allowance.cpu_s,
            uid=uid,
            tier=self.tier,
            keep_fds=(0, 1, 2, CHANNEL),
        )

    def _watch(self, child: Child) -> None:
        """Kills a worker that uses too much; that it ended is seen in the next round."""
        allowed = self.allowance
        if memory(child.pid) - child.baseline > allowed.memory_bytes:
            what = f"used more than {allowed.memory_bytes >> 20:,} MiB"
            return _end(child, "memory limit", what)
        started = time.monotonic()
        if started < child.next_count:
            return None
        used, files = scratch.usage(child.scratch, allowed.scratch_files)
        try:
            used += held_bytes(child.pid, child.scratch, allowed.file_bytes)
        except OSError as error:
            return _end(child, "machinery", f"which files a worker holds cannot be seen: {error}")
        if used > allowed.scratch_bytes:
            return _end(child, "disk limit", f"wrote more than {allowed.scratch_bytes >> 20:,} MiB")
        if files > allowed.scratch_files:
            return _end(child, "disk limit", f"made more than {allowed.scratch_files:,} files")
        # Counting takes no more than a fifth of our time, however many files there are.
        child.next_count = time.monotonic() + 5 * (time.monotonic() - started)
        return None

    def _bury(self, child: Child) -> None:
        """Reaps a worker, ends what it left behind, and tells the judge why it ended.

        The judge removes its folder. That may take long, and the others must not wait for it here.
        """
        _, status, usage = os.wait4(child.pid, 0)
        os.close(child.pidfd)
        del self.children[child.number]
        self._end_strays()
        used_cpu = usage.ru_utime + usage.ru_stime >= self.allowance.cpu_s
        reason = _reason(status, used_cpu, oom_kills() > child.oom_kills)
        kind, message = child.killed if child.killed[0] else reason
        self.tell({"ended": child.number, "kind": kind, "message": message})

    def _end_strays(self) -> None:
        """Kills every child that is no worker, until there is none: an orphan's orphans come to us too."""
        deadline = time.monotonic() + STRAYS_S  # outside of a sandbox they may multiply
        known = {child.pid for child in self.children.values()}
        while (strays := _children() - known) and time.monotonic() < deadline:
            for pid in strays:
                _kill(pid)
                os.waitpid(pid, 0)

    def close(self) -> None:
        """Ends all workers."""
        for child in list(self.children.values()):
            _kill(child.pid)
            self._bury(child)


def memory(pid: int) -> int:
    """Bytes that are a process's own: pages it wrote, shared memory, and what was swapped out; 0 if gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    wanted = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(wanted))


def _children() -> set[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return {int(pid) for pid in file.read().split()}
    except FileNotFoundError:  # a kernel built without that file
        return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == os.getpid()}


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # a child of ours is there until we wait for it, so the pid is its own


def _end(child: Child, kind: str, message: str) -> None:
    child.killed = child.killed if child.killed[0] else (kind, message)
    _kill(child.pid)


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started; 0 if it does not say."""
    with contextlib.suppress(OSError), open(VMSTAT, "rb") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(b"oom_kill "))
    return 0


def _reason(status: int, used_cpu: bool, oom: bool) -> tuple[str, str]:
    """Why a process ended that was not killed by us.

    Args:
        used_cpu: it had used all of its processor time; who ignores the warning is killed for it.
        oom: the kernel has ended processes meanwhile because the machine's memory was used up.
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return "process ended", f"the process ended with exit code {code}"
    number = -code
    if number == signal.SIGXCPU or (number == signal.SIGKILL and used_cpu):
        return "time limit", "used all of its processor time"
    if number == signal.SIGKILL and oom:
        return "machinery", OUT_OF_MEMORY
    if number == signal.SIGXFSZ:
        return "disk limit", "wrote a file that is too large"
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return "process ended", f"the process was ended by {name}"


def _take_places(channel: int, output: int) -> None:
    """Puts the two ends that a worker has where they belong; the sandbox closes everything else."""
    channel, output = os.dup(channel), os.dup(output)  # neither may be overwritten by the other
    for place in (1, 2):
        os.dup2(output, place)
    os.dup2(channel, CHANNEL, inheritable=False)
    sys.stdout = sys.__stdout__ = _printer(1)  # the old ones remember the file that they wrote to
    sys.stderr = sys.__stderr__ = _printer(2)


def _printer(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _warm_up() -> None:
    """Does once, before the first fork, what would be done at the first use in each worker."""
    for part in ("landlock", "limits", "privileges", "seccomp"):
        with contextlib.suppress(ImportError):  # not this system's
            importlib.import_module(f"llmcourse.grading.sandbox.{part}")
    torch.set_num_threads(1)
    x = torch.rand(4, 4, requires_grad=True)
    with Operations():
        values, _ = (x @ x).softmax(-1).sort()
        torch.multinomial(values.detach().cumsum(-1).topk(2).values, 1)
    wire.decode(wire.encode({"x": x}))
    # The same numbers for every question, so that one notebook has one grade; `random`: see worker.
    np.random.seed(0)
    torch.manual_seed(0)


def main() -> None:
    """`python -c … PACKAGE_FOLDER FD TIER ALLOWANCE`: serves the judge at the other end of FD."""
    _, _, fd, tier, allowance = sys.argv
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The judge's end also ends us by closing the connection; this is for when we do not look at it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    control = socket.socket(fileno=int(fd))
    _warm_up()
    server = ForkServer(control, Tier(int(tier)), Allowance.from_json(allowance))
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        server.tell({"machinery": f"the fork server must have 1 thread, got {threads}"})
        return
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would write to, and so copy, pages that all workers share
    try:
        server.run()
    finally:
        server.close()
