"""The judge's handle on the fork server: starts it, asks it for processes, learns why they ended.

One thread uses one of these, and must outlive it: the fork server ends with the thread that started it.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcourse.grading.printable import clean
from llmcourse.grading.process import scratch
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.deadline import Deadline
from llmcourse.grading.process.frames import Late, wait
from llmcourse.grading.process.uids import UidLease, lease_uid
from llmcourse.grading.sandbox.policy import Tier

START_S = 120.0  # importing PyTorch from a cold disk
END_S = 10.0  # killing a process, and clearing its folder
STOP_S = 5.0
PREFIX = "llmcourse-grading-"
PACKAGE_FOLDER = str(Path(__file__).resolve().parents[3])
# The very package that runs the judge is imported; then its folder leaves the path again, so that
# nothing beside it can be.
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import llmcourse; del sys.path[0]; "
    "from llmcourse.grading.process.fork_server import main; main()"
)


class MachineryError(RuntimeError):
    """Something of ours failed: no judgement on an answer, and never 0 points."""


@dataclass
class Process:
    """A worker process, as the judge holds it.

    Args:
        channel: the judge's end of its socket.
        output: a file descriptor with what it prints.
    """

    number: int
    channel: socket.socket
    output: int
    scratch: str
    uid: UidLease


class ForkClient:
    """One fork server, started again when it has died.

    Args:
        tier: how its workers are confined.
        allowance: how much they may use.
    """

    def __init__(self, tier: Tier, allowance: Allowance):
        self.tier = tier
        self.allowance = allowance
        self._numbers = itertools.count()
        self._ended: dict[int, tuple[str, str]] = {}
        self._running: set[int] = set()  # of this fork server, not of one before it
        self._program: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._root: str | None = None
        self._lock: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be asked for a process now."""
        return self._control is not None and self._program is not None and self._program.poll() is None

    def start(self) -> None:
        """Starts it, and returns when it is ready.

        Raises:
            MachineryError: it does not start; with its own words.
        """
        self.stop()
        if sys.platform != "linux":
            raise MachineryError(f"workers need Linux, and this is {sys.platform}; use WSL or a container")
        try:
            self._start()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise MachineryError(f"the fork server did not start: {error}") from error
            raise

    def _start(self) -> None:
        self._root, self._lock = _make_root()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-s", "-P", "-c", BOOT, PACKAGE_FOLDER, str(theirs.fileno())]
        command += [str(int(self.tier)), self.allowance.to_json()]
        if self.tier == Tier.NAMESPACE:
            from llmcourse.grading.sandbox import bubblewrap  # Linux only, and not every Linux

            command = bubblewrap.wrap(command, self._root)
        with theirs, open(Path(self._root, "log"), "wb") as log:
            self._program = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._root),
                cwd=self._root,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        hello = self._hear(Deadline(START_S)) or {"machinery": f"nothing heard in {START_S:g} s"}
        if "machinery" in hello:
            raise MachineryError(f"the fork server did not start: {hello['machinery']}{self._log()}")

    def spawn(self) -> Process:
        """A new worker process, which has not entered its sandbox yet.

        Raises:
            MachineryError: it could not be asked for. The fork server is ended too, so that a second try
                begins with a new one.
        """
        with ExitStack() as kept, ExitStack() as handed_over:
            try:
                process, request, fds = self._prepare(kept, handed_over)
                self._tell(request, fds)
            except (OSError, MachineryError) as error:
                self.stop()  # whatever it is that went wrong, nothing of it stays
                raise MachineryError(f"cannot start a worker: {error}") from error
            kept.pop_all()  # they are the process's now, and `end` closes them
        self._running.add(process.number)
        return process

    def _prepare(self, kept: ExitStack, handed_over: ExitStack) -> tuple[Process, dict[str, Any], list[int]]:
        """What a worker needs, and the request for it with the descriptors that go along.

        Args:
            kept: closes our ends.
            handed_over: closes the worker's ends, which are of no use here once they are sent.
        """
        number = next(self._numbers)
        channel, its_channel = socket.socketpair()
        kept.callback(channel.close)
        handed_over.callback(its_channel.close)
        output, its_output = os.pipe()
        kept.callback(os.close, output)
        handed_over.callback(os.close, its_output)
        os.set_blocking(output, False)
        uid = lease_uid() if self.tier > Tier.NONE else UidLease(None)
        kept.callback(uid.release)
        folder = os.path.join(self._root or "", f"worker-{number}")
        os.mkdir(folder, 0o700)
        if uid.uid is not None:
            os.chown(folder, uid.uid, uid.uid)
        request = {"start": number, "scratch": folder, "uid": uid.uid}
        fds = [its_channel.fileno(), its_output]
        return Process(number, channel, output, folder, uid), request, fds

    def why(self, process: Process, wait_s: float) -> tuple[str, str] | None:
        """Kind and message of how a process ended, or None when it has not within `wait_s`.

        Raises:
            MachineryError: it never began, or the fork server has ended.
        """
        deadline = Deadline(wait_s)
        while process.number not in self._ended:
            if process.number not in self._running:
                raise MachineryError("the fork server has ended")
            message = self._hear(deadline)
            if message is None:
                return None
            self._running.discard(message["ended"])
            self._ended[message["ended"]] = (message["kind"], message["message"])
        kind, text = self._ended[process.number]
        if kind == "machinery":
            raise MachineryError(text)
        return kind, text

    def end(self, process: Process) -> None:
        """Kills a process with all that descends from it, and removes its folder."""
        process.channel.close()
        os.close(process.output)
        try:
            if process.number in self._running:
                self._tell({"end": process.number})
                if self.why(process, END_S) is None:
                    raise MachineryError("the fork server does not answer")
            scratch.remove(process.scratch)
        except (MachineryError, OSError):
            self.stop()  # whatever it is that went wrong, nothing of it stays
        finally:
            self._ended.pop(process.number, None)
            process.uid.release()

    def stop(self) -> None:
        """Ends it, its processes and its folder; may be called at any time, also twice."""
        self._running.clear()
        self._ended.clear()
        if self._control is not None:
            self._control.close()  # which tells it to end
            self._control = None
        if self._program is not None:
            try:
                self._program.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                self._program.kill()
                self._program.wait()
                self._program = None
        if self._root is not None:
            _remove_root(self._root, self._lock)
            self._root = self._lock = None

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._control is None:
            raise MachineryError("the fork server has ended")
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])
        except OSError as error:
            raise MachineryError(f"the fork server has ended: {error}{self._log()}") from error

    def _hear(self, deadline: Deadline) -> dict[str, Any] | None:
        if self._control is None:
            raise MachineryError("the fork server has ended")
        try:
            wait(self._control, select.POLLIN, deadline)
            data = self._control.recv(1 << 16)
        except Late:
            return None
        except OSError:
            data = b""
        if not data:
            raise MachineryError(f"the fork server has ended{self._log()}")
        return json.loads(data)

    def _log(self) -> str:
        with suppress(OSError):
            text = Path(self._root or "", "log").read_bytes()[-2000:].decode(errors="replace").strip()
            return f": {clean(text.splitlines()[-1], 300)}" if text else ""
        return ""


