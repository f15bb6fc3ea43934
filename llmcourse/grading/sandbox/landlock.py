"""Which files a process may touch: landlock, the kernel's allow-list that any process can lay on itself.

A ruleset names the rights that it takes away everywhere (`handled`) and folders or files beneath which
some are given back. It holds for the process and all that it starts, and cannot be loosened. Source:
the kernel's Documentation/userspace-api/landlock.rst.

It does not hide that a file exists (stat), and does not cover chmod and its like: seccomp does.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import stat
import struct
from collections.abc import Iterable

from llmcourse.grading.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on both machines
PATH_BENEATH = 1
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # to processes outside of the sandbox


class Right(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_…, in the order of their bits."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # since version 2: rename from one folder to another
    TRUNCATE = 1 << 14  # since version 3
    IOCTL_DEV = 1 << 15  # since version 5


READ = Right.READ_FILE | Right.READ_DIR
WRITE = (
    READ
    | Right.WRITE_FILE
    | Right.TRUNCATE
    | Right.MAKE_REG
    | Right.MAKE_DIR
    | Right.REMOVE_FILE
    | Right.REMOVE_DIR
    | Right.REFER
)
OF_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV


def version() -> int:
    """Landlock's version (its "ABI"), at least 1.

    Raises:
        OSError: ENOSYS when the kernel was built without it, EOPNOTSUPP when it was not switched on.
    """
    return kernel.syscall(CREATE_RULESET, None, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION


def handled(version: int) -> tuple[Right, bytes]:
    """All that a version can take away: the rights over files, and `struct landlock_ruleset_attr`."""
    rights = Right.MAKE_SYM * 2 - 1
    for since, right in ((2, Right.REFER), (3, Right.TRUNCATE), (5, Right.IOCTL_DEV)):
        rights |= right if version >= since else 0
    attributes = struct.pack("<Q", rights)
    if version >= 4:
        attributes += struct.pack("<Q", BIND_AND_CONNECT_TCP)
    if version >= 6:
        attributes += struct.pack("<Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    return Right(rights), attributes


class Ruleset:
    """Rights that will be left; a context manager, since it is a file descriptor."""

    def __init__(self):
        self.rights, attributes = handled(version())
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        self._fd = kernel.syscall(CREATE_RULESET, buffer, len(attributes), 0)

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def allow(self, paths: Iterable[str], rights: Right) -> None:
        """Gives rights back over files, and over folders with all beneath.

        What is not there, or out of this user's reach anyway, is skipped.
        """
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._allow(path, rights & self.rights)

    def _allow(self, path: str, rights: Right) -> None:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(folder).st_mode):
                rights &= OF_FILES
            beneath = struct.pack("<Qi", rights, folder)  # packed: 12 bytes
            kernel.syscall(ADD_RULE, self._fd, PATH_BENEATH, beneath, 0)
        finally:
            os.close(folder)

    def restrict(self) -> None:
        """Confines this process, which must have one thread and no way to new privileges, for ever."""
        kernel.syscall(RESTRICT_SELF, self._fd, 0)
