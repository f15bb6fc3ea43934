"""Using more than one's share: each function tries, and must be stopped."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import threading
from contextlib import suppress

from llmcourse.grading.sandbox.attempts import Attempt, Hole, Situation, all_refused, refused
from llmcourse.grading.sandbox.limits import OPEN_FILES, SHARED_MARGIN

SMALL_STACK = 64 * 1024
MANY_FILES = 2 * OPEN_FILES


def take_memory(situation: Situation) -> str:
    too_much = situation.policy.memory_bytes * 9 // 8  # some may have become free since it entered
    with suppress(MemoryError):
        bytearray(too_much)
        raise Hole(f"{too_much:,} bytes were given")
    return refused(lambda: mmap.mmap(-1, too_much).close(), (errno.ENOMEM,))


def take_little_by_little(situation: Situation) -> str:
    """Many pieces, each small: what counts is their sum."""
    piece = situation.policy.memory_bytes // 16
    pieces = []
    with suppress(MemoryError):
        while len(pieces) <= 16:
            pieces.append(bytearray(piece))
        raise Hole(f"{len(pieces)} pieces of {piece:,} bytes were given")
    return f"stopped after {len(pieces)} pieces of {piece:,} bytes"


def start_threads(situation: Situation) -> str:
    allowed = situation.policy.threads
    threading.stack_size(SMALL_STACK)
    done = threading.Event()
    started = 1
    try:
        with suppress(RuntimeError):
            while started <= SHARED_MARGIN + 2 * allowed:
                threading.Thread(target=done.wait, daemon=True).start()
                started += 1
            raise Hole(f"{started} threads were started")
    finally:
        done.set()
    wide = "" if started <= allowed else f", {allowed} wanted: other processes of this user count too"
    return f"stopped at {started}{wide}"


def write_large_file(situation: Situation) -> str:
    file = os.open("large", os.O_CREAT | os.O_WRONLY)
    return refused(lambda: os.pwrite(file, b"x", situation.policy.file_bytes), (errno.EFBIG,))


def open_many_files(situation: Situation) -> str:
    return refused(lambda: [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY_FILES)], (errno.EMFILE,))


def raise_limits(situation: Situation) -> str:
    def lift(name: str) -> None:
        which = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError as error:  # so Python says "no permission" here
            raise PermissionError(errno.EPERM, str(error)) from None

    names = ("AS", "DATA", "NPROC", "FSIZE", "CPU", "NOFILE", "CORE")
    return all_refused({name: lambda name=name: lift(name) for name in names})


def compute_for_ever(situation: Situation) -> str:
    while True:
        pass


EXCESSES: dict[str, Attempt] = {
    "take too much memory": take_memory,
    "take memory piece by piece": take_little_by_little,
    "start too many threads": start_threads,
    "write too large a file": write_large_file,
    "open too many files": open_many_files,
    "raise its own limits": raise_limits,
}
ENDLESS: dict[str, Attempt] = {"compute for ever": compute_for_ever}
