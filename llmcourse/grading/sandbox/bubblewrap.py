"""The second wall: bubblewrap starts the fork server where there is no network and nothing to find.

Inside there are the system's libraries, Python, this package without exercises and solutions, and
the folder for scratch; no home, no process but the own ones. What lies in there is read-only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmcourse.grading.sandbox.policy import PACKAGE, SYSTEM_FILES

MIB = 2**20
SHARED_BYTES = 64 * MIB  # of /tmp, and of /dev/shm
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
PYTHON = ("bin", "lib", "lib64", "share", "pyvenv.cfg")
# The judge's knowledge, of which the fork server needs nothing; empty folders cover it.
COVERED = (PACKAGE / "grading" / "exercises", PACKAGE / "decoding")
# What the fork server needs as root: to hand out scratch folders, look into them and clean them up, to
# start workers as other users, to see which files they hold, and to end them. A worker keeps at most
# the first.
CAPABILITIES = (
    "DAC_READ_SEARCH",
    "DAC_OVERRIDE",
    "CHOWN",
    "FOWNER",
    "SETUID",
    "SETGID",
    "SETPCAP",
    "SYS_PTRACE",
    "KILL",
)
TRIAL_LIMIT_S = 10
NO_NAMESPACES = "allow unprivileged user namespaces"
REMEDIES = {
    "nknown option": "install version 0.7 or later",
    "mount proc": "in a container, leave all of /proc visible (docker's systempaths=unconfined)",
}


def wrap(command: list[str], scratch_root: str) -> list[str]:
    """The command line that runs `command` inside a namespace of its own.

    File descriptors that a process passes on reach the command. It ends when the thread that started
    it ends, so start it from one that stays.

    Args:
        scratch_root: the one folder from outside that can be written; the paths stay the same.

    Raises:
        FileNotFoundError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise FileNotFoundError("bwrap is not installed; install the package bubblewrap")
    options = ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--die-with-parent", "--new-session", "--hostname", "sandbox", *_rights()]
    options += [*_system(), *_python(), *_bind("--bind", scratch_root), "--chdir", "/"]
    return [bwrap, *options, "--remount-ro", "/", "--", *command]


def trouble() -> str:
    """Why `wrap` cannot be used here, and what to do; empty if it can."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            command = wrap([shutil.which("true") or "/bin/true"], os.path.realpath(scratch))
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=TRIAL_LIMIT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{error}" if isinstance(error, FileNotFoundError) else f"bubblewrap does not run: {error}"
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    remedies = (remedy for words, remedy in REMEDIES.items() if words in said)
    return f"bubblewrap does not run ({said}); {next(remedies, NO_NAMESPACES)}"


def _rights() -> list[str]:
    """An ordinary user needs a user namespace to make the others. Root does without: in one it could
    not become the workers' users, who are a wall of their own."""
    if os.geteuid() != 0:
        return ["--unshare-user"]
    kept = [word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}")]
    return ["--cap-drop", "ALL", *kept]


def _system() -> list[str]:
    words = []
    for folder in SYSTEM:
        if os.path.islink(folder):
            words += ["--symlink", os.readlink(folder), folder]
        else:
            words += _bind("--ro-bind-try", folder)
    words += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        words += ["--size", str(SHARED_BYTES), "--tmpfs", folder]
    for file in SYSTEM_FILES:
        if not file.startswith(("/dev/", "/proc/", "/usr/")):
            words += _bind("--ro-bind-try", file)
    return words


def _python() -> list[str]:
    """Python, its packages and this one, unless they lie in the system's folders."""
    prefixes = dict.fromkeys([sys.base_prefix, sys.prefix])
    # Not the whole folders: a virtual environment may have been made around the course and more.
    parts = [f"{prefix}/{part}" for prefix in prefixes for part in PYTHON]
    words: list[str] = []
    for path in (*parts, str(PACKAGE)):
        if not path.startswith("/usr/"):
            words += _bind("--ro-bind-try", path)
    for folder in COVERED:
        if folder.exists():
            words += ["--tmpfs", str(folder), "--remount-ro", str(folder)]
    return words


def _bind(option: str, path: str) -> list[str]:
    """What lies at a path outside, at the same path inside, below folders that everybody may enter."""
    above = [str(folder) for folder in reversed(Path(path).parents)][1:]
    return [*(word for folder in above for word in ("--dir", folder)), option, path, path]
