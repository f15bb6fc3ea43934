"""What a process that runs a student's code may do, and how much of that this system can enforce."""

from __future__ import annotations

import enum
import os
import sys
import sysconfig
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
# Not for the student's code: the judge's side, and what a lab asks to build.
HIDDEN = (PACKAGE / "grading", PACKAGE / "decoding")
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    # What libraries ask about the processor; of /proc nothing that belongs to a process.
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)
FIRST_UID, UIDS = 60_800, 300  # within 60706 to 61183, which systemd's table of user ids leaves unused


class Tier(enum.IntEnum):
    """How well a student's code is confined; more is better."""

    NONE = 0  # limits on resources only: for students that are trusted
    LANDLOCK = 1  # landlock, seccomp, limits; another user when started as root
    NAMESPACE = 2  # the same, inside a namespace of bubblewrap's without network, home or other processes


def default_readable() -> tuple[str, ...]:
    """The standard library, installed packages, shared libraries, a few devices, and of this package
    what a student's code may import."""
    return _allowed()[0]


def default_listable() -> tuple[str, ...]:
    """Folders that Python must list to import what is readable in them, although not all is."""
    return _allowed()[1]


@dataclass(frozen=True)
class Policy:
    """Args:
        readable: files, and folders with all that is beneath, as real paths (symbolic links resolved).
        scratch: the one folder that may be written; given to `uid` when started as root.
        memory_bytes: on top of what the process has when it enters.
        file_bytes: the size of one file.
        threads: at one time, the first included.
        cpu_s: processor time, counted from the fork.
        uid: whom root becomes; no other process may have it at the time: see `worker_uid`.
        listable: folders whose names may be listed, with all folders beneath, but not read.
        keep_fds: file descriptors that stay open. All others are closed, and 0, 1 and 2 lead to
            /dev/null unless they are kept.

    Raises:
        ValueError: an argument is out of range.
    """

    readable: tuple[str, ...]
    scratch: str
    memory_bytes: int = 2**30
    file_bytes: int = 64 * 2**20
    threads: int = 32
    cpu_s: int = 60
    uid: int | None = None
    tier: Tier = Tier.LANDLOCK
    listable: tuple[str, ...] = field(default_factory=default_listable)
    keep_fds: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("memory_bytes", "file_bytes", "threads", "cpu_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.uid is not None and not 0 < self.uid < 2**32 - 1:
            raise ValueError(f"uid must be in [1, 2^32 - 2], got {self.uid}; see worker_uid")
        for path in (self.scratch, *self.readable, *self.listable):
            if not os.path.isabs(path):
                raise ValueError(f"paths must be absolute, got {path!r}; use os.path.realpath")


def worker_uid(slot: int) -> int | None:
    """A user id that nobody has, a different one for each slot; None for an ordinary user, who keeps
    the own one.

    Args:
        slot: in [0, 300): number those processes that run at the same time.

    Raises:
        ValueError: a slot out of range.
    """
    if not 0 <= slot < UIDS:
        raise ValueError(f"slot must be in [0, {UIDS}), got {slot}; start fewer processes at a time")
    return FIRST_UID + slot if os.geteuid() == 0 else None


def available_tier() -> tuple[Tier, list[str]]:
    """The best tier that works here, found by trying, and for each better one why it does not."""
    if sys.platform != "linux":
        return Tier.NONE, [f"landlock and seccomp are Linux's, and this is {sys.platform}; use a container"]
    # Imported late: they build on this module, and on what only Linux has.
    from llmcourse.grading.sandbox import bubblewrap, trial

    if trouble := trial.landlock_trouble():
        return Tier.NONE, [trouble]
    if trouble := bubblewrap.trouble():
        return Tier.LANDLOCK, [trouble]
    return Tier.NAMESPACE, []


@cache  # neither changes while a process lives
def _allowed() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Readable and listable paths: each root, or the parts of it that are not hidden."""
    prefixes = [Path(prefix, name) for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")]
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots = {Path(root).resolve() for root in (*SYSTEM_FOLDERS, *prefixes, *installed, PACKAGE)}
    readable: list[str] = []
    listable: list[str] = []
    for root in sorted(root for root in roots if root.exists() and not roots & set(root.parents)):
        _split(root, readable, listable)
    readable += [os.path.realpath(file) for file in SYSTEM_FILES if os.path.exists(file)]
    return tuple(readable), tuple(listable)


def _split(path: Path, readable: list[str], listable: list[str]) -> None:
    if path in HIDDEN:
        return
    if not any(path in hidden.parents for hidden in HIDDEN):
        readable.append(str(path))
        return
    listable.append(str(path))
    for entry in sorted(path.iterdir()):
        if not entry.is_symlink():  # a link's target counts, wherever that lies
            _split(entry, readable, listable)
