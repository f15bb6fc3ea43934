"""A filter over system calls: the kernel runs it before each of them, and a process cannot take it off.

The filter is a program for the kernel's small BPF machine: one accumulator, forward jumps only. It
reads `struct seccomp_data`: the call's number, the machine's identity, six arguments of 64 bits. It
sees values, not what pointers point to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import NamedTuple

from llmcourse.grading.sandbox import kernel
from llmcourse.grading.sandbox.syscalls import (
    ALLOWED,
    FALL_BACK,
    FIRST_UNKNOWN,
    REFUSED,
    UNSUPPORTED,
)

# What the filter answers, from <linux/seccomp.h>.
ALLOW, KILL_PROCESS, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE, UNKNOWN, CANNOT = ERROR | errno.EPERM, ERROR | errno.ENOSYS, ERROR | errno.EOPNOTSUPP

# Offsets into seccomp_data; both machines are little-endian.
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…, from <linux/audit.h>
WORD = 0xFFFFFFFF

CLONE_FILES, CLONE_THREAD = 0x400, 0x10000
CLOSE_RANGE_CLOEXEC = 4  # and not 2, which gives a thread a table of open files of its own
CLONE_NEW = 0x7E020000  # mount, cgroup, uts, ipc, user, pid and net namespaces
O_ACCMODE, O_TRUNC = 0o3, 0o1000
# F_DUPFD to F_SETLKW without F_SETOWN and F_SETSIG, which make the kernel send signals to others;
# then the locks of open files, F_DUPFD_CLOEXEC and F_GETPIPE_SZ.
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# TCGETS and TIOCGWINSZ (is it a terminal, how wide), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_SVE_GET_VL (how wide vectors are on aarch64), PR_SET_VMA (names memory).
PRCTL = (15, 16, 51, 0x53564D41)


class Instruction(NamedTuple):
    """One step of the BPF machine: `struct sock_filter`."""

    code: int
    skip_if_true: int  # how many instructions, after a comparison
    skip_if_false: int
    value: int


def load(offset: int) -> Instruction:
    """Accumulator ← 32 bits of seccomp_data."""
    return Instruction(0x20, 0, 0, offset)


def mask(value: int) -> Instruction:
    """Accumulator ← accumulator & value."""
    return Instruction(0x54, 0, 0, value)


def if_equal(value: int, then: int = 0, otherwise: int = 0) -> Instruction:
    """Skips `then` instructions if accumulator = value, else `otherwise`."""
    return Instruction(0x15, then, otherwise, value)


def if_at_least(value: int, then: int = 0, otherwise: int = 0) -> Instruction:
    """Skips `then` instructions if accumulator ≥ value, else `otherwise`."""
    return Instruction(0x35, then, otherwise, value)


def answer(action: int) -> Instruction:
    """Ends the filter."""
    return Instruction(0x06, 0, 0, action)


@dataclass(frozen=True)
class Condition:
    """An argument, masked, must be one of some values.

    Args:
        argument: which, from 0.
        upper: look at the upper 32 bits; a pointer takes two conditions. Flags, process ids and
            commands are 32 bits wide: the kernel does not look at the rest either.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = WORD
    upper: bool = False


def conditions(pid: int) -> dict[str, tuple[Condition, ...]]:
    """Calls that are allowed for certain arguments only.

    Args:
        pid: of the process that is confined: towards itself it may do what it likes.
    """
    oneself, within = (Condition(0, (pid,)),), (Condition(0, (0, pid)),)  # 0: whoever asks
    # Cutting a file off needs no right to write it where landlock is older than its third version.
    modes = (0, 1, 2, O_TRUNC | 1, O_TRUNC | 2)
    no_address = (Condition(4, (0,)), Condition(4, (0,), upper=True))
    # Only threads, and all with one table of open files: what a process holds must be seen in any of them.
    thread = CLONE_THREAD | CLONE_FILES
    return {
        "clone": (Condition(0, (thread,), mask=thread | CLONE_NEW),),
        "close_range": (Condition(2, (0, CLOSE_RANGE_CLOEXEC)),),
        "kill": oneself,
        "tgkill": oneself,
        "rt_sigqueueinfo": oneself,
        "rt_tgsigqueueinfo": oneself,
        "prlimit64": within,
        "sched_setaffinity": within,
        "setpriority": (Condition(0, (0,)), Condition(1, (0, pid))),  # 0: PRIO_PROCESS
        "open": (Condition(1, modes, mask=O_TRUNC | O_ACCMODE),),
        "openat": (Condition(2, modes, mask=O_TRUNC | O_ACCMODE),),
        "fcntl": (Condition(1, FCNTL),),
        "ioctl": (Condition(1, IOCTL),),
        "prctl": (Condition(0, PRCTL),),
        "sendto": no_address,
    }


def program(machine: str, pid: int) -> list[Instruction]:
    """The whole filter: wrong machine → killed; listed → allowed, perhaps on conditions; else refused.

    Args:
        machine: one of `kernel.MACHINES`. The same kernel also takes calls with the numbers of another
            machine (i386 on x86-64), which would mean something else here.
    """
    filtered = [load(MACHINE), if_equal(AUDIT[machine], then=1), answer(KILL_PROCESS), load(NUMBER)]
    # Also the numbers of the x32 machine, which are ours plus 2^30.
    filtered += [if_at_least(FIRST_UNKNOWN, otherwise=1), answer(UNKNOWN)]
    conditional = conditions(pid)
    for name, number in ALLOWED[machine].items():
        filtered += _rule(number, conditional.get(name, ()))
    for number in FALL_BACK.values():
        filtered += _when(number, [answer(UNKNOWN)])
    filtered += _when(REFUSED[machine][UNSUPPORTED], [answer(CANNOT)])
    return [*filtered, answer(REFUSE)]


@cache  # few rules name the process: a fork knows the others from the process that it is a copy of
def _rule(number: int, wanted: tuple[Condition, ...]) -> tuple[Instruction, ...]:
    return tuple(_when(number, _checks(wanted)))


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """The body, which must end the filter, is for this call only; the accumulator holds the number."""
    return [if_equal(number, otherwise=len(body)), *body]


def _checks(wanted: tuple[Condition, ...]) -> list[Instruction]:
    steps = []
    for condition in wanted:
        steps.append(load(ARGUMENTS + 8 * condition.argument + 4 * condition.upper))
        if condition.mask != WORD:
            steps.append(mask(condition.mask))
        for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
            steps.append(if_equal(value, then=left))  # over the other values and the refusal
        steps.append(answer(REFUSE))
    return [*steps, answer(ALLOW)]


def restrict() -> None:
    """Confines this process, which must have one thread and no way to new privileges, for ever."""
    machine = kernel.machine()
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {os.uname().machine}")
    steps = program(machine, os.getpid())
    code = ctypes.create_string_buffer(struct.pack("HBBI" * len(steps), *chain.from_iterable(steps)))
    header = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    kernel.prctl(kernel.SET_SECCOMP, 2, ctypes.addressof(header))  # SECCOMP_MODE_FILTER
