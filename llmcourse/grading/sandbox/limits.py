"""How much a process may use: soft and hard limits alike, so that it cannot raise them again."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from llmcourse.grading.sandbox import kernel
from llmcourse.grading.sandbox.policy import Policy

MIB = 2**20
STACK_BYTES = 8 * MIB
OPEN_FILES = 256
PENDING_SIGNALS = 1024
MALLOC_ARENAS = 2
SHARED_MARGIN = 1024  # threads, where a user's other processes count too


def limit_resources(policy: Policy) -> None:
    """Everything but the number of threads, whose limit depends on who counts: see `limit_threads`."""
    kernel.limit_arenas(MALLOC_ARENAS)
    addresses, data = memory_in_use()
    _limit(resource.RLIMIT_AS, addresses + policy.memory_bytes)
    # Without addresses that are merely reserved; but without shared memory too, hence both.
    _limit(resource.RLIMIT_DATA, data + policy.memory_bytes)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_FSIZE, policy.file_bytes)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    # The soft limit's signal can be ignored, the hard limit's cannot.
    resource.setrlimit(resource.RLIMIT_CPU, (policy.cpu_s, policy.cpu_s + 1))
    # At 1 not even a program that collects dumps is started, as it is at 0: see core(5).
    _limit(resource.RLIMIT_CORE, 1)
    for unwanted in ("MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO"):
        _limit(getattr(resource, f"RLIMIT_{unwanted}"), 0)
    _limit(resource.RLIMIT_SIGPENDING, PENDING_SIGNALS)


def limit_threads(threads: int, alone: bool) -> None:
    """Limits how many threads there are at one time, the first included.

    Args:
        alone: this process's user, or user namespace, has no other process. If it has, the limit is
            on all of them together, so it starts from how many there are, with a wide margin: a
            thread of an honest answer must not fail because a browser started some.
    """
    _limit(resource.RLIMIT_NPROC, threads if alone else tasks_of(os.getuid()) + SHARED_MARGIN + threads)


def memory_in_use() -> tuple[int, int]:
    """Bytes of address space that this process has taken, and of its data with the stack."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        pages = file.read().split()
    size = resource.getpagesize()
    return int(pages[0]) * size, int(pages[5]) * size


def tasks_of(uid: int) -> int:
    """How many threads a user has."""
    number = 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if process.name.isdigit() and process.stat().st_uid == uid:
                number += sum(1 for _ in (process / "task").iterdir())
    return number


def _limit(which: int, value: int) -> None:
    """No more than `value`, and no more than before."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))
