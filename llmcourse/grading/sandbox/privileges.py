"""As whom the student's code runs: nobody else's user, and with no say in the system."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from llmcourse.grading.sandbox import kernel

CAP_DAC_READ_SEARCH, CAP_SETPCAP = 1 << 2, 1 << 8
CLONE_NEWUSER = 0x10000000
# User id 0 means nothing, changing the user id changes nothing, no capability survives it, none can be
# made ambient: NOROOT, NO_SETUID_FIXUP, no KEEP_CAPS, NO_CAP_AMBIENT_RAISE; each with its lock.
SECUREBITS = 0b11101111
FOLDER_FOR_OTHERS, FILE_FOR_OTHERS = stat.S_IROTH | stat.S_IXOTH, stat.S_IROTH


def drop(uid: int | None, paths: Iterable[str]) -> bool:
    """Gives up what this process may do beyond an ordinary user, for ever.

    Root becomes `uid`, a user without groups. If some of `paths` lie where that user cannot go, such as
    below root's home, it keeps one capability, that of reading everything, which landlock confines
    to the paths that the policy names. An ordinary user stays the same one.

    Returns:
        whether the kernel counts this process's threads alone, not with others of the same user.

    Raises:
        OSError: root was not allowed to.
    """
    if os.geteuid() == 0:
        become(uid, CAP_DAC_READ_SEARCH if needs_read_search(paths) else 0)
        return True
    alone = own_user_namespace()
    kernel.capset(0)
    # The fork server runs as the same user, and must be able to look at the files that this one holds.
    kernel.prctl(kernel.SET_DUMPABLE, 1)
    return alone


def become(uid: int, capabilities: int) -> None:
    """Root turns into another user and group, keeping these capabilities only."""
    os.setgroups([])
    kernel.prctl(kernel.SET_KEEPCAPS, 1)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)  # capabilities stay permitted, but are in effect no more
    kernel.capset(CAP_SETPCAP | capabilities)
    kernel.prctl(kernel.SET_SECUREBITS, SECUREBITS)
    kernel.capset(capabilities)


def needs_read_search(paths: Iterable[str]) -> bool:
    """Whether a user with no special rights cannot read these, judged by the mode of each and of the
    folders above it."""
    above: set[str] = set()
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        wanted = FOLDER_FOR_OTHERS if stat.S_ISDIR(mode) else FILE_FOR_OTHERS
        if mode & wanted != wanted:
            return True
        while (path := os.path.dirname(path)) not in above:
            above.add(path)
    return any(not os.stat(folder).st_mode & stat.S_IXOTH for folder in above)


def own_user_namespace() -> bool:
    """Puts an ordinary user's process where it is the only one of its user, if the system lets it.

    Inside it would have every capability over nothing; none is kept. What is gained is the count of
    threads that RLIMIT_NPROC limits: since Linux 5.14 each namespace counts for itself.
    """
    try:
        kernel.unshare(CLONE_NEWUSER)
    except OSError:  # forbidden here: the count stays shared, see `limits.limit_threads`
        return False
    kernel.prctl(kernel.SET_SECUREBITS, SECUREBITS)
    return kernel.release() >= (5, 14)
