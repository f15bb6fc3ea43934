"""Which browser prints, photographs and tests: Chromium, Chrome or Edge, the first that runs."""

import os
import shutil
import subprocess
from collections.abc import Callable

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
SECONDS = 120  # a busy machine answers in some 2


def find_browser(which: Callable[[str], str | None] = shutil.which) -> tuple[str, str]:
    """The browser's path, `""` if there is none, and then the reason: CHROME, else the first that runs.

    Raises:
        ValueError: CHROME names no program.
    """
    if named := os.environ.get("CHROME", ""):
        if (found := which(named)) is None:
            raise ValueError(f"CHROME must be a program, got {named!r}; leave it out to have one searched")
        return found, ""
    stubs = []
    for path in filter(None, map(which, NAMES)):
        if _tells_its_version(path):
            return path, ""
        stubs.append(path)
    if stubs:
        return "", f"no browser: {' and '.join(stubs)} cannot tell its version"
    return "", f"no browser: none of {', '.join(NAMES[:3])} is on the PATH, nor another that is known"


def _tells_its_version(path: str) -> bool:
    """Whether it is one: a name on the PATH may be a stub that only says how to install it."""
    if os.name == "nt":  # there are no stubs there, and asked for its version Chrome opens a window
        return True
    try:
        asked = subprocess.run([path, "--version"], capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
