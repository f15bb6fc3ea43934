"""What processes there are below one, for tests that nothing is left."""

from __future__ import annotations

import contextlib
import os
import time


def descendants(pid: int) -> set[int]:
    """All that a process has started, and what those have, as long as the chain to it holds."""
    parents = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{int(name)}/stat") as file:
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_running(pid: int, wait_s: float = 2.0) -> bool:
    """Whether a process still runs after a moment in which it may end."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except OSError:
            return False
        time.sleep(0.01)
    return True