def environment(home: str) -> dict[str, str]:
    """All that the fork server is told of the world: nothing of the user's.

    Python's `-I` would ignore PYTHONHASHSEED too, and then the order of a set would differ from one
    grading to the next; nothing else of Python's is set here, so `-s -P` isolates as well.
    """
    chosen = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    loader = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    places = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    return chosen | loader | places | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def _make_root() -> tuple[str, int]:
    """A folder that others may pass through and not list, and a lock that says it is in use."""
    import fcntl  # not on Windows

    for abandoned in _abandoned_roots():
        with suppress(OSError):
            scratch.remove(abandoned)
    root = os.path.realpath(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.chmod(root, 0o711)
    return root, lock


def _abandoned_roots() -> Iterator[str]:
    """Folders that graders of ours left when they were killed: nobody holds their lock."""
    import fcntl

    with os.scandir(tempfile.gettempdir()) as entries:
        ours = [entry.path for entry in entries if entry.name.startswith(PREFIX) and _may_be_abandoned(entry)]
    for root in ours:
        with suppress(OSError):
            lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield root
            finally:
                os.close(lock)


def _may_be_abandoned(entry: os.DirEntry[str]) -> bool:
    info = entry.stat(follow_symlinks=False)
    # One that was made just now may not be locked yet.
    old = time.time() - info.st_mtime > 60
    return old and stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def _remove_root(root: str, lock: int | None) -> None:
    for attempt in range(50):  # processes that were just killed may take a moment to stop writing
        try:
            scratch.remove(root)
            break
        except OSError:
            if attempt == 49:
                shutil.rmtree(root, ignore_errors=True)
            time.sleep(0.02)
    if lock is not None:
        os.close(lock)
