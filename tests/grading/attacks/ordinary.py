"""Runs a program as an ordinary user, whom root lends Python where it lies below a closed folder.

    python ordinary.py UID PROGRAM ARGUMENT …

Root's home is often closed, and Python's installation may lie in it. Then this process gets a mount
namespace of its own, in which the closed folder is covered by an open one that holds just what is needed.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
REPOSITORY = Path(__file__).resolve().parents[3]


def closed_above(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not pass, if there is one."""
    for folder in reversed((path, *path.parents)):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def uncover() -> None:
    """Makes Python and the repository reachable for others, in this process and what it starts."""
    needed = [Path(path).resolve() for path in (sys.base_prefix, sys.prefix, REPOSITORY)]
    closed = {
        folder: [p for p in needed if closed_above(p) == folder] for folder in map(closed_above, needed)
    }
    closed.pop(None, None)
    if not closed:
        return
    if any(folder in inside for folder, inside in closed.items()):
        raise PermissionError("Python's own folder is closed to other users")
    _checked(_libc.unshare(CLONE_NEWNS))
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    for folder, inside in closed.items():
        with tempfile.TemporaryDirectory() as aside:
            places = [Path(aside, str(number)) for number in range(len(inside))]
            for path, place in zip(inside, places, strict=True):
                place.mkdir()
                _mount(str(path), str(place), None, MS_BIND | MS_REC)
            _mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
            for path, place in zip(inside, places, strict=True):
                path.mkdir(parents=True)
                _mount(str(place), str(path), None, MS_BIND | MS_REC)
                _checked(_libc.umount2(str(place).encode(), 2))  # MNT_DETACH


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind, data)]
    _checked(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    uid = int(sys.argv[1])
    os.umask(0o022)
    try:
        uncover()
    except OSError as error:
        sys.exit(f"cannot lend Python to an ordinary user: {error}")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
