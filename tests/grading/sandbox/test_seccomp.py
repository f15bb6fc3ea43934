"""The filter over system calls, asked on a model of the kernel's machine for both processors."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from llmcourse.grading.sandbox import kernel
from llmcourse.grading.sandbox.seccomp import (
    ALLOW,
    AUDIT,
    CANNOT,
    KILL_PROCESS,
    REFUSE,
    UNKNOWN,
    conditions,
    program,
)
from llmcourse.grading.sandbox.syscalls import ALLOWED, FALL_BACK, FIRST_UNKNOWN, REFUSED
from tests.grading.sandbox.bpf import verdict

PID = 4321
OTHER = 1234
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
both_machines = pytest.mark.parametrize("machine", kernel.MACHINES)
# Allowed on these arguments, refused on those; each row is enough to find its condition missing.
CONDITIONAL = [
    ("clone", (0x3D0F00,), (signal.SIGCHLD,)),  # pthread_create, fork
    ("clone", (0x3D0F00,), (0x3D0F00 | 0x20000000,)),  # with a namespace
    ("clone", (0x3D0F00,), (0x4100 | signal.SIGCHLD,)),  # posix_spawn
    ("clone", (0x3D0F00,), (0x3D0B00,)),  # a thread with a table of open files of its own
    ("close_range", (3, 4, 0), (3, 4, 2)),  # which CLOSE_RANGE_UNSHARE also makes
    ("close_range", (3, 4, 4), (3, 4, 6)),
    ("kill", (PID, 9), (OTHER, 9)),
    ("kill", (PID, 9), (-1, 9)),
    ("kill", (PID, 9), (0, 9)),
    ("tgkill", (PID, PID, 6), (OTHER, OTHER, 9)),
    ("rt_sigqueueinfo", (PID, 9), (OTHER, 9)),
    ("rt_tgsigqueueinfo", (PID, PID, 9), (OTHER, OTHER, 9)),
    ("prlimit64", (0, 7), (OTHER, 7)),
    ("sched_setaffinity", (0,), (OTHER,)),
    ("setpriority", (0, 0, 5), (0, OTHER, 5)),
    ("setpriority", (0, PID, 5), (2, 0, 5)),  # PRIO_USER
    ("openat", (-100, 0, os.O_RDONLY), (-100, 0, os.O_RDONLY | os.O_TRUNC)),
    ("openat", (-100, 0, os.O_WRONLY | os.O_TRUNC | os.O_CREAT), (-100, 0, os.O_TRUNC | os.O_CREAT)),
    ("fcntl", (3, 3), (3, 8, OTHER)),  # F_GETFL, F_SETOWN
    ("fcntl", (3, 1030), (3, 10, 9)),  # F_DUPFD_CLOEXEC, F_SETSIG
    ("fcntl", (3, 7), (3, 15)),  # F_SETLKW, F_SETOWN_EX
    ("ioctl", (1, 0x5401), (0, 0x5412)),  # TCGETS, TIOCSTI
    ("prctl", (15,), (1, 0)),  # PR_SET_NAME, PR_SET_PDEATHSIG
    ("sendto", (3, 0, 1, 0, 0, 0), (3, 0, 1, 0, 0x7F00_0000_0000, 16)),  # an address, its lower half 0
    ("sendto", (3, 0, 1, 0, 0, 0), (3, 0, 1, 0, 0x1000, 16)),
]
NO_ARGUMENTS = (
    *("prlimit64", "sched_setaffinity", "setpriority", "open", "openat", "fcntl", "sendto"),
    "close_range",
)


@both_machines
def test_numbers_are_those_of_the_kernels_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[machine].read_text(encoding="utf-8")
    pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", text, re.M)
    header = {("newfstatat" if name == "fstatat" else name): int(number) for name, number in pairs}
    table = ALLOWED[machine] | REFUSED[machine] | FALL_BACK
    assert len(table) > 150
    assert {name: number for name, number in table.items() if header.get(name, number) != number} == {}


@both_machines
def test_nothing_is_in_both_tables(machine):
    assert set(ALLOWED[machine]) & set(REFUSED[machine]) == set()
    numbers = [*ALLOWED[machine].values(), *REFUSED[machine].values()]
    assert len(numbers) == len(set(numbers)) and max(numbers) < FIRST_UNKNOWN


@both_machines
def test_what_is_not_listed_is_refused(machine):
    steps, audit = program(machine, PID), AUDIT[machine]
    plain = {number for name, number in ALLOWED[machine].items() if name not in conditions(PID)}
    verdicts = {number: verdict(steps, number, audit=audit) for number in range(FIRST_UNKNOWN)}
    assert {number for number, action in verdicts.items() if action == ALLOW} - plain == {
        ALLOWED[machine][name]  # whose condition zeros meet
        for name in NO_ARGUMENTS
        if name in ALLOWED[machine]
    }
    assert plain <= {number for number, action in verdicts.items() if action == ALLOW}
    assert {number for number, action in verdicts.items() if action == UNKNOWN} == set(FALL_BACK.values())
    assert [number for number, action in verdicts.items() if action == CANNOT] == [
        REFUSED[machine]["fallocate"]
    ]
    others = set(verdicts.values()) - {ALLOW, UNKNOWN, CANNOT}
    assert others == {REFUSE}


@both_machines
@pytest.mark.parametrize(("name", "allowed", "refused"), CONDITIONAL)
def test_conditions(machine, name, allowed, refused):
    steps, number, audit = program(machine, PID), ALLOWED[machine][name], AUDIT[machine]
    assert verdict(steps, number, allowed, audit) == ALLOW
    assert verdict(steps, number, refused, audit) == REFUSE


def test_every_condition_is_tested():
    assert {name for name, _, _ in CONDITIONAL} | {"open"} == set(conditions(PID))


def test_the_upper_half_of_a_process_id_does_not_hide_it():
    steps = program("x86_64", PID)
    assert verdict(steps, ALLOWED["x86_64"]["kill"], (PID << 32 | OTHER, 9)) == REFUSE


@both_machines
def test_another_machine_and_unknown_numbers(machine):
    steps = program(machine, PID)
    i386, arm = 0x40000003, 0x40000028
    for audit in {i386, arm, *AUDIT.values()} - {AUDIT[machine]}:
        assert verdict(steps, ALLOWED[machine]["getpid"], audit=audit) == KILL_PROCESS
    x32 = 0x40000000 + ALLOWED[machine]["getpid"]
    for number in (FIRST_UNKNOWN, 9999, x32, 0xFFFFFFFF):
        assert verdict(steps, number, audit=AUDIT[machine]) == UNKNOWN


def test_the_model_finds_a_wrong_program():
    steps = program("x86_64", PID)
    assert verdict(steps, REFUSED["x86_64"]["execve"]) == REFUSE
    open_filter = [*steps[:-1], steps[-1]._replace(value=ALLOW)]
    assert verdict(open_filter, REFUSED["x86_64"]["execve"]) == ALLOW
