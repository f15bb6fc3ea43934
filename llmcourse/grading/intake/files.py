"""Files of a folder that strangers filled: no links, no devices, nothing that changes while it is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmcourse.grading.printable import clean

MIB = 2**20
MAX_BYTES = 20 * MIB
MAX_FILES = 100_000
MAX_DEPTH = 16
MAX_SHOWN = 200  # characters of a name in a message


class Unreadable(ValueError):
    """What was handed in cannot be taken; the text goes on where the name of the file ends."""


@dataclass(frozen=True)
class Item:
    """One thing that was handed in, not yet read.

    Args:
        parts: the folders that it lies in, from the root of the submissions, and its name; none
            when the name cannot be trusted.
        read: returns the bytes, at most `MAX_BYTES` of them, or raises `Unreadable`.
        problem: why it must not be read, None if it may.
        folder: whether it is a folder (one is listed only to say what is wrong with it).
        shown: its name, fit to be shown.
    """

    parts: tuple[str, ...]
    read: Callable[[], bytes] = field(compare=False, repr=False)
    problem: str | None = None
    folder: bool = False
    shown: str = ""

    def __post_init__(self):
        if not self.shown:
            object.__setattr__(self, "shown", clean("/".join(self.parts), MAX_SHOWN))


def refuse(problem: str) -> bytes:
    """The `read` of an item that must not be read."""
    raise Unreadable(problem)


def walk(root: Path) -> list[Item]:
    """Every file below a folder, sorted; links are listed with their problem and never followed.

    Raises:
        ValueError: the folder cannot be listed, or holds more than `MAX_FILES` files.
    """
    found: list[Item] = []
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        folders = waiting.pop()
        try:
            entries = list(os.scandir(root.joinpath(*folders)))
        except OSError as error:
            if not folders:
                raise ValueError(f"{clean(str(root))} cannot be listed: {error.strerror}") from None
            found.append(_barred(folders, f"cannot be listed: {error.strerror}"))
            continue
        for entry in entries:
            parts = (*folders, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                found.append(_item(root, parts, entry))
            elif len(parts) > MAX_DEPTH:
                found.append(_barred(parts, f"lies deeper than {MAX_DEPTH} folders"))
            else:
                waiting.append(parts)
        if len(found) + len(waiting) > MAX_FILES:
            raise ValueError(f"{clean(str(root))} holds more than {MAX_FILES:,} files; name a folder below")
    return sorted(found, key=lambda item: item.parts)


def _item(root: Path, parts: tuple[str, ...], entry: os.DirEntry) -> Item:
    if entry.is_symlink() and entry.is_dir():
        return _barred(parts, "is a symbolic link")
    return Item(parts, partial(read_file, root, parts))


def _barred(parts: tuple[str, ...], problem: str) -> Item:
    return Item(parts, partial(refuse, problem), problem, folder=True)


def read_file(root: Path, parts: tuple[str, ...], max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of the ordinary file at `parts` below `root`; no link on the way is followed.

    Raises:
        Unreadable: it is a link, a device, a pipe, too large, not readable, or changes meanwhile.
    """
    try:
        with ExitStack() as opened:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, folder)
            for name in parts[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                folder = os.open(name, flags, dir_fd=folder)
                opened.callback(os.close, folder)
            return _read(folder, parts[-1], max_bytes)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def _read(folder: int, name: str, max_bytes: int) -> bytes:
    # Looked at before it is opened, since opening a device can already do something.
    seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
    _require_plain(seen, max_bytes)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        before = os.fstat(file.fileno())
        _require_plain(before, max_bytes)
        data = file.read(before.st_size + 1)
        after = os.fstat(file.fileno())
    if not _state(seen) == _state(before) == _state(after) or len(data) != before.st_size:
        raise Unreadable("changed while it was read; grade again once it is complete")
    return data


def _state(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _require_plain(info: os.stat_result, max_bytes: int) -> None:
    if stat.S_ISLNK(info.st_mode):
        raise Unreadable("is a symbolic link; hand in the file itself")
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable("is no ordinary file but a folder, pipe, socket or device")
    if info.st_nlink > 1:
        raise Unreadable(f"is a hard link ({info.st_nlink} names for one file); hand in a copy")
    if info.st_size > max_bytes:
        raise Unreadable(f"is {info.st_size / MIB:.1f} MiB large; at most {max_bytes / MIB:.0f} MiB are read")
