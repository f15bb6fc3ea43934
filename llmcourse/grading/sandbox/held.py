"""Disk space without a name: files that a process has deleted, and still has open or mapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

EXITING = 0x4  # PF_EXITING, among a thread's flags in /proc/…/stat: see proc(5)
DELETED = b" (deleted)\n"  # after the path in /proc/…/maps
LOOKS = 20  # at a process whose threads end while they are looked at


def held_bytes(pid: int, folder: str, file_bytes: int) -> int:
    """Bytes on disk that a process keeps by files without a name, or more; 0 if it is ending.

    One thread is asked, any that lives on meanwhile, since the first may have ended: in the sandbox they
    all share their memory and one table of open files. Of a file that is mapped and not open any more
    only root could learn the size. Whoever looks, it counts as large as a file can be.

    Args:
        folder: where it can make files.
        file_bytes: the most that one file can take.

    Raises:
        PermissionError: this process may not look into that one.
    """
    for _ in range(LOOKS):
        for thread in _threads(pid):
            try:
                opened = dict(_open_files(thread))
                mapped = set(_mapped_files(thread, f"{folder}/"))
            except (FileNotFoundError, ProcessLookupError):  # it is gone
                continue
            except PermissionError:
                if not _ends(thread):
                    raise
                continue
            if not _ends(thread):
                return sum(opened.values()) + file_bytes * len(mapped - set(opened))
    return 0


def _threads(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _open_files(thread: str) -> Iterator[tuple[int, int]]:
    """Inode and bytes on disk of each deleted file that is open."""
    for fd in os.listdir(f"{thread}/fd"):
        try:
            info = os.stat(f"{thread}/fd/{fd}")
        except FileNotFoundError:  # closed by now
            continue
        if stat.S_ISREG(info.st_mode) and not info.st_nlink:
            yield info.st_ino, info.st_blocks * 512


def _mapped_files(thread: str, below: str) -> Iterator[int]:
    """Inode of each deleted file of a folder that is mapped."""
    with open(f"{thread}/maps", "rb") as file:
        for line in file:
            if line.endswith(DELETED):
                *_, inode, path = line.split(maxsplit=5)  # addresses, mode, offset, device, inode, path
                if path.startswith(os.fsencode(below)):
                    yield int(inode)


def _ends(thread: str) -> bool:
    """Whether a thread has ended or does so now, and shows nothing of what its process holds."""
    try:
        with open(f"{thread}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return True
