"""A worker's scratch folder: what it uses, and how to be rid of it whatever is in it."""

from __future__ import annotations

import itertools
import os
import secrets
import stat
from collections.abc import Iterator

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def usage(folder: str, max_files: int) -> tuple[int, int]:
    """Bytes on disk and number of files and folders below a folder.

    Counting stops soon after `max_files`: a million files must not cost us the time to count them.
    Nothing can be hidden from it: a folder whose owner closed it is opened, and one that lies so deep
    that its path is too long counts as more than `max_files`.
    """
    used = files = 0
    waiting = [folder]
    while waiting and files <= max_files:
        for entry in _opened(waiting.pop()):
            if entry is None:
                return used, max_files + 1
            files += 1
            if files > max_files:
                break
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it is gone by now
                continue
            except OSError:
                return used, max_files + 1
            used += info.st_blocks * 512
            if stat.S_ISDIR(info.st_mode):
                waiting.append(entry.path)
    return used, files


def _opened(folder: str) -> Iterator[os.DirEntry[str] | None]:
    """What lies in a folder; None where that cannot be found out."""
    try:
        try:
            entries = os.scandir(folder)
        except PermissionError:
            os.chmod(folder, 0o700)  # by its owner, who in the sandbox cannot close it again
            entries = os.scandir(folder)
        with entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):  # it is gone by now
        return
    except OSError:
        yield None


def remove(folder: str) -> None:
    """Deletes a folder and all below it, following no link.

    Folders are moved up next to the top before they are emptied. So neither the depth of the tree nor
    the length of a path matters, where `shutil.rmtree` recurses.

    Raises:
        OSError: something is left that cannot be deleted.
    """
    try:
        os.chmod(folder, 0o700)
        top = os.open(folder, FOLDER)
    except FileNotFoundError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _empty(top: int) -> None:
    prefix = secrets.token_hex(8)  # of no name that is there already
    fresh = (f"{prefix}.{number}" for number in itertools.count())
    waiting = _clear(top, top, fresh)
    while waiting:
        name = waiting.pop()
        fd = os.open(name, FOLDER, dir_fd=top)
        try:
            waiting += _clear(fd, top, fresh)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)


def _clear(fd: int, top: int, fresh: Iterator[str]) -> list[str]:
    """Deletes the files of a folder and moves its folders to the top, under the names returned."""
    moved: list[str] = []
    for name in os.listdir(fd):
        try:
            os.unlink(name, dir_fd=fd)
        except (IsADirectoryError, PermissionError):  # which of them depends on the system
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.chmod(name, 0o700, dir_fd=fd)  # moving a folder writes its `..`
            moved.append(next(fresh))
            os.rename(name, moved[-1], src_dir_fd=fd, dst_dir_fd=top)
    return moved
