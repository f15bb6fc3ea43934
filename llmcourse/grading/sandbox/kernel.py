"""Calls to the kernel that Python has no name for; each raises OSError when the kernel refuses."""

from __future__ import annotations

import ctypes
import os
import struct

# Options of prctl, from <linux/prctl.h>.
SET_PDEATHSIG, SET_DUMPABLE, SET_KEEPCAPS, SET_SECCOMP, SET_SECUREBITS, SET_NO_NEW_PRIVS = 1, 4, 8, 22, 28, 38

MACHINES = ("x86_64", "aarch64")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine() -> str | None:
    """One of `MACHINES`, or None where the system calls have other numbers."""
    name = os.uname().machine
    return name if name in MACHINES and struct.calcsize("P") == 8 else None


def release() -> tuple[int, int]:
    """The kernel's version: `(6, 1)`."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()))


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number; integers are passed as 64 bits, the rest as ctypes does."""
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_word, arguments)))


def prctl(option: int, *arguments: int) -> int:
    """`prctl(2)`; arguments that are not given are 0, as the kernel demands of many options."""
    four = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, four)))


def unshare(flags: int) -> None:
    """`unshare(2)`: this process gets namespaces of its own."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def capset(kept: int) -> None:
    """Leaves this thread no capability, effective or permitted, but those of the bit mask `kept`."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # Two halves of 32 bits, each as (effective, permitted, inheritable).
    _checked(_libc.capset(header, struct.pack("6I", low, low, 0, high, high, 0)))


def close_range(first: int, last: int) -> None:
    """Closes every open file descriptor from `first` to `last`."""
    if first <= last:
        syscall(436, first, last, 0)  # on all machines, since Linux 5.9


def limit_arenas(number: int) -> None:
    """Tells glibc's malloc to keep to so many arenas: each reserves 64 MiB of addresses at once."""
    if hasattr(_libc, "mallopt"):  # musl has one arena anyway
        _libc.mallopt(ctypes.c_int(-8), ctypes.c_int(number))  # M_ARENA_MAX


def _word(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(result: int) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
