"""A user id for each worker on this machine that no other running worker has, when started as root.

Limits on threads count by user, so two graders that run side by side must not share one.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from dataclasses import dataclass

from llmcourse.grading.sandbox.policy import UIDS, worker_uid

SLOTS = UIDS // 2  # the other half is for trying the sandbox
_turns = itertools.count(os.getpid())  # not the one just given back: its last process may still be counted


@dataclass(frozen=True)
class UidLease:
    """A user id, ours until `release`, or until this process ends however it ends."""

    uid: int | None
    _lock: socket.socket | None = None

    def release(self) -> None:
        """Gives it back, once no process has it any more."""
        if self._lock is not None:
            self._lock.close()


def lease_uid() -> UidLease:
    """An id of the range that is free, a different one each time; `None` for an ordinary user, who keeps
    the own one.

    Raises:
        OSError: all are taken.
    """
    for _ in range(SLOTS):
        uid = worker_uid(next(_turns) % SLOTS)
        if uid is None:
            return UidLease(None)
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0llmcourse-worker-{uid}")  # a name that the kernel forgets with the process
        except OSError:
            lock.close()
            continue
        return UidLease(uid, lock)
    raise OSError(errno.EAGAIN, f"all {SLOTS} user ids of workers are taken; run fewer jobs")
