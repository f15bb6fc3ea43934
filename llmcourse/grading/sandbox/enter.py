"""The step of a process into its sandbox, after which it can compute and do little else.

Call it in a fresh fork, before any of the student's code. It is one way: what it sets, this process
and its threads can only tighten.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from llmcourse.grading.sandbox import kernel, limits, privileges, seccomp
from llmcourse.grading.sandbox.landlock import READ, WRITE, Right, Ruleset
from llmcourse.grading.sandbox.policy import Policy, Tier

FIRST_FREE_FD = 3


class SandboxError(RuntimeError):
    """The sandbox could not be entered; the process must end without running the student's code."""


def prepare() -> None:
    """Works out what all forks of this process need alike, so that each of them enters sooner."""
    if machine := kernel.machine():
        seccomp.program(machine, os.getpid())


def enter(policy: Policy) -> None:
    """Confines this process as the policy says, for ever.

    The process must have one thread; it ends when the one that forked it does. Its working folder
    becomes the scratch folder. With `Tier.NONE` only file descriptors and resources are limited, and
    those on Linux only.

    Raises:
        SandboxError: a wall could not be put up, or there is no `uid` for root to become.
    """
    if sys.platform != "linux":
        if policy.tier > Tier.NONE:
            raise SandboxError(f"tier {policy.tier.name} needs Linux, and this is {sys.platform}")
        return os.chdir(policy.scratch)
    if policy.tier > Tier.NONE and os.geteuid() == 0 and policy.uid is None:
        raise SandboxError("uid must be given when started as root, got None; use worker_uid(slot)")
    parent = os.getppid()
    for step in (_one_thread, _close_files, _own_session, _limit, _confine):
        _take(step, policy)
    if os.getppid() != parent:
        raise SandboxError("the process that forked this one has ended")


def _take(step: Callable[[Policy], None], policy: Policy) -> None:
    try:
        step(policy)
    except (OSError, ValueError) as error:
        name = step.__name__.strip("_").replace("_", " ")
        raise SandboxError(f"{name}: {error}; run `llmcourse doctor --grading`") from error


def _one_thread(policy: Policy) -> None:
    """Landlock and seccomp confine the thread that asks, and those that it starts later."""
    threads = len(os.listdir("/proc/self/task"))
    if policy.tier > Tier.NONE and threads != 1:
        raise ValueError(f"this process must have 1 thread, got {threads}; enter right after the fork")


def _close_files(policy: Policy) -> None:
    """An open file is a right that no later wall takes away."""
    kept = sorted({fd for fd in policy.keep_fds if fd >= FIRST_FREE_FD})
    for before, after in zip([FIRST_FREE_FD - 1, *kept], [*kept, 2**31], strict=True):
        kernel.close_range(before + 1, after - 1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in set(range(FIRST_FREE_FD)) - set(policy.keep_fds):
        os.dup2(null, fd)
    if null >= FIRST_FREE_FD:
        os.close(null)


def _own_session(policy: Policy) -> None:
    """No terminal to type into, no process group with others; the scratch folder to work in."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o077)
    if policy.uid is not None and os.geteuid() == 0:
        os.chown(policy.scratch, policy.uid, policy.uid)
    os.chdir(policy.scratch)


def _limit(policy: Policy) -> None:
    limits.limit_resources(policy)


def _confine(policy: Policy) -> None:
    """Another user, files, system calls: in this order, as each needs what the next takes away."""
    if policy.tier == Tier.NONE:
        return
    with Ruleset() as files:
        files.allow(policy.readable, READ)
        files.allow(policy.listable, Right.READ_DIR)
        files.allow([os.devnull], READ | Right.WRITE_FILE)
        files.allow([policy.scratch], WRITE)
        alone = privileges.drop(policy.uid, (*policy.readable, os.path.dirname(policy.scratch)))
        limits.limit_threads(policy.threads, alone)
        kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.SET_PDEATHSIG, signal.SIGKILL)  # again: changing the user cleared it
        files.restrict()
    seccomp.restrict()
