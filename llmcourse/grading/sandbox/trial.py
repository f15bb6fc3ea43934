"""Something is tried in a process of its own, inside the sandbox or, for comparison, outside of it."""

from __future__ import annotations

import errno
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from llmcourse.grading.sandbox import kernel, landlock
from llmcourse.grading.sandbox.enter import SandboxError, enter
from llmcourse.grading.sandbox.held import held_bytes
from llmcourse.grading.sandbox.policy import UIDS, Policy, worker_uid

MAX_TEXT = 4096
TRIAL_LIMIT_S = 10.0
READY = "ready"  # a file that says so
LET_SEE = "give a container the capability SYS_PTRACE, or grade as an ordinary user"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Args:
        text: what it returned, or said of the exception that it raised; None if neither came.
        returned: it returned.
        signal: which ended it, 0 for none.
        late: it was ended because its time was over.
    """

    text: str | None
    returned: bool
    signal: int
    late: bool = False


class Trial:
    """Starts `action` in a fork that has entered the sandbox; `outcome` waits for what it returns.

    Args:
        policy: its `keep_fds` are replaced; None runs the action unconfined.
        prepare: what the process does before it enters.
    """

    def __init__(
        self,
        policy: Policy | None,
        action: Callable[[], str],
        limit_s: float = TRIAL_LIMIT_S,
        prepare: Callable[[], None] = lambda: None,
    ):
        self._deadline = time.monotonic() + limit_s
        self._answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._answers)
            _report(policy, action, answer, prepare)
        os.close(answer)

    def over(self) -> bool:
        """Whether it has come to something, or its time is over."""
        left = self._deadline - time.monotonic()
        return left <= 0 or bool(select.select([self._answers], [], [], 0)[0])

    def outcome(self) -> Outcome:
        """Waits until the process has ended, or ends it when its time is over."""
        received, late = b"", False
        while True:
            left = max(0.0, self._deadline - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                late = True
                break
            piece = os.read(self._answers, MAX_TEXT)
            if not piece:
                break
            received += piece
        os.close(self._answers)
        os.kill(self.pid, signal.SIGKILL)  # it is our child, so the number cannot have become another's
        status = os.waitpid(self.pid, 0)[1]
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        text = received[1:].decode(errors="replace") if received else None
        return Outcome(text, received[:1] == b"+", ended_by, late)


def _report(
    policy: Policy | None, action: Callable[[], str], answer: int, prepare: Callable[[], None]
) -> NoReturn:
    """In the child."""
    try:
        try:
            prepare()
            if policy is not None:
                enter(replace(policy, keep_fds=(answer,)))
            message = "+" + action()
        except SandboxError as error:
            message = f"-{error}"
        except BaseException as error:  # a trial must not come back as a second copy of its parent
            message = f"-{type(error).__name__}: {error}"
        os.write(answer, message.encode(errors="replace")[:MAX_TEXT])
    finally:
        os._exit(0)


def landlock_trouble() -> str:
    """Why landlock and seccomp cannot confine a process here, and what to do; empty if they can."""
    if kernel.machine() is None:
        return f"no table of system calls for {os.uname().machine}; use x86-64 or aarch64, 64 bits"
    try:
        landlock.version()
    except OSError as error:
        return {
            errno.ENOSYS: "this kernel has no landlock; Linux 5.13 and later have it",
            errno.EOPNOTSUPP: "landlock is not switched on; add it to `lsm=` on the kernel's command line",
        }.get(
            error.errno, f"landlock is forbidden here ({error}); allow it in the container's seccomp profile"
        )
    with tempfile.TemporaryDirectory() as scratch:
        policy = Policy(readable=(), scratch=os.path.realpath(scratch), uid=worker_uid(UIDS - 1), listable=())
        outcome = Trial(policy, _open_ends).outcome()
        if not outcome.returned or outcome.text:
            return f"the sandbox does not hold: {outcome.text}"
        return _blindness(policy)


def _blindness(policy: Policy) -> str:
    """Why this process cannot see which files a confined one holds; empty if it can."""
    trial = Trial(policy, _hold)
    try:
        while not os.path.exists(os.path.join(policy.scratch, READY)) and not trial.over():
            time.sleep(0.001)
        seen, why = held_bytes(trial.pid, policy.scratch, 1) > 0, "nothing is shown"
    except PermissionError as error:
        seen, why = False, str(error)
    os.kill(trial.pid, signal.SIGKILL)
    outcome = trial.outcome()
    if outcome.text is not None:
        return f"the sandbox does not hold: {outcome.text}"
    return "" if seen else f"which files a confined process holds cannot be seen ({why}); {LET_SEE}"


def _hold() -> str:
    """Keeps a file that has no name, until it is killed."""
    with open("held", "wb", buffering=0) as file:
        os.unlink("held")
        file.write(b"text")
        open(READY, "w").close()
        time.sleep(2 * TRIAL_LIMIT_S)
    return "it was not killed"


def _open_ends() -> str:
    """What landlock and seccomp should have refused and did not."""
    found = []
    for name, action in (("a folder was listed", lambda: os.listdir("/")), ("a process forked", _fork)):
        try:
            action()
            found.append(name)
        except PermissionError:
            pass
    return ", ".join(found)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
